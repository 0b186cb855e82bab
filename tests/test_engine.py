"""The start of the engine: its ranks, its memory, and what it shows of both."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from tgi.agreement import Patience
from tgi.config import Options
from tgi.engine import (
    MAX_PAUSE,
    STEADY_SECONDS,
    Restarts,
    _source,
    open_ranks,
    save_shapes,
)
from tgi.executor import EngineError
from tgi.hub import Source
from tgi.lifecycle import Lifecycle
from tgi.limits import Limits
from tgi.planning.memory import MemoryBudget, budget_memory
from tgi.planning.setup import read_setup
from tgi.planning.workload import Recording, ShapeCounts
from tgi.plugins import devices, load_plugins
from tgi.progress import describe
from tgi.protocol import Bucket, CacheGroup, Loaded, Progress
from tgi.ranks import local_ranks
from tgi.startup import check_memory, load, model_info
from tgi.testing.models import make_llama

CPU, GAUDI = (devices(load_plugins())[name] for name in ("cpu", "hpu"))
LIMITS = Limits(max_input_tokens=100, max_total_tokens=129, max_batch_size=4, block_size=16)


def test_ranks_get_more_time_where_something_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgi.engine.open_executor", lambda *given: given)
    setup = read_setup(make_llama(tmp_path), Options(num_shard=2, warmup_timeout=300), GAUDI)
    patience = Patience(lag=60, step=60, compiling=300)
    given: Any = open_ranks(setup, {"A": "1"}, local_ranks)
    assert given[:4] == (2, {**GAUDI.environment, "A": "1"}, patience, local_ranks)
    given = open_ranks(attrs.evolve(setup, device=CPU), {}, local_ranks)
    assert given[:4] == (2, CPU.environment, Patience(lag=60, step=300), local_ranks)


def memory(free: int, limits: Limits = LIMITS) -> MemoryBudget:
    """A rank with `free` KiB of which a block takes 1: the longest sequence takes 9, and all together 36."""
    group = CacheGroup(window=None, layers=[0], kv_heads=1, all_kv_heads=1, head_dim=8, token_bytes=64)
    loaded = Loaded(free_bytes=free * 1024 + 1, block_bytes=(1024,), dtype="float32")
    return budget_memory([loaded], [group], limits)


def test_the_division_of_the_memory_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    check_memory(memory(1000))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == str(memory(1000)).splitlines()
    assert messages[0].startswith("KV cache, 37 blocks of 16 tokens ")


def test_too_little_memory_ends_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineError, match="Not enough memory to handle `max_total_tokens=129`") as caught:
        check_memory(memory(9))
    assert caught.value.kind == "memory"
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    assert "more than there is room for" in caplog.text


def test_a_cache_that_cannot_be_as_large_as_told(caplog: pytest.LogCaptureFixture) -> None:
    limits = attrs.evolve(LIMITS, max_batch_total_tokens=320)
    scarce = memory(16, limits)
    check_memory(scarce)
    assert scarce.widest.blocks == 15
    assert "--max-batch-total-tokens 320: there is memory for 240 only" in caplog.text


def test_shapes_are_saved_every_minute_and_at_the_end(tmp_path: Path) -> None:
    shapes = Recording.open(tmp_path / "shapes.json", 128)

    def saved() -> int:
        return len(ShapeCounts.read(tmp_path / "shapes.json", 128).counts)

    async def serve() -> None:
        for rows in (1, 2, 3):
            shapes.counts.add(Bucket(rows, 1, 5))
            with trio.fail_after(1000):
                while saved() < rows:
                    await trio.sleep(20)
        shapes.counts.add(Bucket(4, 1, 5))
        raise KeyError

    async def main() -> None:
        with pytest.raises(ExceptionGroup):
            await save_shapes(shapes, serve)

    trio.run(main, clock=MockClock(autojump_threshold=0.01))
    assert saved() == 4


@pytest.mark.parametrize(
    ("options", "name", "served"),
    [
        ({"model_id": "org/model"}, "org/model", "org/model"),
        ({"model_id": "org/model", "served_model_name": "mine"}, "org/model", "mine"),
        ({}, "tgi-demo", "tgi-demo"),
    ],
)
def test_names_of_the_model(tmp_path: Path, options: dict[str, str], name: str, served: str) -> None:
    """As the operator calls it; TGI asks the Hub for the spelling, and for the pipeline of what is there."""
    make_llama(tmp_path)
    given = Options(**options)  # type: ignore[arg-type]
    info = model_info(read_setup(tmp_path, given, CPU), "float32")
    assert (info.model_id, info.served_name) == (name, served)
    assert info.pipeline_tag == "text-generation"
    assert info.sha is None


@pytest.mark.contract("--revision", "--huggingface-hub-cache", "--weights-cache-override")
def test_source_of_the_model() -> None:
    found = _source(Options(model_id="org/model", revision="r", huggingface_hub_cache=Path("/cache")))
    assert found == Source("org/model", "r", Path("/cache"))
    assert _source(Options(model_id="org/model", weights_cache_override=Path("/w"))) == Source("/w")
    assert _source(Options(model_id="a", load_format="dummy")) == Source("a", load_format="dummy")


async def test_progress_of_each_rank_shows_while_it_loads() -> None:
    loaded = [Loaded(free_bytes=1025, block_bytes=(1024,), dtype="float32")]

    class Ranks:
        async def load(self, command: object, on_progress: Callable[[list[Progress]], None]) -> list[Loaded]:
            assert command == "load"
            on_progress([Progress(3, 4), Progress(0, 0)])
            shown.append(describe(lifecycle).partition(", ")[2])
            on_progress([Progress(3, 4), Progress(2, 4)])
            shown.append(describe(lifecycle))
            return loaded

    shown: list[str] = []
    lifecycle = Lifecycle()
    ranks, command = cast(Any, Ranks()), cast(Any, "load")
    assert await load(ranks, command, lifecycle) == loaded
    assert shown[0].endswith("(rank 0: 75 %, rank 1: 0 %)")
    assert shown[1].startswith("loading weights: 62 %")
    assert shown[1].endswith("(rank 0: 75 %, rank 1: 50 %)")


def test_restarts_are_at_once_unless_ranks_are_lost_again_and_again() -> None:
    steady, soon, never = STEADY_SECONDS, STEADY_SECONDS - 1, 0.0
    restarts = Restarts(2000)
    pauses = [restarts.next_pause(100.0, ready) for ready in (soon, steady, never, soon, never, soon, steady)]
    assert pauses == [0, 0, 1, 2, 4, 8, 0]
    assert restarts.next_pause(4000.0, never) == 0, "an hour later"
    assert max(restarts.next_pause(4000.0, never) or 0 for _ in range(1500)) == MAX_PAUSE


def test_the_budget_of_restarts_is_of_an_hour() -> None:
    restarts = Restarts(2)
    times = (0.0, 10.0, 20.0, 3601.0, 3602.0)
    assert [restarts.next_pause(now, 5.0) is None for now in times] == [False, False, True, False, True]
    assert str(restarts) == "2 of 2 restarts in an hour (--max-restarts)"
    assert Restarts(0).next_pause(0.0, 5.0) is None
