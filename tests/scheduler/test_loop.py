"""The scheduler task: streams, aborts, failures, grammars, on a simulated rank and trio's virtual clock."""

import threading
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import attrs
import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tgi.errors import ApiError, GenerationFailed, Shed
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.protocol import Result, Step
from tgi.scheduler import Buckets, Scheduler, Sequence, State, Token
from tgi.scheduler.sequence import Matcher
from tgi.testing.builders import generating, make_allocator, make_sequence
from tgi.text.grammar import GrammarError
from tgi.text.stopping import FinishReason

from .simulated_rank import EOS, SimulatedMatcher, SimulatedRank, expected_tokens

LIMITS = Limits(max_total_tokens=60, max_batch_size=4, max_batch_prefill_tokens=8, block_size=2)
SECOND = 1.0


@attrs.define(eq=False)
class SlowRank:
    """A simulated rank that takes one virtual second for each step."""

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
        return msgspec.structs.replace(self.rank.execute(step), seconds=SECOND)


class Held(SimulatedMatcher):
    """A matcher that works on its first mask until `go` is set."""

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
    return make_sequence(prompt, max_new_tokens, ends=frozenset([EOS]), matcher=matcher)


async def read(scheduler: Scheduler, sequence: Sequence) -> list[Token | ApiError]:
    """Generate to the end."""
    with generating(scheduler, sequence) as events:
        return [item async for item in events]


def ids(items: list[Token | ApiError]) -> list[int]:
    return [item.id for item in items if isinstance(item, Token)]


@asynccontextmanager
async def scheduling(rank: SlowRank) -> AsyncIterator[Scheduler]:
    """A scheduler that runs beside the body, and has freed every block in the end."""
    scheduler = Scheduler(rank, LIMITS, Buckets(LIMITS), make_allocator(LIMITS, 90), Metrics())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        yield scheduler
        nursery.cancel_scope.cancel()
    assert scheduler.statistics().blocks.used == 0
    assert scheduler.statistics().running == scheduler.statistics().waiting == 0


@pytest.mark.autojump
async def test_streams_are_complete_in_any_company() -> None:
    """Every second sequence has a grammar."""
    prompts = [[5, 6, 7], [5, 6], list(range(3, 30)), [9], [5, 6, 7, 8], [4] * 20]

    async def check(prompt: list[int], matcher: Matcher | None) -> None:
        items = await read(scheduler, sequence(prompt, 25, matcher))
        assert ids(items) == expected_tokens(prompt, 25, matched=matcher is not None)
        *before, last = [item.finish for item in items if isinstance(item, Token)]
        assert set(before) <= {None}
        assert last in (FinishReason.LENGTH, FinishReason.EOS_TOKEN)

    async with scheduling(SlowRank()) as scheduler, trio.open_nursery() as clients:
        for index, prompt in enumerate(prompts):
            clients.start_soon(check, prompt, SimulatedMatcher() if index % 2 else None)
            await trio.sleep(1.3)


@pytest.mark.autojump
async def test_leaving_frees_the_row_for_the_next_step() -> None:
    rank = SlowRank()
    stays, leaves = sequence([7, 8, 9], 30), sequence([30, 31], 50)
    async with scheduling(rank) as scheduler, trio.open_nursery() as clients:
        clients.start_soon(read, scheduler, stays)
        with generating(scheduler, leaves) as events:
            for _ in range(4):
                await events.receive()
        assert leaves.state is State.ABORTED
        assert scheduler.statistics().running == 1
        steps = len(rank.rows)
        await trio.sleep(4 * SECOND)
        assert set(rank.rows[steps + 1 :]) == {1}, "at most the step in flight still has its row"


@pytest.mark.autojump
async def test_a_request_that_arrives_during_a_step_is_in_the_next() -> None:
    """The step ahead is planned late, so a newcomer waits for one step and not for two."""
    async with scheduling(SlowRank()) as scheduler, trio.open_nursery() as clients:
        clients.start_soon(read, scheduler, sequence([3] * 4, 40))
        await trio.sleep(5.5 * SECOND)
        arrived = trio.current_time()
        with generating(scheduler, sequence([9, 9], 2)) as events:
            await events.receive()
        # half a step is left of the running one, then comes its own
        assert trio.current_time() - arrived == pytest.approx(1.5 * SECOND)
        clients.cancel_scope.cancel()


@pytest.mark.autojump
async def test_the_device_never_waits_for_the_host() -> None:
    """With one step ahead, twenty tokens take twenty-one steps and no time in between."""
    times: list[float] = []
    async with scheduling(SlowRank()) as scheduler:
        begin = trio.current_time()
        with generating(scheduler, sequence([5, 9, 9], 20)) as events:
            async for _ in events:
                times.append(trio.current_time() - begin)
    assert times == pytest.approx([SECOND * (n + 1) for n in range(len(times))])


