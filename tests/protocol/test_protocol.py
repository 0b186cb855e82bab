"""Messages survive the wire; frames survive any cutting of the stream."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.protocol import (
    Allocate,
    Allocated,
    Bucket,
    Command,
    Failed,
    FrameReader,
    LaneParams,
    Load,
    Loaded,
    Progress,
    Ready,
    Report,
    Result,
    Step,
    decode_command,
    decode_report,
    encode,
    floats,
    frame,
    ints,
    unpack_floats,
    unpack_ints,
)
from tgi.sampling import SamplingParams

PARAMS = LaneParams(
    lane=1,
    sampling=SamplingParams(
        seed=2**64 - 1,
        sample=True,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        typical_p=0.8,
        repetition_penalty=1.1,
        frequency_penalty=0.2,
        watermark=True,
        min_p=0.1,
        logit_bias=((7, -100.0),),
        min_tokens=2,
        ends=(1,),
    ),
    history=ints([1, 2]),
)
COMMANDS = [
    Ready(),
    Load(
        folder="/m",
        architecture="A",
        device="cpu",
        dtype="auto",
        threads=2,
        lanes=4,
        block_size=16,
        max_tokens=128,
        overrides={"a": [1]},
    ),
    Allocate((7, 3)),
    Step(
        number=1,
        bucket=Bucket(2, 16, 4, prefill=True),
        lanes=ints([0, 3]),
        starts=ints([0, 5]),
        lengths=ints([3, 1]),
        samples=ints([0, 1]),
        draws=ints([0, 9]),
        tokens=ints([7, 8, 9, -1]),
        params=(PARAMS,),
        prompt_top=3,
        masked=ints([0]),
        masks=b"\x80\x00\x00\xff",
    ),
]
REPORTS = [
    Progress(1, 2),
    Loaded(free_bytes=2**40, block_bytes=(5,), dtype="float32"),
    Allocated(),
    Result(number=1, tokens=ints([5]), logprobs=floats([-0.5]), prompt_top_tokens=ints([3])),
    Failed("no room", "memory"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: type(c).__name__)
def test_commands_survive(command: Command) -> None:
    assert decode_command(encode(command)) == command


@pytest.mark.parametrize("report", REPORTS, ids=lambda r: type(r).__name__)
def test_reports_survive(report: Report) -> None:
    assert decode_report(encode(report)) == report


@given(st.lists(st.binary(max_size=40)), st.data())
def test_frames_survive_any_cutting(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    reader = FrameReader()

    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.feed(stream[start:end])

    assert received == payloads


@given(st.lists(st.integers(-(2**31), 2**31 - 1)))
def test_ints_survive(values: list[int]) -> None:
    assert unpack_ints(ints(values)).tolist() == values


@given(st.lists(st.floats(width=32, allow_nan=False)))
def test_floats_survive(values: list[float]) -> None:
    assert unpack_floats(floats(values)).tolist() == values


def test_not_a_number_survives() -> None:
    assert math.isnan(unpack_floats(floats([math.nan]))[0])
