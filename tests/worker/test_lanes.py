"""Lanes remember whether a sequence's parameters change anything."""

import pytest

from tgi.protocol import Bucket, LaneParams, Step, ints
from tgi.sampling import SamplingParams
from tgi.worker.lanes import Lanes

CHANGES = [
    {"sample": True},
    {"temperature": 0.5},
    {"top_k": 3},
    {"typical_p": 0.9},
    {"repetition_penalty": 1.1},
    {"watermark": True},
    {"min_tokens": 2},
    {"logit_bias": ((5, 1.0),)},
]


def enter(lanes: Lanes, sampling: SamplingParams) -> None:
    one, zero, params = ints([1]), ints([0]), (LaneParams(lane=1, sampling=sampling),)
    bucket = Bucket(1, 1, 1)
    lanes.update(
        Step(
            number=1,
            bucket=bucket,
            lanes=one,
            starts=zero,
            lengths=one,
            samples=one,
            draws=zero,
            tokens=one,
            params=params,
        )
    )


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_a_parameter_that_is_not_neutral_is_known_until_the_next_sequence(changes: dict[str, object]) -> None:
    lanes = Lanes(2, 4)
    enter(lanes, SamplingParams(seed=7, **changes))  # type: ignore[arg-type]
    assert lanes.changed.tolist() == [False, True, False]
    enter(lanes, SamplingParams(seed=8))
    assert not lanes.changed.any()
