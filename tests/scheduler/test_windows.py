"""Attention windows: how many blocks they take, and how blocks behind them are freed."""

import attrs
import pytest

from tgi.device.costs import Costs
from tgi.limits import Limits
from tgi.planning.buckets import Bucketing, make_buckets
from tgi.planning.shapes import ShapeLimits
from tgi.scheduler.allocator import BlockAllocator
from tgi.scheduler.blocks import BlockPool
from tgi.scheduler.buckets import Buckets
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import plan
from tgi.scheduler.schedule import PlannedStep, Schedule
from tgi.scheduler.sequence import Sequence, State
from tgi.testing.builders import make_allocator, make_device, make_sequence

from .invariants import check_allocator
from .simulated_rank import SimulatedRank, expected_tokens

LIMITS = Limits(max_total_tokens=400, max_batch_size=4, max_batch_prefill_tokens=16, block_size=4, window=12)
"""A chunk and what it sees are in 8 blocks at most, the longest sequence in 100."""


@attrs.define
class Server:
    """A schedule and a rank that checks what steps read."""

    schedule: Schedule
    rank: SimulatedRank
    steps: list[PlannedStep] = attrs.field(factory=list)

    @classmethod
    def of(cls, blocks: int, *, flat: bool = True) -> "Server":
        device = make_device(block_size=4, compiles=flat, flat=flat)
        buckets = make_buckets(LIMITS, device, Bucketing(costs=Costs.of(block_size=4)))
        schedule = Schedule(LIMITS, buckets, make_allocator(LIMITS, blocks, windows=[LIMITS.window]))
        return cls(schedule, SimulatedRank(4, flat=flat, windows=[LIMITS.window]))

    def add(self, prompt: list[int], new: int = 20) -> Sequence:
        sequence = make_sequence(prompt, new)
        self.schedule.add(sequence)
        return sequence

    def step(self) -> bool:
        planned = plan(self.schedule)
        if planned is None:
            return False
        self.steps.append(planned)
        commit(self.schedule, planned, self.rank.execute(planned.step))
        check_allocator(self.schedule.allocator, self.schedule.running)
        return True

    def run(self) -> None:
        while self.step():
            pass


