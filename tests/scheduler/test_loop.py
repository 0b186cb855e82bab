"""The scheduler task: streams, aborts, failures, grammars, on a simulated rank and trio's virtual clock."""

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import pairwise

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tgi.errors import ApiError, GenerationFailed
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.protocol import Result, Step
from tgi.sampling import SamplingParams
from tgi.scheduler import Buckets, Scheduler, Sequence, State, Token
from tgi.scheduler.sequence import Matcher
from tgi.testing.simulated_rank import EOS, SimulatedMatcher, SimulatedRank, expected_tokens
from tgi.text.grammar import GrammarError
from tgi.text.stopping import FinishReason, StoppingCriteria

LIMITS = Limits(max_total_tokens=60, max_batch_size=4, max_batch_prefill_tokens=8, block_size=2)
SECOND = 1.0


class Silent:
    def append(self, _token: int) -> str:
        return ""


@attrs.define(eq=False)
class SlowRank:
    """A simulated rank whose every step takes one virtual second, one after another."""

    rank: SimulatedRank = attrs.field(factory=lambda: SimulatedRank(2))
    steps: deque[tuple[Step, float]] = attrs.field(factory=deque)
    rows: list[int] = attrs.field(factory=list)
    busy_until: float = 0.0

    async def send(self, step: Step) -> None:
        self.busy_until = max(self.busy_until, trio.current_time()) + SECOND
        self.steps.append((step, self.busy_until))
        self.rows.append(len(step.lanes) // 4)

    async def receive(self) -> Result:
        step, end = self.steps[0]
        await trio.sleep_until(end)
        self.steps.popleft()
        result = self.rank.execute(step)
        return Result(number=result.number, tokens=result.tokens, logprobs=result.logprobs, seconds=SECOND)


class Held(SimulatedMatcher):
    """A matcher whose first mask takes until somebody says `go`."""

    def __init__(self, error: GrammarError | None = None) -> None:
        super().__init__()
        self.entered, self.go, self.left = threading.Event(), threading.Event(), threading.Event()
        self.error = error

    def advance(self, token: int) -> None:
        self.entered.set()
        self.go.wait()
        super().advance(token)
        self.left.set()
        if self.error:
            raise self.error


class Failing(SimulatedMatcher):
    """A matcher that fails at its third token."""

    seen = 0

    def advance(self, token: int) -> None:
        self.seen += 1
        if self.seen == 3:
            raise GrammarError("nothing can follow")
        super().advance(token)


def sequence(prompt: list[int], max_new_tokens: int, matcher: Matcher | None = None) -> Sequence:
    return Sequence(
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        sampling=SamplingParams(),
        stopping=StoppingCriteria(max_new_tokens, frozenset([EOS]), []),
        detokenizer=Silent(),  # type: ignore[arg-type]
        matcher=matcher,
    )


async def read(scheduler: Scheduler, of: Sequence, items: list[Token | ApiError]) -> None:
    with scheduler.generating(of) as events:
        async for item in events:
            items.append(item)


def serve(body) -> tuple[Scheduler, SlowRank]:  # type: ignore[no-untyped-def]
    """Run `body(scheduler, nursery)` beside a scheduler, on a clock that jumps."""
    rank = SlowRank()

    async def main() -> Scheduler:
        scheduler = Scheduler(rank, LIMITS, Buckets(LIMITS), 90, Metrics())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            await body(scheduler)
            nursery.cancel_scope.cancel()
        return scheduler

    return trio.run(main, clock=MockClock(autojump_threshold=0)), rank


def test_streams_are_complete_whatever_the_company() -> None:
    """Every second one has a grammar."""
    prompts = [[5, 6, 7], [5, 6], list(range(3, 30)), [9], [5, 6, 7, 8], [4] * 20]
    got: list[list[Token | ApiError]] = [[] for _ in prompts]

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            for index, (prompt, items) in enumerate(zip(prompts, got, strict=True)):
                matcher = SimulatedMatcher() if index % 2 else None
                clients.start_soon(read, scheduler, sequence(prompt, 25, matcher), items)
                await trio.sleep(1.3)

    scheduler, _ = serve(body)

    for index, (prompt, items) in enumerate(zip(prompts, got, strict=True)):
        tokens = [item for item in items if isinstance(item, Token)]
        assert [token.id for token in tokens] == expected_tokens(prompt, 25, matched=bool(index % 2))
        assert [token.finish for token in tokens[:-1]] == [None] * (len(tokens) - 1)
        assert tokens[-1].finish in (FinishReason.LENGTH, FinishReason.EOS_TOKEN)
    assert scheduler.statistics().blocks.used == 0


def test_leaving_frees_the_row_for_the_next_step() -> None:
    stays, leaves = sequence([7, 8, 9], 30), sequence([30, 31], 50)

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            clients.start_soon(read, scheduler, stays, [])
            with scheduler.generating(leaves) as events:
                for _ in range(4):
                    await events.receive()
            assert leaves.state is State.ABORTED
            assert scheduler.statistics().running == 1
            steps = len(rank_rows)
            await trio.sleep(4 * SECOND)
            assert set(rank_rows[steps + 1 :]) == {1}, "at most the step in flight still has its row"

    rank_rows: list[int] = []

    async def wrapped(scheduler: Scheduler) -> None:
        rank_rows_source = scheduler._executor
        assert isinstance(rank_rows_source, SlowRank)
        rank_rows_source.rows = rank_rows
        await body(scheduler)

    scheduler, _ = serve(wrapped)

    assert scheduler.statistics().blocks.used == 0


def test_who_arrives_during_a_step_is_in_the_next() -> None:
    """The step ahead is planned late, so a newcomer waits for one step and not for two."""

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            clients.start_soon(read, scheduler, sequence([3] * 4, 40), [])
            await trio.sleep(5.5 * SECOND)
            newcomer = sequence([9, 9], 2)
            arrived = trio.current_time()
            with scheduler.generating(newcomer) as events:
                await events.receive()
            # half a step is left of the one that runs, then comes its own
            assert trio.current_time() - arrived == pytest.approx(1.5 * SECOND)
            clients.cancel_scope.cancel()

    serve(body)


def test_the_device_never_waits_for_the_host() -> None:
    """With one step ahead, twenty tokens take twenty-one steps and no time in between."""
    times: list[float] = []

    async def body(scheduler: Scheduler) -> None:
        begin = trio.current_time()
        one = sequence([5, 9, 9], 20)
        with scheduler.generating(one) as events:
            async for _ in events:
                times.append(trio.current_time() - begin)

    serve(body)

    assert times == pytest.approx([SECOND * (n + 1) for n in range(len(times))])


def test_everybody_is_told_when_the_server_gives_up() -> None:
    running: list[Token | ApiError] = []
    error = GenerationFailed("the end")

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            clients.start_soon(read, scheduler, sequence([3, 4], 40), running)
            await wait_all_tasks_blocked()
            await trio.sleep(2.5 * SECOND)
            scheduler.fail_all(error)

    scheduler, _ = serve(body)

    assert running[-1] is error
    assert scheduler.statistics().blocks.used == 0
    assert scheduler.statistics().running == 0


def test_a_slow_matcher_holds_up_nobody_but_its_sequence() -> None:
    matcher = Held()
    times: list[float] = []
    constrained: list[Token | ApiError] = []
    neighbour = sequence([5, 9, 9], 20)

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            clients.start_soon(read, scheduler, sequence([5, 6], 12, matcher), constrained)
            await trio.to_thread.run_sync(matcher.entered.wait)
            with scheduler.generating(neighbour) as events:
                async for _ in events:
                    times.append(trio.current_time())
            assert len(constrained) == 1, "its second token needs a mask"
            matcher.go.set()

    serve(body)

    assert neighbour.tokens[3:] == expected_tokens([5, 9, 9], 20)
    assert [later - sooner for sooner, later in pairwise(times)] == pytest.approx([SECOND] * (len(times) - 1))
    ids = [item.id for item in constrained if isinstance(item, Token)]
    assert ids == expected_tokens([5, 6], 12, matched=True)


@pytest.mark.parametrize("error", [None, GrammarError("nothing can follow")])
def test_leaving_while_a_mask_is_worked_out(error: GrammarError | None) -> None:
    """The lane is free at once; that the matcher is done later, or has failed, nobody minds."""
    matcher = Held(error)

    async def body(scheduler: Scheduler) -> None:
        leaves = sequence([5, 6], 12, matcher)
        with scheduler.generating(leaves) as events:
            await events.receive()
        assert leaves.state is State.ABORTED
        assert scheduler.statistics().blocks.used == 0
        matcher.go.set()
        await trio.to_thread.run_sync(matcher.left.wait)
        items: list[Token | ApiError] = []
        await read(scheduler, sequence([9], 10, SimulatedMatcher()), items)
        ids = [item.id for item in items if isinstance(item, Token)]
        assert ids == expected_tokens([9], 10, matched=True)

    serve(body)


def test_the_scheduler_can_end_while_a_mask_is_worked_out() -> None:
    matcher = Held()

    async def body(scheduler: Scheduler) -> None:
        with scheduler.generating(sequence([5, 6], 12, matcher)) as events:
            await events.receive()
            await trio.to_thread.run_sync(matcher.entered.wait)

    serve(body)

    matcher.go.set()
    assert matcher.left.wait(10)


def test_a_matcher_that_fails_ends_its_sequence_alone() -> None:
    items: list[Token | ApiError] = []
    neighbour = sequence([5, 9, 9], 20)

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            clients.start_soon(read, scheduler, neighbour, [])
            await read(scheduler, sequence([5, 6], 12, Failing()), items)

    scheduler, _ = serve(body)

    assert isinstance(items.pop(), GenerationFailed)
    ids = [item.id for item in items if isinstance(item, Token)]
    assert ids == expected_tokens([5, 6], 12, matched=True)[:3]
    assert neighbour.tokens[3:] == expected_tokens([5, 9, 9], 20)
    assert scheduler.statistics().blocks.used == 0


@attrs.define(eq=False)
class InstantRank(SlowRank):
    """Answers at once, but says that every step has taken a minute."""

    seconds: float = 60.0

    async def receive(self) -> Result:
        await trio.lowlevel.checkpoint()
        result = self.rank.execute(self.steps.popleft()[0])
        return Result(
            number=result.number, tokens=result.tokens, logprobs=result.logprobs, seconds=self.seconds
        )


def serve_in_real_time(rank: InstantRank, body: Callable[[Scheduler], Awaitable[None]]) -> None:
    """With trio's virtual clock, time passes while threads work."""

    async def main() -> None:
        scheduler = Scheduler(rank, LIMITS, Buckets(LIMITS), 90, Metrics())
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(scheduler.run)
                await body(scheduler)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_constrained_sequences_share_their_steps() -> None:
    """Where nobody else has anything to compute, a step waits a moment for the masks that are being made."""
    rank = InstantRank()
    prompts = [[3, 4], [9, 9], [5, 6]]
    lengths = {len(expected_tokens(prompt, 12, matched=True)) for prompt in prompts}
    assert lengths == {12}, "all are alive to the end"

    async def body(scheduler: Scheduler) -> None:
        sequences = [sequence(prompt, 12, SimulatedMatcher()) for prompt in prompts]
        with scheduler.generating_all(sequences) as events:
            async for _ in events:
                pass

    serve_in_real_time(rank, body)

    assert rank.rows == [3] * 12


def test_a_slow_matcher_holds_up_no_other_matcher() -> None:
    slow = Held()
    items: list[Token | ApiError] = []

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            clients.start_soon(read, scheduler, sequence([5, 6], 12, slow), [])
            await trio.to_thread.run_sync(slow.entered.wait)
            await read(scheduler, sequence([9], 10, SimulatedMatcher()), items)
            slow.go.set()

    serve_in_real_time(InstantRank(seconds=0.0), body)

    ids = [item.id for item in items if isinstance(item, Token)]
    assert ids == expected_tokens([9], 10, matched=True)


def test_who_waits_gets_the_lane_of_one_whose_matcher_failed() -> None:
    failed = []

    async def body(scheduler: Scheduler) -> None:
        sequences = [sequence([5, 6], 12, Failing()) for _ in range(2 * LIMITS.max_batch_size)]
        with scheduler.generating_all(sequences) as events:
            async for index, item in events:
                if isinstance(item, GenerationFailed):
                    failed.append(index)

    serve_in_real_time(InstantRank(seconds=0.0), body)

    assert sorted(failed) == list(range(2 * LIMITS.max_batch_size))


def test_several_sequences_in_one_channel() -> None:
    prompts = [[5, 6, 7], [5, 6], [9], [4] * 20, [6]]
    got: list[list[Token]] = [[] for _ in prompts]

    async def body(scheduler: Scheduler) -> None:
        sequences = [sequence(prompt, 25) for prompt in prompts]
        with scheduler.generating_all(sequences) as events:
            async for index, item in events:
                assert isinstance(item, Token)
                got[index].append(item)
        assert all(one.queued for one in sequences)
        with scheduler.generating_all([]) as nothing:
            assert [item async for item in nothing] == []

    serve(body)

    for prompt, tokens in zip(prompts, got, strict=True):
        assert [token.id for token in tokens] == expected_tokens(prompt, 25)
        assert tokens[-1].finish is not None


def test_leaving_several_aborts_those_that_have_not_ended() -> None:
    """Some are running, one has ended, and some wait for a lane."""
    long = [sequence([3, token], 50) for token in range(3, 9)]
    short = sequence([3], 1)

    async def body(scheduler: Scheduler) -> None:
        with scheduler.generating_all([short, *long]) as events:
            async for index, _ in events:
                if index == 2:
                    break
            assert scheduler.statistics().waiting
        assert short.state is State.FINISHED
        assert {one.state for one in long} == {State.ABORTED}
        assert scheduler.statistics().blocks.used == 0
        assert scheduler.statistics().waiting == 0

    serve(body)