@pytest.mark.autojump
async def test_every_client_is_told_when_the_server_gives_up() -> None:
    items: list[Token | ApiError] = []
    error = GenerationFailed("the end")

    async def client() -> None:
        items.extend(await read(scheduler, sequence([3, 4], 40)))

    async with scheduling(SlowRank()) as scheduler, trio.open_nursery() as clients:
        clients.start_soon(client)
        await wait_all_tasks_blocked()
        await trio.sleep(2.5 * SECOND)
        scheduler.fail_all(error)
    assert items[-1] is error
    assert len(items) == 3


@pytest.mark.autojump
async def test_a_slow_matcher_delays_only_its_own_sequence() -> None:
    matcher = Held()
    times: list[float] = []
    constrained: list[Token | ApiError] = []
    neighbour = sequence([5, 9, 9], 20)

    async def client() -> None:
        with generating(scheduler, sequence([5, 6], 12, matcher)) as events:
            async for item in events:
                constrained.append(item)

    async with scheduling(SlowRank()) as scheduler, trio.open_nursery() as clients:
        clients.start_soon(client)
        await trio.to_thread.run_sync(matcher.entered.wait)
        with generating(scheduler, neighbour) as events:
            async for _ in events:
                times.append(trio.current_time())
        assert len(constrained) == 1, "its second token needs a mask"
        matcher.go.set()

    assert neighbour.tokens[3:] == expected_tokens([5, 9, 9], 20)
    assert [later - sooner for sooner, later in pairwise(times)] == pytest.approx([SECOND] * (len(times) - 1))
    assert ids(constrained) == expected_tokens([5, 6], 12, matched=True)


@pytest.mark.autojump
@pytest.mark.parametrize("error", [None, GrammarError("nothing can follow")])
async def test_leaving_while_a_mask_is_computed(error: GrammarError | None) -> None:
    """The lane is free at once; the matcher's late mask or failure is ignored."""
    matcher, leaves = Held(error), sequence([5, 6], 12)
    leaves.matcher = matcher
    async with scheduling(SlowRank()) as scheduler:
        with generating(scheduler, leaves) as events:
            await events.receive()
        assert leaves.state is State.ABORTED
        assert scheduler.statistics().blocks.used == 0
        matcher.go.set()
        await trio.to_thread.run_sync(matcher.left.wait)
        items = await read(scheduler, sequence([9], 10, SimulatedMatcher()))
    assert ids(items) == expected_tokens([9], 10, matched=True)


@pytest.mark.autojump
async def test_the_scheduler_can_end_while_a_mask_is_computed() -> None:
    matcher = Held()
    async with scheduling(SlowRank()) as scheduler:
        with generating(scheduler, sequence([5, 6], 12, matcher)) as events:
            await events.receive()
            await trio.to_thread.run_sync(matcher.entered.wait)
    matcher.go.set()
    assert matcher.left.wait(10)


@pytest.mark.autojump
async def test_a_failing_matcher_ends_only_its_own_sequence() -> None:
    neighbour = sequence([5, 9, 9], 20)
    async with scheduling(SlowRank()) as scheduler, trio.open_nursery() as clients:
        clients.start_soon(read, scheduler, neighbour)
        items = await read(scheduler, sequence([5, 6], 12, Failing()))
    assert isinstance(items[-1], GenerationFailed)
    assert ids(items) == expected_tokens([5, 6], 12, matched=True)[:3]
    assert neighbour.tokens[3:] == expected_tokens([5, 9, 9], 20)


@attrs.define(eq=False)
class InstantRank(SlowRank):
    """Answers at once, but reports that every step took `seconds`.

    Tests with it run in real time, as trio's virtual clock goes on while threads work.
    """

    seconds: float = 60.0

    async def receive(self) -> Result:
        await trio.lowlevel.checkpoint()
        result = self.rank.execute(self.steps.popleft()[0])
        return msgspec.structs.replace(result, seconds=self.seconds)


@pytest.mark.seconds(30)
async def test_constrained_sequences_share_their_steps() -> None:
    """If no other sequence can be computed, a step waits a moment for the masks that are being made."""
    rank = InstantRank()
    prompts = [[3, 4], [9, 9], [5, 6]]
    lengths = {len(expected_tokens(prompt, 12, matched=True)) for prompt in prompts}
    assert lengths == {12}, "all are alive to the end"
    async with scheduling(rank) as scheduler:
        sequences = [sequence(prompt, 12, SimulatedMatcher()) for prompt in prompts]
        with scheduler.generating(sequences) as events:
            async for _ in events:
                pass
    assert rank.rows == [3] * 12


