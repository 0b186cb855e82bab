"""Sampling parameters that are absurd, but allowed: whatever a client sends, a rank draws a token."""

import itertools

import pytest
import torch

from tgi.device import Device
from tgi.protocol import LaneParams, Step, ints
from tgi.worker.lanes import Lanes
from tgi.worker.sampler import Needs, Sampler, SamplerInputs

VOCABULARY = 50
TINY, HUGE = 1e-45, 3e38


def rows_with(lanes: Lanes) -> SamplerInputs:
    """One row in lane 0 with the highest random number."""
    floats = torch.from_numpy(lanes.floats[:1].copy())
    number = [torch.tensor([value]) for value in (0, 5, 3, 2**26 - 1, 2**26 - 1)]
    return SamplerInputs(
        needs=Needs(sample=True, top_k=True, top_p=True, typical=True, penalties=True, top=3),
        **dict(zip(("lanes", "lengths", "previous", "draw_high", "draw_low"), number, strict=True)),
        **dict(zip(("sample", "top_k", "watermark"), torch.from_numpy(lanes.ints[:1].T.copy()), strict=True)),
        **dict(
            zip(
                ("temperature", "top_p", "typical_p", "repetition_penalty", "frequency_penalty"),
                floats.T,
                strict=True,
            )
        ),
    )


@pytest.mark.parametrize("temperature", [TINY, 1.0, HUGE])
@pytest.mark.parametrize("penalty", [TINY, 1.0, HUGE])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_every_parameter_that_is_allowed_gives_a_token(
    temperature: float, penalty: float, scale: float
) -> None:
    torch.manual_seed(0)
    sampler = Sampler(2, VOCABULARY, Device(), 0.5, 2.0)
    lanes = Lanes(1)
    logits = torch.randn(1, VOCABULARY) * scale
    extremes = itertools.product([0, 1, 2**31 - 1], [TINY, 1.0], [TINY, 1.0], [-2.0, 2.0])
    for top_k, top_p, typical_p, frequency in extremes:
        params = LaneParams(
            0, 0, True, temperature, top_k, top_p, typical_p, penalty, frequency, False, ints([1, 2, 2])
        )
        lanes.update(
            Step(
                number=1,
                prefill=False,
                bucket_rows=1,
                bucket_tokens=1,
                bucket_blocks=1,
                lanes=b"",
                starts=b"",
                draws=b"",
                params=(params,),
            )
        )

        sampled = sampler(logits, rows_with(lanes))

        assert 0 <= sampled.tokens.item() < VOCABULARY
        assert sampled.logprobs.item() > -1e30
