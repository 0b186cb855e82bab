"""The buckets and the memory that a server plans."""

import json
import logging
from pathlib import Path
from typing import Any

import attrs
import pytest

from tgi.config import OptionError, Options
from tgi.layers.loading import describe
from tgi.planning.plan import find_card, make_plan
from tgi.planning.planner import Planner
from tgi.planning.setup import Setup, read_setup
from tgi.planning.workload import ShapeCounts
from tgi.plugins import DeviceSpec, devices, load_plugins
from tgi.plugins.device import REFERENCE
from tgi.protocol import Bucket, Loaded
from tgi.scheduler import Buckets
from tgi.testing.models import make_llama

from .llamas import LLAMA_31_8B, LLAMA_31_70B, MISTRAL_7B

DEVICES = devices(load_plugins())
CPU, GAUDI = DEVICES["cpu"], DEVICES["hpu"]


@pytest.fixture
def compiling(tmp_path: Path) -> Setup:
    """A model on a card that is not there."""
    options = Options(max_total_tokens=1024, max_batch_size=8, max_batch_prefill_tokens=1024)
    return read_setup(make_llama(tmp_path / "model"), options, GAUDI)


def planner(setup: Setup, **options: Any) -> Planner:
    """A planner with other options."""
    setup = attrs.evolve(setup, options=attrs.evolve(setup.options, **options))
    return Planner.open(setup, describe(setup.describe_command()), REFERENCE)


def test_a_server_has_the_buckets_of_its_plan(compiling: Setup) -> None:
    device, card = find_card("gaudi2", DEVICES.values())
    assert device is GAUDI
    described = describe(compiling.describe_command())
    plan = make_plan("model", compiling, described, card)
    assert Planner.open(compiling, described, card).choose().to_warm_up() == plan.buckets


def test_a_device_whose_rates_are_unknown_has_those_of_a_reference_card(compiling: Setup) -> None:
    unknown = attrs.evolve(REFERENCE, flops=0.0)
    described = describe(compiling.describe_command())
    assert Planner.open(compiling, described, unknown).costs == planner(compiling).costs


def test_buckets_are_chosen_as_the_options_say(compiling: Setup, tmp_path: Path) -> None:
    def chosen(**options: Any) -> list[Bucket]:
        return planner(compiling, **options).choose().to_warm_up()

    assert len(chosen(max_graphs=12)) <= 12 < len(chosen())
    with pytest.raises(OptionError, match=r"`max_graphs` must be >= 2 for `max_waste` = 9. Given: 1"):
        chosen(max_graphs=1, max_waste=9)
    ShapeCounts(128, {Bucket(5, 1, 23): 1000}).write(tmp_path / "shapes.json")
    assert Bucket(5, 1, 23) in chosen(bucket_shapes=tmp_path / "shapes.json", max_graphs=8)
    with pytest.raises(OptionError, match="counts blocks of 128 tokens, and this device has 16"):
        ShapeCounts.read(tmp_path / "shapes.json", 16)


def test_a_device_that_does_not_compile_reads_no_shapes(compiling: Setup, tmp_path: Path) -> None:
    plan = planner(attrs.evolve(compiling, device=CPU), bucket_shapes=tmp_path / "missing")
    assert not plan.choose().padded
    assert plan.warm_up_seconds(plan.choose()) is None


def test_graphs_are_as_few_as_there_is_memory_for(compiling: Setup) -> None:
    def fitted(fraction: float | None, free: int = 10_000) -> int:
        plan = planner(compiling, graph_memory_fraction=fraction, memory_fraction=0.8)
        buckets = plan.choose()
        ranks = [
            Loaded(free_bytes=size, block_bytes=(1,), dtype="float32", graph_bytes=100, total_bytes=10**6)
            for size in (free, 20_000)
        ]
        memory = plan.divide_memory(ranks, buckets)
        again = plan.choose_again(buckets, memory, plan.attention(buckets)).to_warm_up()
        assert len(again) <= memory.graph_count
        return len(again)

    every = fitted(None)
    assert every > 20
    assert fitted(0.9) == every
    assert 8 < fitted(0.15) <= 12
    with pytest.raises(OptionError, match=r"0\.01 is enough for 0 graphs, and 2 are needed"):
        fitted(0.01)


