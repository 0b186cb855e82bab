"""The warm-up on an executor that takes its time, on trio's virtual clock."""

from collections import deque
from itertools import product
from typing import Any

import attrs
import msgspec
import pytest
import trio

from tgi.executor import EngineError
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.planning.buckets import Bucketing, make_buckets
from tgi.plugins import DeviceSpec
from tgi.protocol import SAMPLERS, Bucket, Result, Step, unpack_ints
from tgi.scheduler import Buckets, Scheduler
from tgi.scheduler.warming import MEASURED, warm_up_step
from tgi.testing.builders import make_allocator, make_device

LIMITS = Limits(max_total_tokens=60, max_batch_size=4, max_batch_prefill_tokens=16, block_size=4)
DEVICE = make_device(block_size=4, compiles=True)
FLAT = make_device(block_size=4, compiles=True, flat=True)
pytestmark = pytest.mark.autojump


@attrs.define
class Rank:
    """A rank whose every step takes `seconds` and compiles three graphs; one may hang."""

    seconds: float = 2.0
    hangs_at: int = -1
    steps: list[Step] = attrs.field(factory=list)
    pending: deque[Step] = attrs.field(factory=deque)

    async def send(self, step: Step) -> None:
        self.pending.append(step)

    async def receive(self) -> Result:
        await trio.sleep(1e9 if len(self.steps) == self.hangs_at else self.seconds)
        self.steps.append(self.pending.popleft())
        statistics = {"graph_compilations": 3, "device_memory_bytes": 1000 + len(self.steps)}
        return Result(number=0, tokens=b"", logprobs=b"", statistics=statistics)


async def warmed(
    rank: Rank, device: DeviceSpec = DEVICE, **options: Any
) -> tuple[Metrics, list[tuple[int, int, str]]]:
    """Warm up; return the metrics and the progress that was reported."""
    metrics, progress = Metrics(), []
    scheduler = Scheduler(rank, LIMITS, make_buckets(LIMITS, device), make_allocator(LIMITS, 60), metrics)
    await scheduler.warm_up(lambda *bucket: progress.append(bucket), **options)
    measured = [rank.steps.pop() for _ in range(MEASURED + 1)]
    (bucket,) = {step.bucket for step in measured}
    assert not bucket.prefill
    return metrics, progress


async def test_every_bucket_is_warmed_up_the_largest_first() -> None:
    rank = Rank()
    metrics, progress = await warmed(rank)
    buckets = [step.bucket for step in rank.steps if not step.least_sampler]
    shapes = [(b.prefill, b.rows, b.tokens, b.blocks) for b in buckets]
    assert len(set(shapes)) == len(shapes) > 10
    for prefill in (True, False):
        sizes = [rows * tokens * max(blocks, 1) for kind, rows, tokens, blocks in shapes if kind is prefill]
        assert sizes[0] == max(sizes)
    assert [entry[:2] for entry in progress] == [(done, len(shapes)) for done in range(len(shapes))]
    assert progress[-1][2].startswith("decode of 1 row, ")
    steps = len(rank.steps) + MEASURED + 1
    assert metrics.graph_compilations.value(phase="warm-up") == 3 * steps
    assert metrics.graph_compilations.value(phase="serving") == 0
    assert metrics.device_memory_bytes.value(state="used") == 1000 + steps


async def test_the_speed_is_that_of_steps_which_are_warm() -> None:
    """A new shape takes a minute, and a step of it afterwards a second."""
    seen = set()

    class Cold(Rank):
        async def receive(self) -> Result:
            shape = (self.pending[0].bucket, self.pending[0].least_sampler)
            result = await super().receive()
            seconds = 1.0 if shape in seen else 60.0
            seen.add(shape)
            return msgspec.structs.replace(result, seconds=seconds)

    for compiles in (True, False):
        device = attrs.evolve(DEVICE, compiles=compiles)
        buckets, metrics = make_buckets(LIMITS, device), Metrics()
        scheduler = Scheduler(Cold(), LIMITS, buckets, make_allocator(LIMITS, 60), metrics)
        await scheduler.warm_up(lambda *_: None)
        assert scheduler.schedule.costs.seconds(1) == 1


