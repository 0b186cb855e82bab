"""Metrics of steps, on a simulated rank and trio's virtual clock."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import msgspec
import pytest
import trio

from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.planning.buckets import make_buckets
from tgi.planning.workload import ShapeCounts
from tgi.plugins import DeviceSpec
from tgi.protocol import Bucket, Result, Step
from tgi.scheduler import Scheduler, Sequence
from tgi.testing.builders import generating, make_allocator, make_device, make_sequence

from .simulated_rank import SimulatedRank

DEVICE = make_device(block_size=2)
LIMITS = Limits(
    max_total_tokens=60, max_batch_size=4, max_batch_prefill_tokens=8, block_size=2, max_waiting_tokens=5
)
IMPATIENT = attrs.evolve(LIMITS, waiting_served_ratio=10.0)


class Rank:
    """A rank that takes a second for each step and breaks after `steps` of them."""

    def __init__(self, steps: float = float("inf"), *, flat: bool = False) -> None:
        self.rank = SimulatedRank(2, flat=flat)
        self.left = steps
        self.done = 0
        self.pending: deque[tuple[Step, float]] = deque()
        self.busy_until = 0.0

    async def send(self, step: Step) -> None:
        self.busy_until = max(self.busy_until, trio.current_time()) + 1
        self.pending.append((step, self.busy_until))

    async def receive(self) -> Result:
        step, end = self.pending[0]
        await trio.sleep_until(end)
        self.left -= 1
        self.done += 1
        if self.left < 0:
            raise OSError
        self.pending.popleft()
        return msgspec.structs.replace(self.rank.execute(step), seconds=1.0)


@asynccontextmanager
async def scheduling(
    limits: Limits = LIMITS,
    device: DeviceSpec = DEVICE,
    rank: Rank | None = None,
    shapes: ShapeCounts | None = None,
    blocks: int = 90,
) -> AsyncIterator[tuple[Scheduler, Metrics]]:
    """A scheduler that runs beside the body, and its metrics."""
    metrics, buckets = Metrics(), make_buckets(limits, device)
    count_shape = None if shapes is None else shapes.add
    scheduler = Scheduler(
        rank or Rank(), limits, buckets, make_allocator(limits, blocks), metrics, count_shape=count_shape
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler, metrics
        nursery.cancel_scope.cancel()


async def generate(scheduler: Scheduler, *arrivals: tuple[float, Sequence]) -> None:
    """Generate each sequence from its second on, all to their ends."""

    async def read(when: float, sequence: Sequence) -> None:
        await trio.sleep(when)
        with generating(scheduler, sequence) as events:
            async for _ in events:
                pass

    async with trio.open_nursery() as nursery:
        for arrival in arrivals:
            nursery.start_soon(read, *arrival)


async def observed(*arrivals: tuple[float, Sequence], **options: Any) -> Metrics:
    """Generate sequences, and return the metrics."""
    async with scheduling(**options) as (scheduler, metrics):
        await generate(scheduler, *arrivals)
    return metrics


pytestmark = pytest.mark.autojump


async def test_every_token_but_the_first_comes_after_another() -> None:
    sequences = [make_sequence([5, 6, 7], 25), make_sequence([9], 1), make_sequence([4] * 20, 7)]
    metrics = await observed(*((number * 1.3, one) for number, one in enumerate(sequences)))
    assert metrics.request_time_to_first_token_duration.count() == 3
    assert metrics.request_time_between_tokens_duration.count() == 24 + 6
    for one in sequences:
        assert 0 < one.queued <= one.started <= one.first_token <= one.last_token <= one.finished
        assert one.reason is not None


async def test_preempted_sequences_count_each_token_once() -> None:
    """The cache has blocks for two and a half sequences."""
    limits = attrs.evolve(LIMITS, max_total_tokens=40)
    async with scheduling(limits, blocks=40) as (scheduler, metrics):
        await generate(scheduler, *((0.0, make_sequence([3, token], 30)) for token in range(4, 8)))
        assert scheduler.statistics().preemptions > 0
    assert metrics.request_time_to_first_token_duration.count() == 4
    assert metrics.request_time_between_tokens_duration.count() == 4 * 29


async def test_a_token_after_an_abort_does_not_count() -> None:
    async with scheduling() as (scheduler, metrics):
        with generating(scheduler, make_sequence([5, 6], 50)) as events:
            for _ in range(4):
                await events.receive()
        await trio.sleep(5)
    assert metrics.request_time_between_tokens_duration.count() == 3


async def test_tokens_and_padding() -> None:
    """Buckets of 2, 4 or 8 query tokens, and of 1, 2 or 4 rows."""
    device = attrs.evolve(DEVICE, compiles=True)
    metrics = await observed((0.0, make_sequence([5, 6, 7, 8, 9], 3)), device=device)
    assert metrics.batch_tokens.value(method="prefill") == 5
    assert metrics.batch_padding_tokens.value(method="prefill") == 3
    assert metrics.batch_tokens.value(method="decode") == 2
    assert metrics.batch_padding_tokens.value(method="decode") == 0

    metrics = await observed(*((0.0, make_sequence([5, token], 4)) for token in (3, 4, 5)), device=device)
    assert metrics.batch_tokens.value(method="decode") == 9
    assert metrics.batch_padding_tokens.value(method="decode") == 3


async def test_shapes_are_counted_without_padding() -> None:
    """Blocks have two tokens; those of a prefill are of what was computed before."""
    rank, counts = Rank(), ShapeCounts(2)
    rank.rank.flat = True
    device = attrs.evolve(DEVICE, compiles=True, flat=True)
    alone, other = make_sequence([5, 6, 7, 8, 9], 3), make_sequence([7] * 10, 2)
    await observed((0.0, alone), (20.0, other), device=device, rank=rank, shapes=counts)

    assert counts.counts == {
        Bucket(1, 5, 0, prefill=True): 1,
        Bucket(1, 1, 3): 1,
        Bucket(1, 1, 4): 1,
        Bucket(1, 8, 0, prefill=True): 1,
        Bucket(1, 2, 4, prefill=True): 1,
        Bucket(1, 1, 6): 1,
    }


async def test_blocks_are_counted_where_steps_take_them_as_one_list() -> None:
    """Blocks of 2 tokens; with 5 tokens in the cache and one more, a row of a decode step reads 3 blocks."""
    device = attrs.evolve(DEVICE, compiles=True, flat=True)
    metrics = await observed((0.0, make_sequence([5, 6, 7, 8, 9], 3)), device=device, rank=Rank(flat=True))
    assert metrics.batch_blocks.value(method="prefill") == 0, "no context"
    assert metrics.batch_blocks.value(method="decode") == 3 + 4
    assert metrics.batch_padding_blocks.value(method="decode") >= 0
    prompt = list(range(5, 25))
    long = await observed((0.0, make_sequence(prompt, 1)), device=device, rank=Rank(flat=True))
    # Chunks of 8, 8 and 4 tokens come after 0, 4 and 8 blocks.
    assert long.batch_blocks.value(method="prefill") == 12


async def test_a_device_that_computes_no_padding_has_none() -> None:
    metrics = await observed((0.0, make_sequence([5, 6, 7, 8, 9], 3)))
    assert metrics.batch_tokens.value(method="prefill") == 5
    assert metrics.batch_padding_tokens.value(method="prefill") == 0


@pytest.mark.contract("tgi_batch_concat")
@pytest.mark.parametrize(
    ("limits", "arrivals", "reason"),
    [
        (LIMITS, [(0.0, [5, 6]), (3.5, [7])], "backpressure"),
        (IMPATIENT, [(0.0, [5, 6]), (1.5, [7])], "wait_exceeded"),
        (LIMITS, [(0.0, [4] * 20), (1.2, [7])], "chunking"),
    ],
)
async def test_reason_why_a_request_could_join_others(
    limits: Limits, arrivals: list[tuple[float, list[int]]], reason: str
) -> None:
    metrics = await observed(*((when, make_sequence(prompt, 20)) for when, prompt in arrivals), limits=limits)
    for known in ("backpressure", "wait_exceeded", "chunking"):
        assert metrics.batch_concat.value(reason=known) == (known == reason), known
    assert metrics.batch_concat_duration.count(method="decode") == 1


async def test_requests_without_running_ones_join_none() -> None:
    metrics = await observed(
        (0.0, make_sequence([5], 3)), (10.0, make_sequence([6], 3)), (10.0, make_sequence([7], 3))
    )
    assert metrics.batch_concat.value(reason="backpressure") == 0


async def test_compilations_fallbacks_and_misses_are_counted_and_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Compiling(Rank):
        async def receive(self) -> Result:
            result = await super().receive()
            if self.done == 3:
                statistics = {
                    "graph_compilations": 4, "cpu_fallbacks": 5, "graph_misses": 1, "device_memory_bytes": 6,
                }  # fmt: skip
                return msgspec.structs.replace(result, statistics=statistics)
            return result

    metrics = await observed((0.0, make_sequence([5, 6], 6)), rank=Compiling())
    assert metrics.graph_compilations.value(phase="serving") == 4
    assert metrics.graph_compilations.value(phase="warm-up") == 0
    assert metrics.cpu_fallbacks.value() == 5
    assert metrics.graph_misses.value() == 1
    assert metrics.device_memory_bytes.value(state="used") == 6
    (record,) = caplog.records
    assert record.getMessage() == "4 graphs compiled while serving, for decode of 1 row, 2 blocks"


async def test_faults_of_a_device_are_0_and_not_absent() -> None:
    """An alert on a counter that appears with its first event would miss that."""
    text = (await observed((0.0, make_sequence([5, 6], 2)))).render().decode()
    assert "\ntgi_graph_misses 0\n" in text
    assert "\ntgi_cpu_fallbacks 0\n" in text


@pytest.mark.contract("tgi_batch_inference_failure")
async def test_steps_that_a_lost_rank_leaves_are_failures() -> None:
    with pytest.RaisesGroup(OSError, allow_unwrapped=True, flatten_subgroups=True):
        async with scheduling(rank=Rank(4)) as (scheduler, metrics):
            await generate(scheduler, (0.0, make_sequence([5, 6], 20)))
    assert metrics.batch_inference_success.value(method="prefill") == 1
    assert metrics.batch_inference_success.value(method="decode") == 3
    sent = metrics.batch_inference_count.value(method="decode")
    assert metrics.batch_inference_failure.value(method="decode") == sent - 3 > 0


async def test_a_mixed_step_counts_its_tokens_by_kind() -> None:
    """The second request joins the first one's second decode step."""
    device = attrs.evolve(DEVICE, mixes_rows=True)
    metrics = await observed(
        (0.0, make_sequence([5, 6, 7], 4)), (1.5, make_sequence([8, 9], 1)), device=device
    )
    assert metrics.batch_tokens.value(method="prefill") == 5
    assert metrics.batch_tokens.value(method="decode") == 3
    assert metrics.batch_inference_count.value(method="prefill") == 2
    assert metrics.batch_inference_count.value(method="decode") == 2
    assert metrics.batch_next_size.count() == 2
    assert metrics.batch_padding_tokens.value(method="prefill") == 0
