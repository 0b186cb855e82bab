"""What ranks are told and the service shows while the engine starts."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from tgi.agreement import Patience
from tgi.config import Options
from tgi.engine import _load, _model_info, _source, load_command, open_ranks, save_shapes
from tgi.hub import Source
from tgi.lifecycle import Lifecycle
from tgi.limits import Limits
from tgi.planning.bucketing import attention_workspace
from tgi.planning.buckets import choose_buckets
from tgi.planning.model import Model, describe_model
from tgi.planning.workload import ShapeCounts
from tgi.plugins import devices, load_plugins
from tgi.progress import describe
from tgi.protocol import Bucket, Loaded, Progress
from tgi.scheduler import Buckets
from tgi.testing.models import make_llama

CPU, GAUDI = (devices(load_plugins())[name] for name in ("cpu", "hpu"))
LIMITS = Limits(max_input_tokens=100, max_total_tokens=129, max_batch_size=4, block_size=16)
CARD_LIMITS = Limits(max_total_tokens=1024, max_batch_size=8, max_batch_prefill_tokens=1024, block_size=128)


@pytest.fixture
def compiling(tmp_path: Path) -> Model:
    """A model on a card that is not there."""
    model = describe_model(make_llama(tmp_path / "model"), Options())
    return attrs.evolve(model, device=GAUDI)


def test_ranks_are_told_how_large_steps_will_be(compiling: Model) -> None:
    options = Options(dtype="bfloat16", watermark_delta=3.0)
    buckets = choose_buckets(compiling, CARD_LIMITS, options)
    attention = attention_workspace(CARD_LIMITS, buckets)
    command = load_command(compiling, CARD_LIMITS, attention, options)
    made_up = attrs.evolve(options, load_format="dummy")
    assert load_command(compiling, CARD_LIMITS, attention, made_up).dummy
    assert not command.dummy
    assert command.gathered_blocks >= 8 * 8
    # A chunk of 1024 tokens has no context; one of 512 has 512 before it.
    assert command.prefill_pairs >= 1024 * 1024
    assert command.prefill_tokens >= max(bucket.rows * bucket.tokens for bucket in buckets)
    assert command.top >= 20
    assert (command.dtype, command.lanes, command.watermark_delta) == ("bfloat16", 8, 3.0)
    model = attrs.evolve(compiling, device=CPU)
    command = load_command(model, LIMITS, attention_workspace(LIMITS, Buckets(LIMITS)), options)
    assert (command.gathered_blocks, command.prefill_pairs) == (0, 0)


def test_ranks_get_more_time_where_something_is_compiled(
    compiling: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tgi.engine.open_executor", lambda *given: given)
    options = Options(num_shard=2, warmup_timeout=300)
    given: Any = open_ranks(compiling, options, {"A": "1"})
    assert given == (2, {"A": "1"}, Patience(lag=60, step=60, compiling=300))
    given = open_ranks(attrs.evolve(compiling, device=CPU), options, {})
    assert given == (2, {}, Patience(lag=60, step=300))


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


@pytest.mark.parametrize(
    ("options", "name", "served"),
    [
        ({"model_id": "org/model"}, "org/model", "org/model"),
        ({"model_id": "org/model", "served_model_name": "mine"}, "org/model", "mine"),
        ({}, "tgi-demo", "tgi-demo"),
    ],
)
def test_what_it_is_called(tmp_path: Path, options: dict[str, str], name: str, served: str) -> None:
    """As the operator calls it; TGI asks the Hub for the spelling, and for the pipeline of what is there."""
    make_llama(tmp_path)
    given = Options(**options)  # type: ignore[arg-type]
    info = _model_info(given, describe_model(tmp_path, given), "float32")
    assert (info.model_id, info.served_name) == (name, served)
    assert info.pipeline_tag == "text-generation"
    assert info.sha is None


@pytest.mark.contract("--revision", "--huggingface-hub-cache", "--weights-cache-override")
def test_where_the_model_comes_from() -> None:
    found = _source(Options(model_id="org/model", revision="r", huggingface_hub_cache=Path("/cache")))
    assert found == Source("org/model", "r", Path("/cache"))
    assert _source(Options(model_id="org/model", weights_cache_override=Path("/w"))) == Source("/w")
    assert _source(Options(model_id="a", load_format="dummy")) == Source("a", load_format="dummy")


def test_it_shows_how_far_each_rank_has_loaded() -> None:
    loaded = [Loaded(free_bytes=1025, block_bytes=1024, dtype="float32")]

    class Ranks:
        async def load(self, command: object, on_progress: Callable[[list[Progress]], None]) -> list[Loaded]:
            assert command == "load"
            on_progress([Progress(3, 4), Progress(0, 0)])
            shown.append(describe(service.lifecycle).partition(", ")[2])
            on_progress([Progress(3, 4), Progress(2, 4)])
            shown.append(describe(service.lifecycle))
            return loaded

    shown: list[str] = []
    service: Any = SimpleNamespace(lifecycle=Lifecycle())
    given: Any = (Ranks(), "load", service)
    assert trio.run(_load, *given) == loaded
    assert shown[0].endswith("(rank 0: 75 %, rank 1: 0 %)")
    assert shown[1].startswith("loading weights: 62 %")
    assert shown[1].endswith("(rank 0: 75 %, rank 1: 50 %)")
