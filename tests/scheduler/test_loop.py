"""The scheduler task: streams, aborts and failures, on a simulated rank and trio's virtual clock."""

from collections import deque

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tgi.config import Limits
from tgi.errors import ApiError, GenerationFailed
from tgi.metrics import Metrics
from tgi.plugins import DeviceSpec
from tgi.protocol import Result, Step
from tgi.scheduler import SamplingParams, Scheduler, Sequence, State, Token
from tgi.testing.simulated_rank import EOS, SimulatedRank, expected_tokens
from tgi.text.stopping import FinishReason, StoppingCriteria

DEVICE = DeviceSpec(
    name="sim", implementation="", block_size=2, batch_size=4, prefill_tokens=8, compiles=False
)
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


def sequence(prompt: list[int], max_new_tokens: int) -> Sequence:
    return Sequence(
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        sampling=SamplingParams(),
        stopping=StoppingCriteria(max_new_tokens, frozenset([EOS]), []),
        detokenizer=Silent(),  # type: ignore[arg-type]
    )


async def read(scheduler: Scheduler, of: Sequence, items: list[Token | ApiError]) -> None:
    with scheduler.generating(of) as events:
        async for item in events:
            items.append(item)


def serve(body) -> tuple[Scheduler, SlowRank]:  # type: ignore[no-untyped-def]
    """Run `body(scheduler, nursery)` beside a scheduler, on a clock that jumps."""
    rank = SlowRank()

    async def main() -> Scheduler:
        scheduler = Scheduler(rank, LIMITS, DEVICE, 90, Metrics())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            await body(scheduler)
            nursery.cancel_scope.cancel()
        return scheduler

    return trio.run(main, clock=MockClock(autojump_threshold=0)), rank


def test_streams_are_complete_whatever_the_company() -> None:
    prompts = [[5, 6, 7], [5, 6], list(range(3, 30)), [9], [5, 6, 7, 8], [4] * 20]
    got: list[list[Token | ApiError]] = [[] for _ in prompts]

    async def body(scheduler: Scheduler) -> None:
        async with trio.open_nursery() as clients:
            for prompt, items in zip(prompts, got, strict=True):
                clients.start_soon(read, scheduler, sequence(prompt, 25), items)
                await trio.sleep(1.3)

    scheduler, _ = serve(body)

    for prompt, items in zip(prompts, got, strict=True):
        tokens = [item for item in items if isinstance(item, Token)]
        assert [token.id for token in tokens] == expected_tokens(prompt, 25)
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