async def test_the_samplers_programs_are_warmed_up_once_for_each_number_of_rows() -> None:
    rank = Rank()
    await warmed(rank)
    every_rows = {step.bucket.rows for step in rank.steps}
    warmed_up = [(step.bucket.rows, step.least_sampler) for step in rank.steps if step.least_sampler]
    assert sorted(warmed_up) == sorted(product(every_rows, range(1, len(SAMPLERS))))


async def test_a_bucket_that_takes_too_long_is_named() -> None:
    rank = Rank(hangs_at=6)
    with pytest.raises(
        EngineError, match=r"prefill of \d+ x \d+ tokens, .* bucket 3 of \d+, .* 10 s\."
    ) as caught:
        await warmed(rank, timeout=10.0)
    assert "--warmup-timeout" in str(caught.value)
    assert len(rank.steps) == 6


async def test_a_bucket_may_take_as_long_as_the_timeout() -> None:
    assert await warmed(Rank(seconds=9.9), timeout=10.0)


async def test_a_skipped_warm_up_still_runs_the_largest_steps() -> None:
    """By the largest step of each kind."""
    all_steps, few = Rank(), Rank()
    await warmed(all_steps)
    await warmed(few, skip=True)
    assert [step.bucket.prefill for step in few.steps] == [True] * 3 + [False] * 3
    for step in few.steps:
        alike = [s.bucket for s in all_steps.steps if s.bucket.prefill == step.bucket.prefill]
        assert step.bucket.rows * step.bucket.tokens == max(b.rows * b.tokens for b in alike)


async def test_a_device_that_does_not_compile_is_warmed_up_by_its_largest_steps() -> None:
    rank = Rank()
    await warmed(rank, attrs.evolve(DEVICE, compiles=False))
    assert len(rank.steps) == 2


@pytest.mark.parametrize(("budget", "graphs"), [(44.0, 20), (60.0, 28), (47.9, 21)])
async def test_a_budget_bounds_the_number_of_buckets(budget: float, graphs: int) -> None:
    """Each takes two seconds; the first two, the largest of their kinds, show it.

    The sampler's further programs, which these two share, take four.
    """
    asked = []

    def fewer(count: int) -> Buckets:
        asked.append(count)
        return make_buckets(LIMITS, FLAT, Bucketing(max_graphs=count))

    rank = Rank()
    await warmed(rank, FLAT, budget=budget, fewer=fewer)
    assert asked == [graphs]
    buckets = [step for step in rank.steps if not step.least_sampler]
    assert 2 * len(buckets) <= budget - 4 + 2 * 2, "the largest may be others than before"


async def test_a_budget_that_is_enough_changes_nothing() -> None:
    everything, rank = Rank(), Rank()
    await warmed(everything, FLAT)
    await warmed(rank, FLAT, budget=1000.0, fewer=lambda _: pytest.fail("it is enough"))
    assert rank.steps == everything.steps


async def test_steps_are_padded_to_the_buckets_that_remain() -> None:
    few = make_buckets(LIMITS, FLAT, Bucketing(max_graphs=20))

    buckets = make_buckets(LIMITS, FLAT)
    scheduler = Scheduler(Rank(), LIMITS, buckets, make_allocator(LIMITS, 60), Metrics())
    await scheduler.warm_up(lambda *_: None, budget=50.0, fewer=lambda _: few)
    assert scheduler._schedule.buckets is few


async def test_a_warm_up_step_has_no_more_rows_than_there_are_blocks_for() -> None:
    step = warm_up_step(Bucket(rows=8, tokens=1, blocks=3))
    assert (step.bucket.rows, step.bucket.blocks) == (8, 3)
    assert len(unpack_ints(step.lanes)) == len(unpack_ints(step.starts)) == len(unpack_ints(step.draws)) == 3
