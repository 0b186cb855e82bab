"""What the metrics say of steps, on a simulated rank and trio's virtual clock."""

from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import msgspec
import pytest
import trio
from trio.testing import MockClock

from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.planning.buckets import make_buckets
from tgi.planning.workload import ShapeCounts
from tgi.plugins import DeviceSpec
from tgi.protocol import Bucket, Result, Step
from tgi.sampling import SamplingParams
from tgi.scheduler import Buckets, Scheduler, Sequence
from tgi.testing.builders import make_allocator
from tgi.testing.simulated_rank import SimulatedRank
from tgi.text.stopping import StoppingCriteria

DEVICE = DeviceSpec(
    name="sim", implementation="", block_size=2, batch_size=4, prefill_tokens=8, compiles=False
)
LIMITS = Limits(
    max_total_tokens=60, max_batch_size=4, max_batch_prefill_tokens=8, block_size=2, max_waiting_tokens=5
)
IMPATIENT = attrs.evolve(LIMITS, waiting_served_ratio=10.0)


class Silent:
    def append(self, _token: int) -> str:
        return ""


class Rank:
    """One second for each step, until it breaks after `steps` of them."""

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
        return timed(self.rank.execute(step))


def timed(result: Result) -> Result:
    """The same, with the time that it took."""
    return Result(number=result.number, tokens=result.tokens, logprobs=result.logprobs, seconds=1.0)


def sequence(prompt: list[int], max_new_tokens: int) -> Sequence:
    return Sequence(
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        sampling=SamplingParams(),
        stopping=StoppingCriteria(max_new_tokens, frozenset(), []),
        detokenizer=Silent(),  # type: ignore[arg-type]
    )


