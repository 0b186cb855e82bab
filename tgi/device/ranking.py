"""The most likely tokens of a distribution, in an order that does not depend on how many are asked for."""

import torch
import torch.nn.functional as F


def most_likely(logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `Device.most_likely` with 32-bit numbers, whichever of equal values `topk` prefers.

    The candidates are those above the last value that `topk` gives, and the lowest ids that have exactly that
    value. Their ranks are counted by comparing each with each.
    """
    size = logprobs.shape[1]
    kept = min(count, size)
    if not kept:
        return _padded(logprobs[:, :0].int(), logprobs[:, :0], count)
    best, places = logprobs.topk(kept, -1)
    last = best[:, -1:]
    backwards = -torch.arange(size, device=logprobs.device, dtype=torch.float32)  # exact below 2^24
    lowest = torch.where(logprobs == last, backwards, -torch.inf).topk(kept, -1).values
    unused = size + torch.arange(2 * kept, device=logprobs.device, dtype=torch.float32)
    above, tied = best > last, lowest > -torch.inf
    valid = torch.cat((above, tied), -1)
    values = torch.cat((best, last.expand_as(best)), -1).masked_fill(~valid, -torch.inf)
    ids = torch.where(valid, torch.cat((places.float(), -lowest), -1), unused)
    before = values[:, None, :] > values[:, :, None]
    before |= (values[:, None, :] == values[:, :, None]) & (ids[:, None, :] < ids[:, :, None])
    rank = before.sum(-1, dtype=torch.int32)[:, :, None]
    here = rank == torch.arange(kept, device=logprobs.device, dtype=torch.int32)
    ranked = torch.where(here, values[:, :, None], -torch.inf).amax(1)
    ranked_ids = torch.where(here, ids[:, :, None], -1.0).amax(1).int()
    return _padded(ranked_ids.masked_fill(ranked == -torch.inf, -1), ranked, count)


def most_likely_by_keys(logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same with 64-bit keys that are all different: faster on devices that have 64 bits."""
    size = logprobs.shape[1]
    if not count:
        return _padded(logprobs[:, :0].int(), logprobs[:, :0], count)
    bits = logprobs.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    keys = (ordered << 32) | torch.arange(size - 1, -1, -1, device=logprobs.device)
    best = keys.topk(min(count, size), -1).values
    ids = size - 1 - (best & 0xFFFFFFFF)
    values = logprobs.gather(1, ids)
    return _padded(ids.masked_fill(values.isneginf(), -1), values, count)


def _padded(ids: torch.Tensor, values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    missing = count - ids.shape[1]
    if not missing:
        return ids, values
    return F.pad(ids, (0, missing), value=-1), F.pad(values, (0, missing), value=-torch.inf)
