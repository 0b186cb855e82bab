"""The arithmetic of random choices: probabilities as integers, whose sums are exact in any order."""

from collections.abc import Callable

import torch

UNIT = 30
"""Probabilities are counted in units of 2^-30: the finest whose sums fit into 32 bits."""
FirstBeyond = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""`Device.first_beyond`."""


def weights(logprobs: torch.Tensor) -> torch.Tensor:
    """Return the probabilities in units of 2^-30, int32."""
    return logprobs.exp().mul_(2**UNIT).round_().int()


def race(logprobs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Return the scores [n, m] float32 whose greatest `Device.draw` takes."""
    indices = torch.arange(logprobs.shape[1], dtype=torch.int32, device=logprobs.device)
    bits = mixed(mixed(indices) ^ keys[:, None]) & 0x7FFFFFFF
    uniform = ((bits.float() + 0.5) * 2**-31).clamp_max(1 - 2**-24)
    return logprobs - uniform.neg().log1p().neg().log()


def mixed(x: torch.Tensor) -> torch.Tensor:
    """Mix the bits of int32s; products keep their low 32 bits."""
    for _ in range(2):
        x = (((x >> 16) & 0xFFFF) ^ x) * 0x45D9F3B
    return ((x >> 16) & 0xFFFF) ^ x


def top_cut(
    scores: torch.Tensor,
    best: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    first_beyond: FirstBeyond,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `Device.top_cut` from the best of the scores, the greatest first.

    With it comes the mass [n, 1] of those of the best that top-k keeps, in units of 2^-30; None
    without top-p.
    """
    cut, reached = scores.new_full((len(scores), 1), -torch.inf), None
    if top_k is not None:
        top_k = top_k[:, None]
        last_kept = (top_k - 1).clamp(0, best.shape[1] - 1).long()
        cut = best.gather(1, last_kept).masked_fill(top_k <= 0, -torch.inf)
        scores, best = (x.masked_fill(x < cut, -torch.inf) for x in (scores, best))
    if top_p is not None:
        top_p = top_p[:, None]
        highest = scores.log_softmax(-1).amax(-1, keepdim=True)
        mass = weights(best - best[:, :1] + highest)
        sums = mass.cumsum(-1, dtype=torch.int32)
        kept = first_beyond(sums - mass, goal(top_p) - 1)[:, None].clamp_min(1)
        of_p = best.gather(1, kept.long() - 1).masked_fill(top_p >= 1, -torch.inf)
        cut, reached = torch.maximum(cut, of_p), sums[:, -1:]
    return cut, reached


def goal(share: torch.Tensor) -> torch.Tensor:
    """Return a share of the whole mass in units of 2^-30, at least 1."""
    units: torch.Tensor = (share.clamp_max(1) * 2**UNIT).int()
    return units.clamp_min(1)
