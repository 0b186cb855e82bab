"""What is decided before the model is loaded, and once it is."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tgi.agreement import Patience
from tgi.config import OptionError, Options
from tgi.engine import (
    Model,
    _load,
    _model_info,
    _source,
    choose_buckets,
    describe_model,
    fewer_buckets,
    fit_buckets,
    known_shapes,
    load_command,
    open_ranks,
    plan_blocks,
    prepare_recipes,
    save_shapes,
)
from tgi.executor import EngineError
from tgi.hub import Source
from tgi.lifecycle import Lifecycle
from tgi.limits import Limits
from tgi.planning.plan import make_plan
from tgi.planning.setup import read_setup
from tgi.plugins import ConfigError, devices, load_plugins
from tgi.progress import describe
from tgi.protocol import Loaded, Progress
from tgi.scheduler import Bucket, Buckets
from tgi.scheduler.workload import ShapeCounts
from tgi.testing.models import make_llama

CPU, GAUDI = (devices(load_plugins())[name] for name in ("cpu", "hpu"))
LIMITS = Limits(max_input_tokens=100, max_total_tokens=129, max_batch_size=4, block_size=16)
"""The longest sequence takes 9 blocks."""
BUCKETS = Buckets.from_limits(LIMITS, CPU)


def loaded(free_blocks: int) -> list[Loaded]:
    return [Loaded(free_bytes=free_blocks * 1024 + 1, block_bytes=1024, dtype="float32")]


def test_the_plan_of_the_memory_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert plan_blocks(loaded(1000), CPU, LIMITS, BUCKETS, Options()) == 36
    (record,) = caplog.records
    assert "KV cache, 37 blocks of 16 tokens" in record.getMessage()


def test_too_little_memory_for_one_sequence(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineError, match="Not enough memory to handle `max_total_tokens=129`") as caught:
        plan_blocks(loaded(9), CPU, LIMITS, BUCKETS, Options())
    assert caught.value.kind == "memory"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "no room for all" in record.getMessage()


def test_a_cache_that_cannot_be_as_large_as_told(caplog: pytest.LogCaptureFixture) -> None:
    limits = attrs.evolve(LIMITS, max_batch_total_tokens=320)
    assert plan_blocks(loaded(16), CPU, limits, BUCKETS, Options()) == 15
    assert "--max-batch-total-tokens 320: there is memory for 240 only" in caplog.text


def test_only_a_share_of_the_memory() -> None:
    assert plan_blocks(loaded(40), CPU, LIMITS, BUCKETS, Options(memory_fraction=0.5)) == 19
    device = attrs.evolve(CPU, memory_fraction=0.5)
    assert plan_blocks(loaded(40), device, LIMITS, BUCKETS, Options()) == 19
    assert plan_blocks(loaded(40), device, LIMITS, BUCKETS, Options(memory_fraction=1.0)) == 36


@pytest.fixture
def compiling(tmp_path: Path) -> Model:
    """A model on a card that is not there."""
    model = describe_model(make_llama(tmp_path / "model"), Options())
    return attrs.evolve(model, device=GAUDI)


CARD_LIMITS = Limits(max_total_tokens=1024, max_batch_size=8, max_batch_prefill_tokens=1024, block_size=128)


def test_a_device_that_compiles_has_a_folder_for_what_it_has_compiled(
    compiling: Model, tmp_path: Path
) -> None:
    options = Options(model_id="org/m", recipe_cache=tmp_path / "cache")
    buckets = choose_buckets(compiling, CARD_LIMITS, options)
    variables = prepare_recipes(compiling, buckets, options)
    (folder,) = (tmp_path / "cache").iterdir()
    assert folder.name.startswith("m-auto-1xgaudi2-")
    assert variables == {"PT_HPU_RECIPE_CACHE_CONFIG": f"{folder},false,8192,false"}
    assert prepare_recipes(compiling, buckets, options) == variables
    assert (
        prepare_recipes(compiling, choose_buckets(compiling, CARD_LIMITS, options, 20), options) != variables
    )
    assert prepare_recipes(attrs.evolve(compiling, device=CPU), BUCKETS, options) == {}, "nothing is compiled"
    assert prepare_recipes(compiling, buckets, Options()) == {}
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"--recipe-cache: .*file.* cannot be made: Not a directory"):
        prepare_recipes(compiling, buckets, Options(recipe_cache=tmp_path / "file"))


def test_a_server_has_the_buckets_of_its_plan(compiling: Model) -> None:
    options = Options(
        model_id=str(compiling.folder), device="gaudi2", max_total_tokens=1024, max_batch_size=8
    )
    plan = make_plan(read_setup(options))
    assert choose_buckets(compiling, plan.setup.limits, options).to_warm_up() == plan.buckets


def test_buckets_are_chosen_as_the_options_say(compiling: Model, tmp_path: Path) -> None:
    def chosen(**options: Any) -> list[Bucket]:
        return choose_buckets(compiling, CARD_LIMITS, Options(**options)).to_warm_up()

    assert len(chosen(max_graphs=12)) <= 12 < len(chosen())
    rows = {bucket.rows for bucket in chosen(bucketing="exponential") if not bucket.prefill}
    assert rows == {1, 2, 4, 6, 8}
    with pytest.raises(OptionError, match=r"`max_graphs` must be >= 2 for `max_waste` = 9. Given: 1"):
        chosen(max_graphs=1, max_waste=9)
    counts = ShapeCounts.open(tmp_path / "shapes.json", 128)
    counts.counts[Bucket(5, 1, 23)] = 1000
    counts.save()
    assert Bucket(5, 1, 23) in chosen(bucket_shapes=tmp_path / "shapes.json", max_graphs=8)
    with pytest.raises(OptionError, match="counts blocks of 128 tokens, and this device has 16"):
        ShapeCounts.open(tmp_path / "shapes.json", 16)


def test_graphs_are_as_few_as_there_is_memory_for(compiling: Model) -> None:
    def fitted(fraction: float | None, free: int = 10_000) -> int:
        options = Options(graph_memory_fraction=fraction, memory_fraction=0.8)
        buckets = choose_buckets(compiling, CARD_LIMITS, options)
        ranks = [
            Loaded(free_bytes=size, block_bytes=1, dtype="float32", graph_bytes=100)
            for size in (free, 20_000)
        ]
        return len(fit_buckets(compiling, CARD_LIMITS, options, ranks, buckets).to_warm_up())

    every = fitted(None)
    assert every > 20
    assert fitted(0.9) == every
    assert 8 < fitted(0.15) <= 12
    with pytest.raises(OptionError, match=r"0\.01 is enough for 0 graphs, and there must be 2"):
        fitted(0.01)


def test_shapes_are_recorded_where_they_matter(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = Options(record_shapes=tmp_path / "shapes.json")
    assert known_shapes(GAUDI, Options()) is None
    assert not caplog.records
    assert known_shapes(CPU, options) is None
    assert "--record-shapes has no effect: shapes do not matter on cpu" in caplog.text
    assert not (tmp_path / "shapes.json").exists()
    assert known_shapes(GAUDI, options) == ShapeCounts(128, {}, tmp_path / "shapes.json")
    assert (tmp_path / "shapes.json").exists()


def test_shapes_are_saved_every_minute_and_at_the_end(tmp_path: Path) -> None:
    shapes = ShapeCounts.open(tmp_path / "shapes.json", 128)

    def saved() -> int:
        return len(ShapeCounts.read(tmp_path / "shapes.json", 128).counts)

    async def serve() -> None:
        for rows in (1, 2, 3):
            shapes.add(Bucket(rows, 1, 5))
            with trio.fail_after(1000):
                while saved() < rows:
                    await trio.sleep(20)
        shapes.add(Bucket(4, 1, 5))
        raise KeyError

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await save_shapes(shapes, serve)

    trio.run(main, clock=MockClock(autojump_threshold=0.01))
    assert saved() == 4


def test_the_same_shapes_lead_to_the_same_folder_for_recipes(compiling: Model, tmp_path: Path) -> None:
    """Also if there are more of each, which were seen in another order."""
    counts = {Bucket(5, 1, 23): 7, Bucket(8, 1, 60): 31, Bucket(1, 200, 3, prefill=True): 9}
    more = {shape: 3 * count for shape, count in reversed(counts.items())}
    folders = []
    for name, some in (("first", counts), ("second", more), ("third", {Bucket(2, 1, 2): 5})):
        ShapeCounts(128, some).write(tmp_path / name)
        options = Options(recipe_cache=tmp_path, bucket_shapes=tmp_path / name, max_graphs=12)
        buckets = choose_buckets(compiling, CARD_LIMITS, options)
        folders.append(prepare_recipes(compiling, buckets, options))
    assert folders[0] == folders[1] != folders[2]


def test_ranks_are_told_how_large_steps_will_be(compiling: Model) -> None:
    options = Options(dtype="bfloat16", watermark_delta=3.0)
    buckets = choose_buckets(compiling, CARD_LIMITS, options)
    command = load_command(compiling, CARD_LIMITS, buckets, options)
    made_up = attrs.evolve(options, load_format="dummy")
    assert load_command(compiling, CARD_LIMITS, buckets, made_up).dummy
    assert not command.dummy
    assert command.gathered_blocks >= 8 * 8
    # A chunk of 1024 tokens has no context; one of 512 has 512 before it.
    assert command.prefill_pairs >= 1024 * 1024
    assert command.prefill_tokens >= max(bucket.rows * bucket.tokens for bucket in buckets)
    assert command.top >= 20
    assert (command.dtype, command.lanes, command.watermark_delta) == ("bfloat16", 8, 3.0)
    model = attrs.evolve(compiling, device=CPU)
    command = load_command(model, LIMITS, BUCKETS, options)
    assert (command.gathered_blocks, command.prefill_pairs) == (0, 0)


@pytest.mark.parametrize(("graphs", "level"), [(24, logging.INFO), (1, logging.WARNING)])
def test_a_budget_that_is_not_enough_for_anything_is_told(
    graphs: int, level: int, compiling: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    buckets = fewer_buckets(compiling, CARD_LIMITS, Options(), graphs).to_warm_up()
    assert len(buckets) == max(graphs, 2), "one for prefill and one for decode are the least"
    (record,) = caplog.records
    assert record.levelno == level
    assert (
        record.getMessage() == f"--warmup-budget is enough for {graphs} buckets: there will be {len(buckets)}"
    )


def test_a_model_is_described_by_its_plugin(tmp_path: Path) -> None:
    make_llama(tmp_path)
    model = describe_model(tmp_path, Options())
    assert (model.architecture.name, model.device.name) == ("LlamaForCausalLM", "cpu")
    assert model.config.vocab_size == json.loads((tmp_path / "config.json").read_text())["vocab_size"]


@pytest.mark.parametrize(
    ("options", "name", "served"),
    [
        ({"model_id": "org/model"}, "org/model", "org/model"),
        ({"model_id": "org/model", "served_model_name": "mine"}, "org/model", "mine"),
        ({}, "tgi-demo", "tgi-demo"),
    ],
)
def test_3_9_what_it_is_called(tmp_path: Path, options: dict[str, str], name: str, served: str) -> None:
    """As the operator calls it; TGI asks the Hub for the spelling, and for the pipeline of what is there."""
    make_llama(tmp_path)
    given = Options(**options)  # type: ignore[arg-type]
    info = _model_info(given, describe_model(tmp_path, given), "float32")
    assert (info.model_id, info.served_name) == (name, served)
    assert info.pipeline_tag == "text-generation"
    assert info.sha is None


def test_where_the_model_comes_from() -> None:
    found = _source(Options(model_id="org/model", revision="r", huggingface_hub_cache=Path("/cache")))
    assert found == Source("org/model", "r", Path("/cache"))
    assert _source(Options(model_id="org/model", weights_cache_override=Path("/w"))) == Source("/w")
    assert _source(Options(model_id="a", load_format="dummy")) == Source("a", load_format="dummy")


def test_what_no_plugin_offers_is_told_with_what_there_is(tmp_path: Path) -> None:
    make_llama(tmp_path)
    with pytest.raises(OptionError, match="there is no device 'tpu'; there are cpu"):
        describe_model(tmp_path, Options(device="tpu"))
    (tmp_path / "config.json").write_text('{"architectures": ["Other", "Another"]}')
    with pytest.raises(
        ConfigError, match=r"Other is not supported: no adapter offers it .* transformers \S+ has"
    ):
        describe_model(tmp_path, Options())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="none named"):
        describe_model(tmp_path, Options())


def test_it_shows_how_far_each_rank_has_loaded() -> None:
    class Ranks:
        async def load(self, command: object, on_progress: Callable[[list[Progress]], None]) -> list[Loaded]:
            assert command == "load"
            on_progress([Progress(3, 4), Progress(0, 0)])
            shown.append(describe(service.lifecycle).partition(", ")[2])
            on_progress([Progress(3, 4), Progress(2, 4)])
            shown.append(describe(service.lifecycle))
            return loaded(1)

    shown: list[str] = []
    service: Any = SimpleNamespace(lifecycle=Lifecycle())
    given: Any = (Ranks(), "load", service)
    assert trio.run(_load, *given) == loaded(1)
    assert shown[0].endswith("(rank 0: 75 %, rank 1: 0 %)")
    assert shown[1].startswith("loading weights: 62 %")
    assert shown[1].endswith("(rank 0: 75 %, rank 1: 50 %)")


def test_ranks_get_more_time_where_something_is_compiled(
    compiling: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgi.engine.open_executor", lambda *given: given)
    options = Options(num_shard=2, warmup_timeout=300)
    given: Any = open_ranks(compiling, options, {"A": "1"})
    assert given == (2, {"A": "1"}, Patience(lag=60, step=60, compiling=300))
    given = open_ranks(attrs.evolve(compiling, device=CPU), options, {})
    assert given == (2, {}, Patience(lag=60, step=300))
