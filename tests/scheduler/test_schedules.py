"""Ten thousand random schedules with aborts, scarce blocks and slow grammars, against a rank that checks."""

import random
from collections import deque
from functools import cache
from typing import Any

import attrs
import pytest

from tgi.device.costs import Costs
from tgi.limits import Limits
from tgi.planning.buckets import Bucketing, make_buckets
from tgi.protocol import unpack_ints
from tgi.scheduler.allocator import BlockAllocator
from tgi.scheduler.blocks import BlockPool
from tgi.scheduler.buckets import Buckets, StepCosts
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import SPREAD_STEPS, decodable, decoding_room, may_guess, plan
from tgi.scheduler.schedule import PlannedStep, Schedule
from tgi.scheduler.sequence import Sequence, State
from tgi.testing.builders import make_device, make_sequence

from .invariants import check_allocator, dominates
from .simulated_rank import EOS, SimulatedMatcher, SimulatedRank, expected_tokens


@cache
def buckets_of(of: Limits, kind: str) -> Buckets:
    device = make_device(
        block_size=of.block_size,
        compiles=kind not in ("any", "mixed"),
        flat=kind in ("few", "flat"),
        mixes_rows=kind == "mixed",
    )
    graphs = 4 if kind == "few" else None
    bucketing = Bucketing(max_graphs=graphs, costs=COSTS)
    return make_buckets(of, device, bucketing, prefixes=not of.contiguous)


COSTS = Costs(start=1.0, weights=20.0, token=1.0, pair=0.01, mapping=0.01, block=1.0, row=1.0, block_size=4)
KINDS = ("any", "mixed", "mixed", "tables", "few", "few", "flat", "flat")


def more(rng: random.Random, least: int) -> int:
    """Enough blocks for one sequence, or for more."""
    return least + rng.choice([0, 0, 1, least, 4 * least])


@attrs.define
class Oracle:
    """Guesses right more often than not."""

    rng: random.Random
    prompt: list[int]
    expected: list[int]

    def guess(self, tokens: list[int]) -> list[int]:
        begin = len(tokens) - len(self.prompt)
        guessed = self.expected[begin : begin + self.rng.randrange(5)]
        return [token if self.rng.random() < 0.8 else 7 for token in guessed]

    def learn(self, length: int, guessed: int, right: int) -> None:
        assert guessed >= right >= 0
        assert length >= len(self.prompt)


