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


def draw(logprobs: torch.Tensor, share: torch.Tensor, first_beyond: FirstBeyond) -> torch.Tensor:
    """Compute `Device.draw`."""
    cumulative = weights(logprobs).cumsum(-1, dtype=torch.int32)
    target = scaled(cumulative[:, -1:], share[:, None])
    return first_beyond(cumulative, target).clamp_max(logprobs.shape[1] - 1)  # beyond only after NaN


def scaled(whole: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Return floor(whole * share / 2^30) of int32s below 2^31 and 2^30, by halves that fit into 32 bits."""
    half = UNIT // 2
    low = (1 << half) - 1
    whole_high, whole_low = whole >> half, whole & low
    share_high, share_low = share >> half, share & low
    one = share_high * whole_low + (share_low * whole_low >> half)
    other = share_low * whole_high
    carry = ((one & low) + (other & low)) >> half
    return share_high * whole_high + (one >> half) + (other >> half) + carry


def top_cut(
    scores: torch.Tensor,
    best: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    first_beyond: FirstBeyond,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `Device.top_cut` from the best of the scores, the greatest first.

    With it comes the mass [n, 1] of those of the best that top-k keeps, in units of 2^-30, if there is a
    top-p.
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