def observed(
    body: Callable[[Scheduler], Awaitable[None]],
    limits: Limits = LIMITS,
    device: DeviceSpec = DEVICE,
    rank: Rank | None = None,
    shapes: ShapeCounts | None = None,
) -> Metrics:
    """The metrics when `body` has run beside a scheduler, on a clock that jumps."""
    metrics = Metrics()

    async def main() -> None:
        scheduler = Scheduler(
            rank or Rank(),
            limits,
            make_buckets(limits, device),
            make_allocator(limits, 90),
            metrics,
            count_shape=shapes and shapes.add,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            await body(scheduler)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    return metrics


def generating(*arrivals: tuple[float, Sequence]) -> Callable[[Scheduler], Awaitable[None]]:
    """All of these to their ends, each from its second on."""

    async def read(scheduler: Scheduler, when: float, of: Sequence) -> None:
        await trio.sleep(when)
        with scheduler.generating(of) as events:
            async for _ in events:
                pass

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as nursery:
            for when, of in arrivals:
                nursery.start_soon(read, scheduler, when, of)

    return body


def test_every_token_but_the_first_comes_after_another() -> None:
    sequences = [sequence([5, 6, 7], 25), sequence([9], 1), sequence([4] * 20, 7)]
    metrics = observed(generating(*((number * 1.3, one) for number, one in enumerate(sequences))))
    assert metrics.request_time_to_first_token_duration.count() == 3
    assert metrics.request_time_between_tokens_duration.count() == 24 + 6
    for one in sequences:
        assert 0 < one.queued <= one.started <= one.first_token <= one.last_token <= one.finished
        assert one.reason is not None


def test_preempted_sequences_count_each_token_once() -> None:
    """With blocks for two and a half of them."""
    limits = attrs.evolve(LIMITS, max_total_tokens=40)
    sequences = [sequence([3, token], 30) for token in range(4, 8)]
    metrics = Metrics()

    async def main() -> None:
        scheduler = Scheduler(Rank(), limits, Buckets(limits), make_allocator(limits, 40), metrics)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            await generating(*((0.0, one) for one in sequences))(scheduler)
            assert scheduler.statistics().preemptions > 0
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert metrics.request_time_to_first_token_duration.count() == 4
    assert metrics.request_time_between_tokens_duration.count() == 4 * 29


def test_a_token_that_comes_too_late_is_none() -> None:
    async def body(scheduler: Scheduler) -> None:
        with scheduler.generating(sequence([5, 6], 50)) as events:
            for _ in range(4):
                await events.receive()
        await trio.sleep(5)

    assert observed(body).request_time_between_tokens_duration.count() == 3


def test_tokens_and_padding() -> None:
    """Buckets of 2, 4 or 8 query tokens, and of 1, 2 or 4 rows."""
    device = attrs.evolve(DEVICE, compiles=True)
    metrics = observed(generating((0.0, sequence([5, 6, 7, 8, 9], 3))), device=device)
    assert metrics.batch_tokens.value(method="prefill") == 5
    assert metrics.batch_padding_tokens.value(method="prefill") == 3
    assert metrics.batch_tokens.value(method="decode") == 2
    assert metrics.batch_padding_tokens.value(method="decode") == 0

    metrics = observed(generating(*((0.0, sequence([5, token], 4)) for token in (3, 4, 5))), device=device)
    assert metrics.batch_tokens.value(method="decode") == 9
    assert metrics.batch_padding_tokens.value(method="decode") == 3


def test_shapes_are_counted_as_they_are_without_padding() -> None:
    """Blocks have two tokens; those of a prefill are of what was computed before."""
    rank, counts = Rank(), ShapeCounts(2)
    rank.rank.flat = True
    device = attrs.evolve(DEVICE, compiles=True, flat=True)
    alone, other = sequence([5, 6, 7, 8, 9], 3), sequence([7] * 10, 2)
    observed(generating((0.0, alone), (20.0, other)), device=device, rank=rank, shapes=counts)

    assert counts.counts == {
        Bucket(1, 5, 0, prefill=True): 1,
        Bucket(1, 1, 3): 1,
        Bucket(1, 1, 4): 1,
        Bucket(1, 8, 0, prefill=True): 1,
        Bucket(1, 2, 4, prefill=True): 1,
        Bucket(1, 1, 6): 1,
    }


def test_blocks_are_counted_where_steps_take_them_as_one_list() -> None:
    """Blocks of 2 tokens; with 5 tokens in the cache and one more, a row of a decode step reads 3 blocks."""
    device = attrs.evolve(DEVICE, compiles=True, flat=True)
    metrics = observed(generating((0.0, sequence([5, 6, 7, 8, 9], 3))), device=device, rank=Rank(flat=True))
    assert metrics.batch_blocks.value(method="prefill") == 0, "no context"
    assert metrics.batch_blocks.value(method="decode") == 3 + 4
    assert metrics.batch_padding_blocks.value(method="decode") >= 0
    prompt = list(range(5, 25))
    long = observed(generating((0.0, sequence(prompt, 1))), device=device, rank=Rank(flat=True))
    # Chunks of 8, 8 and 4 tokens come after 0, 4 and 8 blocks.
    assert long.batch_blocks.value(method="prefill") == 12


def test_a_device_that_computes_no_padding_has_none() -> None:
    metrics = observed(generating((0.0, sequence([5, 6, 7, 8, 9], 3))))
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
def test_why_a_request_could_join_others(
    limits: Limits, arrivals: list[tuple[float, list[int]]], reason: str
) -> None:
    metrics = observed(generating(*((when, sequence(prompt, 20)) for when, prompt in arrivals)), limits)
    for known in ("backpressure", "wait_exceeded", "chunking"):
        assert metrics.batch_concat.value(reason=known) == (known == reason), known
    assert metrics.batch_concat_duration.count(method="decode") == 1


def test_who_finds_nobody_joins_nobody() -> None:
    metrics = observed(
        generating((0.0, sequence([5], 3)), (10.0, sequence([6], 3)), (10.0, sequence([7], 3)))
    )
    assert metrics.batch_concat.value(reason="backpressure") == 0


def test_what_a_device_does_besides_computing_is_counted_and_a_compilation_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Compiling(Rank):
        async def receive(self) -> Result:
            result = await super().receive()
            if self.done == 3:
                return msgspec.structs.replace(
                    result, compilations=4, cpu_fallbacks=5, graph_misses=1, memory_bytes=6
                )
            return result

    metrics = observed(generating((0.0, sequence([5, 6], 6))), rank=Compiling())
    assert metrics.graph_compilations.value(phase="serving") == 4
    assert metrics.graph_compilations.value(phase="warm-up") == 0
    assert metrics.cpu_fallbacks.value() == 5
    assert metrics.graph_misses.value() == 1
    assert metrics.device_memory_bytes.value(state="used") == 6
    (record,) = caplog.records
    assert record.getMessage() == "4 graphs compiled while serving, for decode of 1 rows, 2 blocks"


def test_what_a_device_shall_never_do_shows_as_0() -> None:
    """An alert on a counter that appears with its first event would miss that."""
    text = observed(generating((0.0, sequence([5, 6], 2)))).render().decode()
    assert "\ntgi_graph_misses 0\n" in text
    assert "\ntgi_cpu_fallbacks 0\n" in text


@pytest.mark.contract("tgi_batch_inference_failure")
def test_the_steps_that_a_lost_rank_leaves_are_failures() -> None:
    metrics = Metrics()

    async def main() -> None:
        scheduler = Scheduler(Rank(4), LIMITS, Buckets(LIMITS), make_allocator(LIMITS, 90), metrics)
        with scheduler.generating(sequence([5, 6], 20)):
            await scheduler.run()

    with pytest.RaisesGroup(OSError, allow_unwrapped=True, flatten_subgroups=True):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    assert metrics.batch_inference_success.value(method="prefill") == 1
    assert metrics.batch_inference_success.value(method="decode") == 3
    sent = metrics.batch_inference_count.value(method="decode")
    assert metrics.batch_inference_failure.value(method="decode") == sent - 3 > 0