@pytest.mark.seconds(30)
async def test_a_slow_matcher_delays_no_other_matcher() -> None:
    slow = Held()
    async with scheduling(InstantRank(seconds=0.0)) as scheduler, trio.open_nursery() as clients:
        clients.start_soon(read, scheduler, sequence([5, 6], 12, slow))
        await trio.to_thread.run_sync(slow.entered.wait)
        items = await read(scheduler, sequence([9], 10, SimulatedMatcher()))
        slow.go.set()
    assert ids(items) == expected_tokens([9], 10, matched=True)


@pytest.mark.seconds(30)
async def test_a_waiting_sequence_gets_the_lane_of_one_whose_matcher_failed() -> None:
    failed = []
    async with scheduling(InstantRank(seconds=0.0)) as scheduler:
        sequences = [sequence([5, 6], 12, Failing()) for _ in range(2 * LIMITS.max_batch_size)]
        with scheduler.generating(sequences) as events:
            async for index, item in events:
                if isinstance(item, GenerationFailed):
                    failed.append(index)
    assert sorted(failed) == list(range(2 * LIMITS.max_batch_size))


@pytest.mark.autojump
async def test_several_sequences_in_one_channel() -> None:
    prompts = [[5, 6, 7], [5, 6], [9], [4] * 20, [6]]
    got: list[list[Token]] = [[] for _ in prompts]
    async with scheduling(SlowRank()) as scheduler:
        sequences = [sequence(prompt, 25) for prompt in prompts]
        with scheduler.generating(sequences) as events:
            async for index, item in events:
                assert isinstance(item, Token)
                got[index].append(item)
        assert all(one.queued for one in sequences)
        with scheduler.generating([]) as nothing:
            assert [item async for item in nothing] == []
    for prompt, tokens in zip(prompts, got, strict=True):
        assert [token.id for token in tokens] == expected_tokens(prompt, 25)
        assert tokens[-1].finish is not None


@pytest.mark.autojump
async def test_leaving_several_aborts_those_that_have_not_ended() -> None:
    """Some are running, one has ended, and some wait for a lane."""
    long = [sequence([3, token], 50) for token in range(3, 9)]
    short = sequence([3], 1)
    async with scheduling(SlowRank()) as scheduler:
        with scheduler.generating([short, *long]) as events:
            async for index, _ in events:
                if index == 2:
                    break
            assert scheduler.statistics().waiting
        assert short.state is State.FINISHED
        assert {one.state for one in long} == {State.ABORTED}
        assert scheduler.statistics().blocks.used == 0
        assert scheduler.statistics().waiting == 0


@pytest.mark.autojump
async def test_who_has_waited_for_too_long_is_shed_and_nobody_else() -> None:
    """Four lanes are taken for 20 steps of a second; those that run and who finds a lane are left alone."""
    metrics = Metrics(60, 60)
    scheduler = Scheduler(
        SlowRank(),  # type: ignore[arg-type]
        LIMITS,
        Buckets(LIMITS),
        make_allocator(LIMITS, 200),
        metrics,
        max_queue_seconds=5,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        running = [make_sequence([5 + n], 20) for n in range(4)]
        late = make_sequence([9], 2)
        with scheduler.generating(running), generating(scheduler, late) as events:
            began = trio.current_time()
            error = await events.receive()
            assert isinstance(error, Shed)
            assert "waited for 5 s" in str(error)
            assert 5 <= trio.current_time() - began <= 7
            assert late.state is State.ABORTED
            await trio.sleep(30)
            assert all(one.state is State.FINISHED for one in running)
        nursery.cancel_scope.cancel()


@pytest.mark.autojump
async def test_a_deadline_that_cannot_be_met_is_refused_at_once() -> None:
    """A step of 8 tokens of a prompt takes a second, so that 40 tokens take 5."""
    scheduler = Scheduler(
        SlowRank(),  # type: ignore[arg-type]
        LIMITS,
        Buckets(LIMITS),
        make_allocator(LIMITS, 200, 0),
        Metrics(60, 60),
    )

    async def ask(prompt: int, seconds: float) -> None:
        with scheduler.generating([make_sequence([5] * prompt, 1)], trio.current_time() + seconds) as events:
            async for _ in events:
                pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        await ask(40, 0.1)  # nothing has been measured
        with pytest.raises(Shed, match="x-request-timeout"):
            await ask(40, 4.9)
        await ask(40, 5.1)
        with scheduler.generating([make_sequence([6] * 40, 1)]):
            with pytest.raises(Shed):
                await ask(40, 9.9)
            await ask(40, 10.1)
        nursery.cancel_scope.cancel()
