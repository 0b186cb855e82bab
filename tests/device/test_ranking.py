"""The most likely tokens, and their order among equals: with 64-bit keys and with 32 bits only."""

import pytest
import torch

from tgi.device.ranking import most_likely, most_likely_by_keys


@pytest.mark.parametrize("ranking", [most_likely, most_likely_by_keys])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_ties_are_broken_by_id_and_the_impossible_is_left_out(ranking, count):
    logprobs = torch.tensor([[-1.0, -torch.inf, -1.0, -0.5, -torch.inf]])
    ids, values = ranking(logprobs, count)
    assert ids[0].tolist() == [3, 0, 2, -1, -1, -1, -1][:count]
    wanted = [-0.5, -1.0, -1.0] + 4 * [-torch.inf]
    assert values[0].tolist() == wanted[:count]
