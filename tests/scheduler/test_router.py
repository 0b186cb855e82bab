"""Replicas used as one: which of them a request goes to."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi.errors import ApiError, GenerationFailed
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.planning.buckets import make_buckets
from tgi.scheduler import Buckets, Router, Scheduler
from tgi.scheduler.blocks import Prefixes
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import plan
from tgi.scheduler.router import DECODING_TOKENS, _burden, route
from tgi.scheduler.schedule import Schedule
from tgi.testing.builders import make_allocator, make_device, make_sequence
from tgi.testing.fake_executor import FakeExecutor, counting

LIMITS = Limits(max_total_tokens=512, max_batch_prefill_tokens=64, max_batch_size=8, block_size=4)
PROMPT = list(range(5, 105))


def make_schedules(
    count: int, blocks: int = 400, windows: tuple[int | None, ...] = (None,)
) -> list[Schedule]:
    device = make_device(block_size=LIMITS.block_size, mixes_rows=True)
    buckets, prefixes = make_buckets(LIMITS, device), Prefixes()
    return [
        Schedule(LIMITS, buckets, make_allocator(LIMITS, blocks, windows=windows, prefixes=prefixes))
        for _ in range(count)
    ]


def run(schedule: Schedule, steps: int = 1000, rank: FakeExecutor | None = None) -> None:
    """Run until nothing is left to do, or for some steps; every token is 5."""
    rank = rank or FakeExecutor(lambda _params, _draw: 5)
    while steps and (planned := plan(schedule)) is not None:
        commit(schedule, planned, rank.execute(planned.step))
        steps -= 1


def test_a_request_goes_where_its_prefix_is() -> None:
    schedules = make_schedules(3)
    schedules[1].add(make_sequence(PROMPT, 1))
    run(schedules[1])
    assert route(make_sequence([*PROMPT, 7], 5), schedules) == 1
    assert route(make_sequence(PROMPT[::-1], 5), schedules) == 0, "another prefix: most unused blocks"


@pytest.mark.parametrize(("running", "expected"), [(0, 0), (2, 0), (4, 1)])
def test_a_prefix_is_worth_as_much_as_its_tokens(running: int, expected: int) -> None:
    """400 tokens of the prompt, of which 99 blocks can be shared, and 128 tokens for each that decodes."""
    schedules, prompt = make_schedules(2), PROMPT * 4
    schedules[0].add(make_sequence(prompt, 1))
    run(schedules[0])
    for token in range(running):
        schedules[0].add(make_sequence([token, 5], 500))
    run(schedules[0], 3)
    assert len(schedules[0].running) == running
    assert 2 * DECODING_TOKENS < 396 < 4 * DECODING_TOKENS
    assert route(make_sequence(prompt, 5), schedules) == expected


def test_prompts_that_wait_count_with_their_tokens() -> None:
    schedules = make_schedules(2)
    schedules[0].add(make_sequence([9] * 200, 5))
    for _ in range(2):
        schedules[1].add(make_sequence([8], 5))
    assert route(make_sequence([7], 5), schedules) == 1


def test_a_replica_without_room_is_left_alone() -> None:
    schedules = make_schedules(2, blocks=130)
    schedules[0].add(make_sequence([9] * 480, 5))
    run(schedules[0], 10)
    schedules[1].add(make_sequence([8], 500))
    schedules[1].add(make_sequence([7], 500))
    run(schedules[1], 3)
    assert route(make_sequence([6] * 200, 5), schedules) == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), window=st.sampled_from([None, 9, 20]))
def test_what_is_said_to_be_cached_is_found_by_admission(seed: int, window: int | None) -> None:
    """Asking changes nothing: the same blocks are cached, in the same order of reuse."""
    draw = random.Random(seed)
    windows = (None, window) if window else (None,)
    (schedule,) = make_schedules(1, draw.choice([150, 300]), windows)
    for _ in range(draw.randrange(1, 12)):
        sequence = make_sequence(
            [*PROMPT[: draw.randrange(1, 100)], draw.randrange(5)], draw.randrange(1, 30)
        )
        order = [list(pool._cached) for pool in schedule.allocator.pools]
        cached = schedule.allocator.cached_tokens(sequence)
        assert [list(pool._cached) for pool in schedule.allocator.pools] == order
        schedule.add(sequence)
        run(schedule)
        assert sequence.cached == cached


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), windows=st.sampled_from([(None,), (None, 9), (20,), (9, 20)]))
def test_routing_finds_what_asking_every_replica_finds(seed: int, windows: tuple[int | None, ...]) -> None:
    """With caches that overflow, and replicas that lose theirs."""
    draw = random.Random(seed)
    schedules = make_schedules(5, 150, windows)
    ranks = [FakeExecutor(lambda _params, _draw: 5) for _ in schedules]
    for _ in range(draw.randrange(1, 40)):
        start = draw.choice([0, 0, 40])
        prompt = PROMPT[start : start + draw.randrange(1, 60)] + [draw.randrange(5)] * draw.randrange(1, 40)
        sequence = make_sequence(prompt, draw.randrange(1, 30))
        tokens = [len(prompt) - one.allocator.cached_tokens(sequence) for one in schedules]
        burdens = [_burden(one, count) for one, count in zip(schedules, tokens, strict=True)]
        chosen = route(sequence, schedules)
        assert chosen == burdens.index(min(burdens))
        assert sequence.cached == len(prompt) - tokens[chosen]
        schedules[chosen].add(sequence)
        one = draw.randrange(5)
        run(schedules[one], draw.randrange(20), ranks[one])
        if draw.random() < 0.05:
            schedules[draw.randrange(5)].restart([])


@asynccontextmanager
async def replicas(count: int) -> AsyncIterator[tuple[Router, list[FakeExecutor]]]:
    """Replicas that compute, with their ranks."""
    ranks, prefixes = [FakeExecutor(counting(290), 1.0) for _ in range(count)], Prefixes()
    allocators = [make_allocator(LIMITS, 200, prefixes=prefixes) for _ in ranks]
    schedulers = [
        Scheduler(rank, LIMITS, Buckets(LIMITS), allocator, Metrics())
        for rank, allocator in zip(ranks, allocators, strict=True)
    ]
    async with trio.open_nursery() as nursery:
        for scheduler in schedulers:
            nursery.start_soon(scheduler.run)
        yield Router(*schedulers), ranks
        nursery.cancel_scope.cancel()


@attrs.define
class Client:
    tokens: int = 0
    errors: list[ApiError] = attrs.field(factory=list)

    async def generate(self, router: Router, prompt: list[int], count: int = 1) -> None:
        with router.generating([make_sequence(prompt, 5) for _ in range(count)]) as receive:
            async for _, item in receive:
                if isinstance(item, ApiError):
                    self.errors.append(item)
                else:
                    self.tokens += 1


@pytest.mark.autojump
async def test_sequences_of_a_call_stay_together() -> None:
    async with replicas(3) as (router, ranks):
        client = Client()
        await client.generate(router, PROMPT, count=4)
        assert client.tokens == 20
        assert sorted(rank.steps > 0 for rank in ranks) == [False, False, True]


@pytest.mark.autojump
async def test_calls_are_spread_and_sums_are_of_all() -> None:
    async with replicas(3) as (router, ranks), trio.open_nursery() as nursery:
        for token in range(6):
            nursery.start_soon(Client().generate, router, [token] * 50)
        await trio.sleep(1.5)
        assert all(one.scheduler.statistics().running for one in router.replicas)
        assert router.statistics().running + router.statistics().waiting == 6
        assert router.statistics().blocks.total == 600
        await trio.sleep(20)
        assert router.statistics().running == router.statistics().blocks.used == 0
        assert all(rank.steps for rank in ranks)


@pytest.mark.autojump
async def test_a_replica_without_ranks_gets_nothing_while_another_serves() -> None:
    async with replicas(2) as (router, ranks):
        router.replicas[0].serving = False
        for token in range(4):
            await Client().generate(router, [token] * 9)
        assert ranks[0].steps == 0
        router.replicas[1].serving, router.replicas[1].lost = False, True
        await Client().generate(router, PROMPT)
        assert ranks[0].steps > 0, "it waits for the one that comes back"


@pytest.mark.autojump
async def test_an_error_for_everybody_reaches_all_replicas() -> None:
    clients = [Client() for _ in range(4)]
    async with replicas(2) as (router, _), trio.open_nursery() as nursery:
        for token, client in enumerate(clients):
            nursery.start_soon(client.generate, router, [token] * 50)
        await trio.sleep(1.5)
        router.fail_all(GenerationFailed("no more"))
    assert [len(client.errors) for client in clients] == [1] * 4


@pytest.mark.autojump
async def test_a_step_that_hangs_on_one_replica_does_not_count_while_another_advances() -> None:
    async with replicas(2) as (router, ranks), trio.open_nursery() as nursery:
        ranks[0].step_seconds = 1000
        nursery.start_soon(Client().generate, router, PROMPT)
        await trio.sleep(50)
        assert router.replicas[0].scheduler.waited_seconds() > 40
        assert router.waited_seconds() == 0
        nursery.cancel_scope.cancel()
