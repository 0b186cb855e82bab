"""Sequences go on, with the same tokens, on new ranks; one that ends the ranks twice does not."""

import itertools
import random
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tgi.errors import ApiError, GenerationFailed
from tgi.executor import EngineError
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.protocol import Result, Step, unpack_ints
from tgi.scheduler import Buckets, Scheduler, Sequence, State
from tgi.scheduler.sequence import Matcher
from tgi.testing.builders import make_allocator, make_sequence

from .simulated_rank import EOS, VOCABULARY, SimulatedMatcher, SimulatedRank, expected_tokens

LIMITS = Limits(max_total_tokens=60, max_batch_size=4, max_batch_prefill_tokens=8, block_size=2)
POISON = EOS + VOCABULARY
"""A token that no text has by itself, and that ends a rank that computes it, in some tests."""


@attrs.define(eq=False)
class MortalRank:
    """A simulated rank that is lost at one of its steps, or when it has to compute a token."""

    dies_at: int | None = None
    """Number of steps before the one whose result never comes."""
    poison: int | None = None
    rank: SimulatedRank = attrs.field(factory=lambda: SimulatedRank(2))
    steps: deque[Step] = attrs.field(factory=deque)
    done: int = 0
    together: list[int] = attrs.field(factory=list)
    """Rows of each step."""

    async def send(self, step: Step) -> None:
        self.steps.append(step)
        self.together.append(len(step.lanes) // 4)

    async def receive(self) -> Result:
        await trio.sleep(1)
        step = self.steps.popleft()
        if self.done == self.dies_at or self.poison in unpack_ints(step.tokens).tolist():
            raise EngineError("a rank was killed")
        self.done += 1
        return msgspec.structs.replace(self.rank.execute(step), seconds=1.0)


def make_scheduler(rank: MortalRank, blocks: int = 100) -> Scheduler:
    return Scheduler(rank, LIMITS, Buckets(LIMITS), make_allocator(LIMITS, blocks), Metrics())


@asynccontextmanager
async def running(scheduler: Scheduler, ranks: list[MortalRank]) -> AsyncIterator[None]:
    """Run on the scheduler's own rank, then on `ranks`, each after the loss of the one before."""

    async def run() -> None:
        for rank in [*ranks, None]:
            try:
                await scheduler.run()
            except* EngineError:
                assert rank is not None, "no rank is left"
            scheduler.lose_ranks()
            scheduler.resume(rank)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield
        nursery.cancel_scope.cancel()


def _sequence(prompt: list[int], max_new_tokens: int, matcher: Matcher | None = None) -> Sequence:
    return make_sequence(prompt, max_new_tokens, ends=frozenset([EOS]), matcher=matcher)


def long_sequence(begin: int) -> Sequence:
    """Make a sequence that does not end before its 20th token."""
    for number in itertools.count(begin):
        made = _sequence([5, 6 + number % 30, 6 + number // 30], 20)
        if len(expected(made)) == 20:
            return made
    raise AssertionError


async def generate(scheduler: Scheduler, sequence: Sequence, after: float = 0) -> list[int] | ApiError:
    await trio.sleep(after)
    tokens: list[int] = []
    with scheduler.generating([sequence]) as receive:
        async for _, item in receive:
            if isinstance(item, ApiError):
                return item
            tokens.append(item.id)
    return tokens


async def generate_all(scheduler: Scheduler, sequences: list[Sequence]) -> list[list[int] | ApiError]:
    answers: dict[int, list[int] | ApiError] = {}

    async def one(index: int, sequence: Sequence) -> None:
        answers[index] = await generate(scheduler, sequence, after=index % 3)

    async with trio.open_nursery() as nursery:
        for index, sequence in enumerate(sequences):
            nursery.start_soon(one, index, sequence)
    return [answers[index] for index in range(len(sequences))]


def make_sequences(count: int, seed: int = 0) -> list[Sequence]:
    draw = random.Random(seed)
    return [
        _sequence(
            [draw.randrange(2, POISON) for _ in range(draw.randrange(1, 20))],
            draw.randrange(1, 30),
            matcher=SimulatedMatcher() if draw.random() < 0.3 else None,
        )
        for _ in range(count)
    ]


def expected(sequence: Sequence) -> list[int]:
    return expected_tokens(sequence.prompt, sequence.max_new_tokens, matched=sequence.matcher is not None)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), deaths=st.lists(st.integers(0, 40), max_size=3), scarce=st.booleans())
def test_no_token_is_lost_or_comes_twice(seed: int, deaths: list[int], scarce: bool) -> None:
    trio.run(_lose_ranks, seed, deaths, scarce, clock=MockClock(autojump_threshold=0.001))


async def _lose_ranks(seed: int, deaths: list[int], scarce: bool) -> None:
    sequences = make_sequences(7, seed)
    lives = [MortalRank(dies_at=steps) for steps in deaths] + [MortalRank()]
    scheduler = make_scheduler(lives[0], blocks=32 if scarce else 100)
    wanted = [expected(sequence) for sequence in sequences]
    async with running(scheduler, lives[1:]):
        answers = await generate_all(scheduler, sequences)
    failed = [answer for answer in answers if isinstance(answer, GenerationFailed)]
    assert len(failed) < max(len(deaths), 1), "only one that was computed alone at a second loss may fail"
    for answer, tokens in zip(answers, wanted, strict=True):
        assert isinstance(answer, GenerationFailed) or answer == tokens
    assert scheduler.statistics().blocks.used == 0


@pytest.mark.autojump
async def test_one_loss_fails_nobody() -> None:
    for steps in range(0, 30, 2):
        sequences = make_sequences(6, steps)
        scheduler = make_scheduler(MortalRank(dies_at=steps))
        wanted = [expected(sequence) for sequence in sequences]
        async with running(scheduler, [MortalRank()]):
            assert await generate_all(scheduler, sequences) == wanted


@pytest.mark.autojump
async def test_a_request_that_ends_the_ranks_twice_fails_and_no_other() -> None:
    sequences = make_sequences(6, 5)
    sequences.insert(3, poison := _sequence([5, 6, POISON, 7], 20))
    wanted = [expected(sequence) for sequence in sequences]
    lives = [MortalRank(poison=POISON) for _ in range(3)]
    scheduler = make_scheduler(lives[0])
    async with running(scheduler, lives[1:]):
        answers = await generate_all(scheduler, sequences)
    assert isinstance(answers[3], GenerationFailed)
    assert "lost twice" in str(answers[3])
    assert poison.state is State.ABORTED
    del answers[3], wanted[3]
    assert answers == wanted
    assert not lives[0].steps or lives[2].done, "the third rank served the others"


@pytest.mark.autojump
async def test_suspects_are_computed_alone_until_they_have_got_further() -> None:
    sequences = [long_sequence(0), long_sequence(100)]
    wanted = [expected(sequence) for sequence in sequences]
    after = MortalRank()
    scheduler = make_scheduler(MortalRank(dies_at=6))
    async with running(scheduler, [after]):
        assert await generate_all(scheduler, sequences) == wanted
    alone = after.together.index(2)
    assert 4 <= alone <= 8, "two sequences, each with its prompt and the tokens that were in flight"


@pytest.mark.autojump
async def test_a_suspect_whose_client_leaves_holds_up_nobody() -> None:
    leaves, stays = long_sequence(0), long_sequence(100)
    wanted = expected(stays)
    scheduler = make_scheduler(MortalRank(dies_at=4))
    async with running(scheduler, [MortalRank()]):
        with trio.move_on_after(4.5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(generate, scheduler, leaves)
                await trio.sleep(100)
        assert scope.cancelled_caught
        assert leaves.state is State.ABORTED
        assert await generate(scheduler, stays) == wanted


@pytest.mark.autojump
async def test_a_step_that_takes_too_long_is_a_loss() -> None:
    class Hanging(MortalRank):
        async def receive(self) -> Result:
            if self.done == 3:
                await trio.sleep_forever()
            return await super().receive()

    one = long_sequence(0)
    wanted = expected(one)
    scheduler = make_scheduler(Hanging())
    began = trio.current_time()
    async with running(scheduler, [MortalRank()]):
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await trio.sleep(30)
                assert 25 <= scheduler.waited_seconds() <= 30

            nursery.start_soon(watch)
            assert await generate(scheduler, one) == wanted
        assert scheduler.waited_seconds() == 0
    assert 60 < trio.current_time() - began < 110


@pytest.mark.autojump
async def test_a_server_that_stood_still_does_not_take_its_ranks_for_hanging() -> None:
    """As after its machine has slept: the time of the step is over, and the ranks go on."""

    @attrs.define(eq=False)
    class Sleeping(MortalRank):
        slept: bool = False

        async def receive(self) -> Result:
            if self.done == 3 and not self.slept:
                self.slept = True
                clock = trio.lowlevel.current_clock()
                assert isinstance(clock, MockClock)
                clock.jump(3600)
            return await super().receive()

    one = long_sequence(0)
    wanted = expected(one)
    scheduler = make_scheduler(Sleeping())
    async with running(scheduler, []):
        assert await generate(scheduler, one) == wanted
