"""Admission beside running requests: tgi-behaviour Q11, Q12, and the parts of 12.8 that hold here."""

import attrs
import pytest

from tgi.limits import Limits
from tgi.scheduler.buckets import Buckets
from tgi.scheduler.policy import plan
from tgi.scheduler.schedule import Schedule
from tgi.testing.builders import make_allocator, make_sequence

LIMITS = Limits(
    max_total_tokens=2048, max_batch_size=64, max_batch_prefill_tokens=2048, waiting_served_ratio=1.2
)


def new_schedule(limits: Limits, blocks: int = 1000) -> Schedule:
    return Schedule(limits, Buckets(limits), make_allocator(limits, blocks, 0))


def add(schedule: Schedule, count: int, length: int = 4, max_new_tokens: int = 500) -> None:
    for _ in range(count):
        schedule.add(make_sequence([5] * length, max_new_tokens))


def admitted(running: int, waiting: int, steps: int, limits: Limits = LIMITS) -> int:
    """Number of waiting sequences that have joined the running ones after these steps."""
    schedule = new_schedule(limits)
    add(schedule, running)
    while schedule.waiting:
        plan(schedule)
    add(schedule, waiting)
    for _ in range(steps):
        plan(schedule)
    return waiting - len(schedule.waiting)


@pytest.mark.contract("--waiting-served-ratio", "12.8")
@pytest.mark.parametrize(
    ("running", "waiting", "ratio", "joined"),
    [
        (10, 11, 1.2, 0),  # 12 would be enough
        (10, 12, 1.2, 12),
        (6, 1, 0.3, 1),
        (7, 1, 0.3, 0),
        (7, 2, 0.3, 2),
        (9, 2, 0.3, 2),
        (10, 2, 0.3, 0),
        (0, 1, 1.2, 1),
    ],
)
def test_a_few_do_not_interrupt_many(running: int, waiting: int, ratio: float, joined: int) -> None:
    limits = attrs.evolve(LIMITS, waiting_served_ratio=ratio)
    assert admitted(running, waiting, 10, limits) == joined


@pytest.mark.contract("--max-waiting-tokens")
def test_a_few_interrupt_many_after_enough_steps() -> None:
    """The step counter is 1 after a prefill, and 20 steps are the limit."""
    assert LIMITS.max_waiting_tokens == 20
    assert admitted(10, 1, 19) == 0
    assert admitted(10, 1, 20) == 1


@pytest.mark.contract("--max-batch-size", "12.8")
def test_the_batch_size_bounds_running_sequences() -> None:
    limits = attrs.evolve(LIMITS, max_batch_size=4)
    assert admitted(4, 8, 100, limits) == 0
    assert admitted(3, 8, 100, limits) == 1


def test_blocks_are_taken_when_they_are_needed() -> None:
    """TGI takes the blocks of the whole answer at once."""
    schedule = new_schedule(LIMITS)
    add(schedule, 1, length=100, max_new_tokens=1000)
    plan(schedule)
    assert len(schedule.running[0].tables[0].blocks) == -(-101 // LIMITS.block_size)


def test_prompts_of_unequal_length_share_a_step_that_is_not_padded() -> None:
    """TGI on Gaudi leaves the third out: 3 x 1000 tokens exceed its budget."""
    schedule = new_schedule(LIMITS)
    for length in (100, 1000, 100):
        add(schedule, 1, length)
    planned = plan(schedule)
    assert planned is not None
    assert [row.length for row in planned.rows] == [100, 1000, 100]


def test_a_long_prompt_is_prefilled_in_pieces_between_decode_steps() -> None:
    """TGI on Gaudi refuses to start with a budget that is shorter than the longest prompt."""
    limits = attrs.evolve(LIMITS, max_batch_prefill_tokens=256)
    schedule = new_schedule(limits)
    add(schedule, 1)
    plan(schedule)
    add(schedule, 1, length=600)
    kinds = []
    for _ in range(6):
        planned = plan(schedule)
        assert planned is not None
        kinds.append((planned.bucket.prefill, max(row.length for row in planned.rows)))
    prefills = [length for prefill, length in kinds if prefill]
    assert prefills == [256, 256, 88]
    assert [prefill for prefill, _ in kinds] == [False, True, False, True, False, True]