def test_a_small_cache_has_buckets_of_its_own(compiling: Setup) -> None:
    """They need no more workspace, and are no more; a cache that is large enough changes nothing."""
    plan = planner(compiling, max_total_tokens=8192, max_batch_size=64)
    buckets = plan.choose()
    attention = plan.attention(buckets)

    def again(free: int) -> Buckets:
        loaded = Loaded(free_bytes=free, block_bytes=(1,), dtype="float32", total_bytes=10**9)
        return plan.choose_again(buckets, plan.divide_memory([loaded], buckets), attention)

    assert again(10**6) is buckets
    small = again(500)
    assert list(small) != list(buckets)
    assert len(list(small)) <= len(list(buckets))
    assert plan.attention(small).within(attention)


@pytest.mark.parametrize(("graphs", "level"), [(24, logging.INFO), (1, logging.WARNING)])
def test_a_budget_that_is_too_short_is_logged(
    graphs: int, level: int, compiling: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    plan = planner(compiling)
    buckets = plan.choose_few(graphs, 10**6, plan.attention(plan.choose())).to_warm_up()
    assert len(buckets) == max(graphs, 2), "one for prefill and one for decode are the least"
    (record,) = caplog.records
    assert record.levelno == level
    assert (
        record.getMessage()
        == f"--warmup-budget is enough for {graphs} buckets, and {len(buckets)} are needed"
    )


def test_only_a_share_of_the_memory(compiling: Setup) -> None:
    """A sequence of 129 tokens takes 9 blocks of 16; four take 36."""
    half = attrs.evolve(CPU, memory_fraction=0.5)
    setup = attrs.evolve(compiling, options=Options(max_total_tokens=129, max_batch_size=4))
    loaded = Loaded(free_bytes=40 * 1024 + 1, block_bytes=(1024,), dtype="float32")

    def blocks(device: DeviceSpec, fraction: float | None) -> int:
        plan = planner(attrs.evolve(setup, device=device), memory_fraction=fraction)
        return plan.divide_memory([loaded], Buckets(plan.limits)).widest.blocks

    assert blocks(CPU, 0.5) == blocks(half, None) == 19
    assert blocks(half, 1.0) == 36


BY_MEMORY = [
    ("gaudi2", LLAMA_31_8B, {}, 128),  # --max-concurrent-requests
    ("gaudi2", LLAMA_31_8B, {"max_concurrent_requests": 512}, 256),
    ("gaudi2", LLAMA_31_8B, {"max_concurrent_requests": 512, "max_total_tokens": 8192}, 128),  # of 143
    ("gaudi3", LLAMA_31_8B, {"max_concurrent_requests": 512, "max_total_tokens": 8192}, 128),  # of 196
    ("gaudi2", LLAMA_31_8B, {"max_total_tokens": 32768}, 64),  # of 35
    ("gaudi2", LLAMA_31_70B, {"max_concurrent_requests": 512}, 64),  # not enough memory
    (
        "gaudi2",
        LLAMA_31_8B,
        {"max_concurrent_requests": 512, "max_batch_total_tokens": 204_800},
        64,
    ),  # of 100
    ("gaudi2", LLAMA_31_8B, {"max_concurrent_requests": 5}, 5),
    ("gaudi2", LLAMA_31_8B, {"max_batch_size": 7}, 7),
    ("h100", LLAMA_31_8B, {"max_concurrent_requests": 512, "max_total_tokens": 8192}, 128),  # of 113
    ("cpu", LLAMA_31_8B, {"max_concurrent_requests": 512}, 32),
]


@pytest.mark.parametrize(("card", "config", "options", "rows"), BY_MEMORY)
def test_a_batch_is_as_large_as_there_is_memory_for_texts_of_half_the_length(
    tmp_path: Path, card: str, config: dict[str, Any], options: dict[str, Any], rows: int
) -> None:
    """An eight-billion Llama takes 16.06 GB and 128 KiB a token, and cards have what logs show."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    device, memory = find_card(card, DEVICES.values())
    setup = read_setup(tmp_path, Options(**options), device, {})
    described = describe(setup.describe_command())
    assert Planner.open(setup, described, memory).limits.max_batch_size == rows


def test_with_a_window_a_batch_keeps_no_more_than_it_sees(tmp_path: Path) -> None:
    """Half of 65,536 tokens of 128 KiB for 17 texts, or a window of 4,096 of them for 142."""
    device, memory = find_card("gaudi2", DEVICES.values())
    for window, rows in ((None, 64), (4096, 128)):
        (tmp_path / "config.json").write_text(json.dumps(MISTRAL_7B | {"sliding_window": window}))
        options = Options(max_concurrent_requests=512, max_total_tokens=65_536)
        setup = read_setup(tmp_path, options, device, {})
        planned = Planner.open(setup, describe(setup.describe_command()), memory)
        assert planned.limits.max_batch_size == rows
