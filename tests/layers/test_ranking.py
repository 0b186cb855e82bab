"""The most likely tokens, and what stands among equals."""

import torch

from tgi.layers import most_likely


def test_most_likely_breaks_ties_by_id_and_leaves_out_the_impossible():
    logprobs = torch.tensor([[-1.0, -torch.inf, -1.0, -0.5, -torch.inf]])
    for count in (1, 2, 3, 5, 7):
        ids, values = most_likely(logprobs, count)
        assert ids[0].tolist() == [3, 0, 2, -1, -1, -1, -1][:count]
        wanted = [-0.5, -1.0, -1.0] + 4 * [-torch.inf]
        assert values[0].tolist() == wanted[:count]
