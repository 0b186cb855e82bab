"""Sampling parameters that are absurd, but allowed: whatever a client sends, a rank draws a token."""

import itertools

import pytest
import torch

from tgi.device.base import Device

from .rows import make_masks, make_rows, make_sampler

VOCABULARY = 50
TINY, HUGE = 1e-45, 3e38
ADDED = [
    {},
    {"presence_penalty": HUGE, "count_penalty": HUGE},
    {"presence_penalty": -HUGE, "bias": dict.fromkeys(range(VOCABULARY), -HUGE)},
    {"bias": {0: HUGE, 2: -HUGE}, "min_tokens": 2**31 - 1, "ends": list(range(VOCABULARY))},
    {"min_tokens": 1, "ends": list(range(VOCABULARY - 1))},
]


@pytest.mark.parametrize("temperature", [TINY, 1.0, HUGE])
@pytest.mark.parametrize("penalty", [TINY, 1.0, HUGE])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("added", range(len(ADDED)))
def test_every_parameter_that_is_allowed_gives_a_token(
    temperature: float, penalty: float, scale: float, added: int
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, VOCABULARY) * scale
    filters = itertools.product([0, 1, 2**31 - 1], [TINY, 1.0], [0.0, TINY, 1.0], [TINY, 1.0])
    for top_k, top_p, min_p, typical_p in filters:
        params = {
            "sample": True,
            "temperature": temperature,
            "repetition_penalty": penalty,
            "frequency_penalty": -2.0 if added % 2 else 2.0,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "typical_p": typical_p,
            "history": [1, 2, 2],
            "prompt_length": 1,
            **ADDED[added],
        }
        for masks in (None, make_masks({0: [7, 9]}, VOCABULARY), make_masks({0: [2]}, VOCABULARY)):
            if masks is not None and "ends" in params:
                continue  # the scheduler leaves min_tokens out beside a mask
            rows = make_rows([params], lengths=[3], previous=[2], masks=masks, top=3)

            sampled = make_sampler([params], VOCABULARY, Device())(logits, rows)

            assert 0 <= sampled.tokens.item() < VOCABULARY
            assert sampled.logprobs.item() > -1e30