def seen_blocks(start: int, length: int, size: int, window: int, *, context: bool) -> int:
    """Count one by one the blocks of a chunk's tokens and of the tokens that they attend to."""
    last = start if context else start + length
    positions = [k for k in range(last) if any(q - window < k <= q for q in range(start, start + length))]
    return len({position // size for position in positions})


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("window", [2, 3, 7, 30])
@pytest.mark.parametrize("chunk", [1, 4, 5])
def test_estimates_of_blocks_are_exact(size: int, window: int, chunk: int) -> None:
    limits = Limits(max_total_tokens=24, max_batch_prefill_tokens=chunk, block_size=size, window=window)
    space = ShapeLimits.from_limits(limits)
    chunks = [(start, length) for length in range(1, chunk + 1) for start in range(24 - length + 1)]
    every = [seen_blocks(*each, size, window, context=False) for each in chunks]
    assert limits.sequence_blocks == space.seen_blocks(space.longest_chunk) == max(every)
    ones = [seen_blocks(start, 1, size, window, context=False) for start in range(24)]
    assert space.seen_blocks(1) == max(ones)
    for tokens in range(1, chunk + 1):
        contexts = [
            seen_blocks(start, tokens, size, window, context=True) for start in range(24 - tokens + 1)
        ]
        assert space.context_blocks(tokens) == max(contexts)


@pytest.mark.parametrize("flat", [True, False])
def test_a_request_longer_than_the_cache_is_served(flat: bool) -> None:
    server = Server.of(LIMITS.sequence_blocks, flat=flat)
    prompt = [5 + index % 7 for index in range(300)]
    sequence = server.add(prompt, 100)

    server.run()

    assert sequence.state is State.FINISHED
    expected = expected_tokens(prompt, 100)  # which may end with EOS; this sequence goes on
    assert sequence.tokens[300 : 300 + len(expected)] == expected
    assert len(sequence.tokens) == 400
    assert server.schedule.preemptions == 0
    if flat:
        assert max(step.shape.blocks for step in server.steps) == 4


def test_long_requests_share_a_cache_for_their_windows() -> None:
    """Room is for 12 tokens of each of 4 sequences, and a chunk of one, not for their 400 blocks."""
    server = Server.of(4 * 4 + LIMITS.sequence_blocks + 4)
    sequences = [server.add([number] * 200, 200) for number in range(10, 14)]

    server.run()

    assert all(sequence.state is State.FINISHED for sequence in sequences)
    together = [step for step in server.steps if len(step.rows) == 4 and not step.bucket.prefill]
    assert len(together) > 150, "they were not served side by side"


def test_a_prefix_hits_where_only_its_end_is_cached() -> None:
    """The next request of a conversation, whose beginning has left the cache meanwhile."""
    server = Server.of(20)
    first = server.add([5, 6, 7] * 40)
    server.run()
    assert len(first.tokens) == 140 > 20 * LIMITS.block_size
    computed = server.rank.computed

    second = server.add([*first.tokens, 9], 1)
    server.run()

    assert second.state is State.FINISHED
    assert server.rank.computed - computed <= LIMITS.block_size + 1
    assert second.tokens[-1] == expected_tokens(second.prompt, 1)[0]


@pytest.mark.parametrize("steps", [1, 4, 12, 25])
def test_no_block_is_lost_by_abort_or_preemption_after_blocks_were_freed(steps: int) -> None:
    server = Server.of(40)
    stays, goes = server.add([5] * 60), server.add([6] * 60)
    for _ in range(steps):
        server.step()
    server.schedule.preempt(goes) if steps % 2 else server.schedule.remove(goes, State.ABORTED)
    check_allocator(server.schedule.allocator, server.schedule.running)
    server.run()

    assert stays.state is State.FINISHED
    assert goes.state is (State.FINISHED if steps % 2 else State.ABORTED)
    assert server.schedule.allocator.widest.available == 40


def two_groups(full: int, windowed: int) -> Server:
    """A server whose model has layers that see everything, and layers with a window."""
    limits = attrs.evolve(LIMITS, window=None)
    pools = [BlockPool(full, 4), BlockPool(windowed, 4, LIMITS.window)]
    schedule = Schedule(limits, Buckets(limits, mixes=True), BlockAllocator(limits, pools))
    return Server(schedule, SimulatedRank(4, windows=[None, LIMITS.window]))


def test_windowed_layers_free_the_blocks_that_full_ones_keep() -> None:
    least = LIMITS.group_blocks(LIMITS.window)
    server = two_groups(100, least)
    prompt = [5 + index % 7 for index in range(300)]
    sequence = server.add(prompt, 100)
    used = []
    while server.step():
        used.append([pool.statistics().used for pool in server.schedule.allocator.pools])
    expected = expected_tokens(prompt, 100)
    assert sequence.tokens[300 : 300 + len(expected)] == expected
    assert server.schedule.preemptions == 0
    assert [max(column) for column in zip(*used, strict=True)] == [100, least]


def test_a_prefix_hits_as_far_as_every_group_has_it() -> None:
    """Other sequences take the cached blocks of the windowed layers; the full ones still have theirs."""
    server = two_groups(400, LIMITS.group_blocks(LIMITS.window))
    prompt = [5 + index % 7 for index in range(100)]
    server.add(prompt, 1)
    server.run()
    again = server.add(prompt, 1)
    server.run()
    assert server.schedule.prefix_hit_tokens == again.cached == 96
    for number in range(3):
        server.add([20 + number] * 100, 1)
    server.run()
    late = server.add(prompt, 1)
    server.run()
    assert late.cached == 0
    assert late.tokens[-1] == again.tokens[-1] == expected_tokens(prompt, 1)[0]