@attrs.define
class Run:
    """One random schedule."""

    rng: random.Random
    schedule: Schedule
    rank: SimulatedRank
    depth: int
    """Steps sent before the first result is read."""
    sequences: list[Sequence] = attrs.field(factory=list)
    oldest: tuple[int, int] = (-1, 0)
    """Number of the oldest sequence that is alive, and for how many turns it has been that."""
    in_flight: deque[PlannedStep] = attrs.field(factory=deque)
    matching: list[tuple[Sequence, int, int]] = attrs.field(factory=list)
    """Sequences whose matchers have yet to see a token, until which turn at the latest."""
    turns: int = 0
    behind: int = 0
    """How often a sequence waited for blocks whose matcher was behind."""
    slid: int = 0
    """How often a sequence ran that had freed blocks of its own."""
    mixed: int = 0
    """Steps that held decode rows and chunks of prompts."""
    divided: int = 0
    """Steps that were sent while other sequences decoded in a step before."""

    @classmethod
    def from_seed(cls, seed: int) -> "Run":
        rng = random.Random(seed)
        block, longest = rng.choice([1, 2, 4]), rng.choice([6, 12, 24])
        limits = Limits(
            max_total_tokens=longest,
            max_batch_prefill_tokens=rng.choice([1, 4, 8, 16]),
            max_batch_size=rng.choice([1, 2, 4]),
            max_waiting_tokens=rng.choice([0, 1, 5]),
            waiting_served_ratio=rng.choice([0.0, 0.3, 1.2]),
            block_size=block,
        )
        windows = rng.choice(
            [[None], [None], [2], [3], [longest // 2], [None, 2], [3, None], [2, longest // 2], [None, 3, 2]]
        )
        limits = attrs.evolve(limits, window=None if None in windows else max(windows))
        kind = rng.choice(KINDS)
        limits = attrs.evolve(limits, contiguous=kind in ("few", "flat") and rng.random() < 0.4)
        pools = [
            BlockPool(more(rng, limits.group_blocks(window)), block, window, lowest=limits.contiguous)
            for window in windows
        ]
        shape = attrs.evolve(limits, max_waiting_tokens=0, waiting_served_ratio=0.0)
        buckets = buckets_of(shape, kind)
        limits = attrs.evolve(limits, speculate=4 if buckets.mixes and rng.random() < 0.5 else 0)
        depth = 0 if limits.contiguous else rng.choice([0, 8, None, None, None])
        allocator = BlockAllocator(limits, pools, depth)
        schedule = Schedule(limits, buckets, allocator)
        if buckets.mixes and rng.random() < 0.7:
            schedule.costs = StepCosts(step=rng.choice([0.5, 3.0, 30.0]), token=1.0)
        rank = SimulatedRank(block, flat=buckets.flat, contiguous=limits.contiguous, windows=windows)
        depth, stages = rng.choice([1, 2, 2, 3]), 1 if limits.contiguous else rng.choice([1, 1, 2, 3])
        schedule.limits = attrs.evolve(limits, stages=stages)
        return cls(rng, schedule, rank, depth=stages + rng.randrange(2) if stages > 1 else depth)

    def arrive(self) -> None:
        longest = self.schedule.limits.max_total_tokens
        # few different tokens and beginnings, so that prefixes are shared
        prompt = ([5] * longest + [self.rng.choice([5, 6]) for _ in range(longest)])[
            (at := self.rng.randrange(longest + 2)) : at + self.rng.randrange(1, longest)
        ]
        new = self.rng.randrange(1, longest - len(prompt) + 1)
        matcher = SimulatedMatcher() if self.rng.random() < 0.5 else None
        sequence = make_sequence(prompt, new, ends=frozenset([EOS]), matcher=matcher)
        if self.schedule.limits.speculate and matcher is None:
            oracle: Any = Oracle(self.rng, prompt, expected_tokens(prompt, new))
            sequence.guesser = oracle
        self.sequences.append(sequence)
        self.schedule.add(sequence)

    def turn(self) -> None:
        while len(self.in_flight) < self.depth:
            if self.in_flight and may_guess(self.schedule) and self.rng.random() < 0.9:
                break
            ready = [(s, s.epoch) for s in self.schedule.running if decodable(self.schedule, s)]
            room = decoding_room(self.schedule)
            if self.schedule.limits.stages > 1:
                ready.sort(key=lambda pair: pair[0].last_step)
            decoding = sum(not s.prefilling for s in self.schedule.running)
            prompts = sum(s.prefill_end - s.computed for s in self.schedule.running if s.prefilling)
            prompts += sum(len(s.tokens) for s in self.schedule.waiting)
            if (planned := plan(self.schedule)) is None:
                break
            self.check_step(planned)
            if self.schedule.buckets.mixes:
                self.check_mixed_step(
                    planned, [s for s, epoch in ready if s.epoch == epoch][:room], decoding, prompts
                )
            self.in_flight.append(planned)
        if self.in_flight:
            planned = self.in_flight.popleft()
            for sequence in commit(self.schedule, planned, self.rank.execute(planned.step)):
                self.matching.append((sequence, sequence.tokens[-1], self.turns + 4))
        self.behind += sum(s.matcher is not None and s.matched < s.generated for s in self.schedule.waiting)
        self.match()
        self.turns += 1
        self.slid += sum(any(t.blocks[: t.freed]) for s in self.schedule.running for t in s.tables)
        self.check_order()
        check_allocator(self.schedule.allocator, self.schedule.running)
        alive = [*self.schedule.waiting, *self.schedule.running]
        assert self.schedule.owed == sum(sequence.owed for sequence in alive)

    def match(self) -> None:
        """Advance some matchers, in any order, even those of sequences that have ended."""
        for entry in self.rng.sample(self.matching, len(self.matching)):
            sequence, token, latest = entry
            if self.turns >= latest or self.rng.random() < 0.3:
                assert sequence.matcher is not None
                sequence.matcher.advance(token)
                sequence.matched += 1
                self.matching.remove(entry)

    def check_order(self) -> None:
        """First come, first served; and whoever is first ends within a time that depends on its length."""
        alive = [s.number for s in self.sequences if s.state in (State.WAITING, State.RUNNING)]
        assert [s.number for s in self.schedule.waiting] == sorted(s.number for s in self.schedule.waiting)
        assert [s.number for s in self.schedule.running] == sorted(s.number for s in self.schedule.running)
        oldest, turns = self.oldest
        now = min(alive, default=-1)
        self.oldest = (now, turns + 1 if now == oldest else 0)
        longest = self.schedule.limits.max_total_tokens
        assert not alive or self.oldest[1] < 20 + 11 * longest, "the oldest sequence starves"

    def check_step(self, planned: PlannedStep) -> None:
        bucket, rows = planned.bucket, planned.rows
        if self.schedule.buckets.padded:
            assert bucket in set(self.schedule.buckets), "a bucket that is not warmed up"
            assert dominates(bucket, planned.shape)
        else:
            assert bucket == planned.shape
        assert len(rows) <= bucket.rows
        assert max(row.length for row in rows) <= bucket.tokens
        assert planned.bucket.prefill == any(row.chunk for row in rows)
        if planned.bucket.prefill and len(rows) > 1 and not self.schedule.buckets.mixes:
            assert sum(row.length for row in rows) <= self.schedule.limits.max_batch_prefill_tokens
            assert all(row.chunk for row in rows), "a device that cannot mix rows"
        flying = {row.sequence for other in self.in_flight for row in other.rows if row.draw >= 0}
        constrained = [row.sequence for row in rows if row.sequence.matcher is not None and row.draw >= 0]
        assert all(s.epoch or s not in flying for s in constrained), "no mask can be known yet"
        if self.schedule.limits.stages > 1:
            assert min(unpack_ints(planned.step.tokens)) >= 0, "a token that the first stage does not know"
            decoding = sum(any(not row.chunk for row in other.rows) for other in (*self.in_flight, planned))
            assert decoding <= self.schedule.limits.stages
            self.divided += decoding > 1

    def check_mixed_step(
        self, planned: PlannedStep, ready: list[Sequence], decoding: int, prompts: int
    ) -> None:
        """Every sequence that can decode does, in a pipeline the share of a stage, and chunks of short
        prompts take no longer than it does."""
        decode = [row.sequence for row in planned.rows if not row.chunk]
        if (stages := self.schedule.limits.stages) > 1:  # some may have made way for others of a tenant
            assert bool(decode) == bool(ready)
            ready, decoding = ready[: len(decode)], -(-decoding // stages)
        assert decode == ready
        assert len(decode) <= decoding
        chunks = sum(row.length for row in planned.rows if row.chunk)
        limits, costs = self.schedule.limits, self.schedule.costs
        assert planned.tokens <= max(limits.max_batch_prefill_tokens, limits.max_batch_size)
        if decoding and costs.step and prompts <= SPREAD_STEPS * costs.doubling_tokens(decoding):
            assert chunks <= max(limits.block_size, costs.doubling_tokens(decoding))
        self.mixed += bool(decode and chunks)

    def abort_one(self) -> None:
        alive = [s for s in self.sequences if s.state in (State.WAITING, State.RUNNING)]
        if alive:
            self.schedule.remove(self.rng.choice(alive), State.ABORTED)


def run_to_end(seed: int) -> Run:
    run = Run.from_seed(seed)
    for _ in range(run.rng.randrange(1, 25)):
        if run.rng.random() < 0.5:
            run.arrive()
        if run.rng.random() < 0.1:
            run.abort_one()
        run.turn()
    turns = 0
    while run.schedule.waiting or run.schedule.running or run.in_flight:
        run.turn()
        turns += 1
        assert turns < 2000, f"starved: {run.schedule.running} {run.schedule.waiting}"
    return run


@pytest.mark.parametrize("thousand", range(10))
def test_random_schedules(thousand: int) -> None:
    """Every sequence gets its own tokens, every step its bucket, and at the end every block is free."""
    finished = preempted = hits = matched = behind = slid = mixed = guessed = divided = 0
    for seed in range(1000 * thousand, 1000 * (thousand + 1)):
        run = run_to_end(seed)
        for sequence in run.sequences:
            generated = sequence.tokens[len(sequence.prompt) :]
            constrained = sequence.matcher is not None
            wanted = expected_tokens(sequence.prompt, sequence.max_new_tokens, matched=constrained)
            if sequence.state is State.FINISHED:
                assert generated == wanted, f"seed {seed}: {sequence}"
                finished += 1
                matched += constrained
            else:
                assert sequence.state is State.ABORTED
                assert generated == wanted[: len(generated)], f"seed {seed}: {sequence}"
        assert all(pool.available == pool.total for pool in run.schedule.allocator.pools)
        assert sorted(run.schedule.free_lanes) == list(range(run.schedule.limits.max_batch_size))
        preempted += run.schedule.preemptions
        behind += run.behind
        slid += run.slid
        mixed += run.mixed
        divided += run.divided
        hits += run.schedule.prefix_hit_tokens
        guessed += sum(sequence.right_guesses for sequence in run.sequences)

    assert finished > 3000
    assert matched > 1000
    assert behind > 3, "no matcher is behind when its sequence is preempted"
    assert preempted > 40, "the schedules do not reach what they are for"
    assert hits > 500
    assert slid > 1000
    assert mixed > 100
    assert divided > 300
    assert guessed > 20


def test_the_simulated_rank_notices_a_foreign_block() -> None:
    """The check itself can fail: a sequence whose cache holds another's tokens is found out."""
    run = Run.from_seed(0)
    run.arrive()
    planned = plan(run.schedule)
    assert planned is not None
    run.rank.execute(planned.step)
    run.rank.slots = dict.fromkeys(run.rank.slots, (12345, 12345))

    with pytest.raises(AssertionError, match="another sequence's token"):
        run.rank.execute(plan(run.schedule).step)  # type: ignore[union-attr]
