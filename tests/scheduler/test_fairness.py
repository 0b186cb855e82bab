"""Shares of tenants, and priorities, on the simulated rank and a simulated clock."""

import random

import attrs
import pytest

from tgi.limits import Limits
from tgi.planning.buckets import make_buckets
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import plan
from tgi.scheduler.schedule import Schedule
from tgi.scheduler.sequence import Sequence, State
from tgi.testing.builders import make_allocator, make_device, make_sequence
from tgi.text.stopping import StoppingCriteria

from .simulated_rank import EOS, SimulatedRank, expected_tokens
from .test_schedules import Run

LIMITS = Limits(
    max_total_tokens=512, max_batch_prefill_tokens=64, max_batch_size=8, block_size=4, max_waiting_tokens=20
)
STEP, TOKEN = 10.0, 1.0
"""Simulated duration of a step, and of each of its query tokens, in milliseconds."""


@attrs.define
class Server:
    """A schedule, a rank, and a clock that the rank's steps move."""

    schedule: Schedule
    rank: SimulatedRank
    now: float = 0.0

    @classmethod
    def of(cls, limits: Limits = LIMITS, blocks: int = 1000, *, mixes: bool = True) -> "Server":
        device = make_device(block_size=limits.block_size, mixes_rows=mixes)
        schedule = Schedule(limits, make_buckets(limits, device), make_allocator(limits, blocks, 0))
        return cls(schedule, SimulatedRank(limits.block_size))

    def add(self, tenant: str, prompt: int, new: int, **changed: object) -> Sequence:
        sequence = make_sequence([5] * prompt, new, ends=frozenset([EOS]), tenant=tenant, **changed)
        self.schedule.add(sequence)
        return sequence

    def step(self) -> float:
        """Execute a step, and return how long it took."""
        planned = plan(self.schedule)
        assert planned is not None
        commit(self.schedule, planned, self.rank.execute(planned.step))
        duration = STEP + TOKEN * planned.tokens
        self.now += duration
        return duration


MANY = [pytest.param(range(begin, begin + 200), marks=pytest.mark.slow) for begin in range(0, 10_000, 200)]
LONGEST = STEP + TOKEN * (LIMITS.max_batch_prefill_tokens + LIMITS.max_batch_size)
"""Bound on the duration of a step."""


@pytest.mark.parametrize("mixes", [True, False])
@pytest.mark.parametrize("blocks", [1000, 200], ids=["lanes are scarce", "blocks are scarce"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20, 60])
def test_128_long_requests_delay_anothers_short_one_by_a_step(steps: int, blocks: int, mixes: bool) -> None:
    """Its first token comes with the next step, or, where rows do not mix, with the one after that.

    Once it has had more than the other since it came, the other has a step in between.
    """
    server = Server.of(blocks=blocks, mixes=mixes)
    for _ in range(128):
        server.add("many", 300, 200)
    for _ in range(steps):
        server.step()
    for other in (False, True, True):
        short = server.add("one", 20, 2)
        began = server.now
        while not short.generated:
            server.step()
        assert server.now - began <= LONGEST * (1 + other + (not mixes))
        while short.state is not State.FINISHED:
            server.step()


def test_a_new_tenants_long_prompt_shares_steps_with_anothers() -> None:
    server = Server.of()
    first, second = server.add("a", 500, 1), server.add("b", 500, 1)
    while not (first.generated or second.generated):
        server.step()
        assert abs(first.computed - second.computed) <= LIMITS.max_batch_prefill_tokens


@attrs.define
class TenantsRun(Run):
    """A random schedule in which each sequence has a tenant and a priority."""

    def arrive(self) -> None:
        super().arrive()
        sequence = self.sequences[-1]
        self.schedule.remove(sequence, State.WAITING)
        sequence.tenant = self.rng.choice("abcd")
        sequence.weight = 1.0 + "abcd".index(sequence.tenant)
        sequence.priority = self.rng.choice([0, 0, 0, -1, 3])
        self.schedule.add(sequence)

    def check_order(self) -> None:
        for sequences in (list(self.schedule.waiting), self.schedule.running):
            assert sequences == sorted(sequences, key=Sequence.place)
        for name, tenant in self.schedule.fair.tenants.items():
            assert tenant.running == sum(one.tenant == name for one in self.schedule.running)


