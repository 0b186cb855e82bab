"""The most likely tokens of a distribution, in an order that does not depend on how many are asked for."""

import torch


def most_likely(logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log-probabilities of the `count` best of each row of [rows, vocab] float32, [rows, count] each.

    The lower id comes first among equals. Where fewer have a probability the id is -1.
    """
    if not count:
        empty = logprobs[:, :0]
        return empty.long(), empty
    size = logprobs.shape[1]
    bits = logprobs.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    reverse_ids = torch.arange(size - 1, -1, -1, device=logprobs.device)
    keys = (ordered << 32) | reverse_ids  # no two alike, so that ties do not depend on `count`
    best = keys.topk(min(count, size), -1).values
    ids = size - 1 - (best & 0xFFFFFFFF)
    values = logprobs.gather(1, ids)
    ids = ids.masked_fill(values.isneginf(), -1)
    missing = count - ids.shape[1]
    if missing:
        ids = torch.nn.functional.pad(ids, (0, missing), value=-1)
        values = torch.nn.functional.pad(values, (0, missing), value=-torch.inf)
    return ids, values
