"""Steps that hold decode rows and chunks of prompts, and the cost model that bounds the chunks."""

import pytest

from tgi.limits import Limits
from tgi.scheduler.buckets import Buckets, StepCosts
from tgi.scheduler.policy import SPREAD_STEPS, plan
from tgi.scheduler.schedule import PlannedStep, Schedule
from tgi.scheduler.sequence import Sequence
from tgi.testing.builders import make_allocator, make_sequence

LIMITS = Limits(max_total_tokens=2048, max_batch_size=8, max_batch_prefill_tokens=256, waiting_served_ratio=9)


def new_schedule(*, running: int, costs: StepCosts | None = None) -> Schedule:
    """A schedule with sequences that decode."""
    schedule = Schedule(LIMITS, Buckets(LIMITS, mixes=True), make_allocator(LIMITS, 1000))
    for number in range(running):
        add(schedule, [number] * 4)
    if running:
        step(schedule)
    schedule.costs = costs or StepCosts()
    return schedule


def add(schedule: Schedule, prompt: list[int], **changed: object) -> Sequence:
    sequence = make_sequence(prompt, 500, **changed)
    schedule.add(sequence)
    return sequence


def step(schedule: Schedule) -> PlannedStep:
    planned = plan(schedule)
    assert planned is not None
    return planned


def lengths(planned: PlannedStep) -> tuple[int, list[int]]:
    """Number of decode rows, and the lengths of chunks."""
    chunks = [row.length for row in planned.rows if row.chunk]
    return len(planned.rows) - len(chunks), chunks


@pytest.mark.contract("--waiting-served-ratio", "--max-waiting-tokens")
def test_a_new_request_is_in_the_next_step_beside_all_running_ones() -> None:
    schedule = new_schedule(running=5)
    new = add(schedule, [9] * 20)
    planned = step(schedule)
    assert lengths(planned) == (5, [20])
    assert planned.rows[-1].sequence is new
    assert planned.bucket.prefill
    assert lengths(step(schedule)) == (6, [])


def test_a_step_has_no_more_tokens_than_a_prefill_step_may_have() -> None:
    schedule = new_schedule(running=3)
    for number in range(3):
        add(schedule, [10 + number] * 200)
    assert lengths(step(schedule)) == (3, [200, 53])
    assert lengths(step(schedule)) == (4, [147, 105])
    assert lengths(step(schedule)) == (5, [95])


def test_short_prompts_double_the_time_of_a_step_at_most() -> None:
    """A step of 4 decode rows takes 20 + 4 ms, as long as 24 tokens more."""
    schedule = new_schedule(running=4, costs=StepCosts(step=0.020, token=0.001))
    add(schedule, [9] * 40)
    assert lengths(step(schedule)) == (4, [24])
    assert lengths(step(schedule)) == (4, [16])
    assert lengths(step(schedule)) == (5, [])


def test_many_or_long_prompts_get_full_steps() -> None:
    schedule = new_schedule(running=4, costs=StepCosts(step=0.020, token=0.001))
    add(schedule, [9] * (SPREAD_STEPS * 24 + 1))
    assert lengths(step(schedule)) == (4, [SPREAD_STEPS * 24 + 1])


def test_a_prompt_alone_is_computed_in_full_steps() -> None:
    schedule = new_schedule(running=0, costs=StepCosts(step=0.020, token=0.001))
    add(schedule, [9] * 30)
    assert lengths(step(schedule)) == (0, [30])


def test_questions_about_a_prompt_do_not_keep_others_waiting() -> None:
    schedule = new_schedule(running=2)
    add(schedule, [7, 8, 9], prompt_top=3)
    add(schedule, [5, 6])
    planned = step(schedule)
    assert lengths(planned) == (2, [3, 2])
    assert [row.targets for row in planned.rows] == [0, 0, 2, 0]
    assert planned.step.prompt_top == 3


def test_the_cost_of_steps_is_learned() -> None:
    costs = StepCosts()
    assert costs.seconds(4) == costs.doubling_tokens(4) == 0
    for _ in range(200):
        costs.add(4, False, 0.010 + 4 * 0.0005)
        costs.add(100, True, 0.010 + 100 * 0.0005)
    assert costs.step == pytest.approx(0.010, rel=0.01)
    assert costs.token == pytest.approx(0.0005, rel=0.01)
    assert costs.seconds(4) == pytest.approx(0.012, rel=0.01)
    assert costs.doubling_tokens(4) in (23, 24)