@pytest.mark.parametrize("seeds", [range(100), *MANY], ids=str)
def test_with_tenants_everybody_gets_their_own_tokens(seeds: range) -> None:
    """Nobody starves: every schedule ends, however much comes after a sequence."""
    preempted = 0
    for seed in seeds:
        run = TenantsRun.from_seed(seed)
        turns = 0
        while turns < 40 or run.schedule.waiting or run.schedule.running or run.in_flight:
            if turns < 40 and run.rng.random() < 0.5:
                run.arrive()
            if turns < 40 and run.rng.random() < 0.1:
                run.abort_one()
            run.turn()
            turns += 1
            assert turns < 4000, f"seed {seed} starves: {run.schedule.running} {run.schedule.waiting}"
        for one in run.sequences:
            wanted = expected_tokens(one.prompt, one.max_new_tokens, matched=one.matcher is not None)
            generated = one.tokens[len(one.prompt) :]
            assert generated == (wanted if one.state is State.FINISHED else wanted[: len(generated)])
        assert all(pool.available == pool.total for pool in run.schedule.allocator.pools)
        assert not run.schedule.fair.tenants
        preempted += run.schedule.preemptions
    assert preempted > 10


def served(sequence: Sequence) -> int:
    """Tokens that were computed for a sequence, not again after a preemption."""
    return max(sequence.computed, len(sequence.tokens))


@pytest.mark.parametrize("seeds", [range(20), *MANY], ids=str)
def test_shares_are_within_5_percent_of_the_weights(seeds: range) -> None:
    """While every tenant has work; requests differ in length, and end before they have to."""
    limits = attrs.evolve(LIMITS, max_total_tokens=16, max_batch_prefill_tokens=16, block_size=2)
    for seed in seeds:
        rng = random.Random(seed)
        server = Server.of(limits, blocks=rng.choice([24, 100]), mixes=rng.random() < 0.7)
        weights = {name: rng.choice([1.0, 1.0, 2.0, 3.0]) for name in "abc"[: rng.randrange(2, 4)]}
        largest = {name: rng.choice([2, 4, 8]) for name in weights}
        waiting: dict[str, list[Sequence]] = {name: [] for name in weights}
        got = dict.fromkeys(weights, 0)
        while sum(got.values()) < 1000 * sum(weights.values()):
            for name, sequences in waiting.items():
                got[name] += sum(served(one) for one in sequences if one.state is State.FINISHED)
                sequences[:] = [one for one in sequences if one.state is not State.FINISHED]
                while len(sequences) < 2 * limits.max_batch_size:
                    prompt, new = rng.randrange(1, largest[name] + 1), rng.randrange(1, 4)
                    sequences.append(server.add(name, prompt, new, weight=weights[name]))
            server.step()
        for name, weight in weights.items():
            fair = sum(got.values()) * weight / sum(weights.values())
            assert abs(got[name] - fair) <= 0.05 * fair, f"seed {seed}: {got} for {weights}"


def order_of(server: Server, sequences: list[Sequence]) -> list[int]:
    """Indices of sequences in the order in which they end."""
    ended: list[int] = []
    while len(ended) < len(sequences):
        server.step()
        ended += [
            index for index, one in enumerate(sequences) if one.state is State.FINISHED and index not in ended
        ]
    return ended


@pytest.mark.parametrize("tenant", ["", "a"])
def test_a_lower_priority_comes_first(tenant: str) -> None:
    """vLLM: "lower value means earlier handling", and order of arrival among equals."""
    server = Server.of(attrs.evolve(LIMITS, max_batch_size=1))
    server.add(tenant, 4, 4)
    server.step()
    priorities = [0, 5, -1, 0, -1]
    sequences = [server.add(tenant, 4, 2, priority=priority) for priority in priorities]
    assert order_of(server, sequences) == [2, 4, 0, 3, 1]


def test_a_request_that_ends_early_is_charged_for_what_it_had() -> None:
    """Else who leaves `max_tokens` open would wait for those who do not."""
    server = Server.of(attrs.evolve(LIMITS, max_batch_size=1))
    open_end = [server.add("a", 4, 400, stopping=StoppingCriteria(40, frozenset([EOS]))) for _ in range(10)]
    bounded = [server.add("b", 4, 40) for _ in range(10)]
    order = order_of(server, [*open_end, *bounded])
    assert sum(index < 10 for index in order[:10]) in (4, 5, 6)
