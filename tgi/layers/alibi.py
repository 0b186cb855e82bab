"""Attention with linear biases (ALiBi; Press, Smith and Lewis 2021, arXiv 2108.12409)."""

import torch


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """What each head's scores lose per token of distance, [num_heads] float32; for `Attention`.

    A geometric sequence that ends at 2 ** -8. Where the number of heads is no power of two: that of the power
    below, and every other one of that of the power above.
    """
    below = 1 << (num_heads.bit_length() - 1)
    return torch.cat((_sequence(below), _sequence(2 * below)[::2][: num_heads - below]))


def _sequence(count: int) -> torch.Tensor:
    return (-8 * torch.arange(1, count + 1) / count).exp2()
