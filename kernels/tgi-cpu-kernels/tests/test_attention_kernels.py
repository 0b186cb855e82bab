"""Attention over a paged cache against its definition in float64, and bit for bit in other company."""

import math
from typing import Any

import pytest
import torch
from tgi_cpu_kernels import BLOCK, Kernels

from .comparing import BOTH, close, random

Row = tuple[int, int, int]
"""Number of a row in the cache, position of its first query, number of its queries."""


class Cache:
    """A layer's cache with the keys and values of rows in blocks that are scattered over it."""

    def __init__(
        self, kernels: Kernels, contexts: list[int], kv_heads: int, size: int, dtype: torch.dtype
    ) -> None:
        self.kernels, self.kv_heads, self.size = kernels, kv_heads, size
        needed = [-(-context // BLOCK) for context in contexts]
        order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(5)).int() + 1
        self.keys = torch.full(((sum(needed) + 1) * BLOCK * kv_heads * size,), 3.0, dtype=dtype)
        self.values = torch.full_like(self.keys, -7.0)
        self.tables = torch.zeros(len(contexts), max(needed), dtype=torch.int32)
        self.key, self.value = [], []
        for row, context in enumerate(contexts):
            blocks, order = order[: needed[row]], order[needed[row] :]
            self.tables[row, : len(blocks)] = blocks
            key, value = (random(context, kv_heads, size, dtype=dtype, seed=10 + 2 * row + i) for i in (0, 1))
            position = torch.arange(context)
            slots = blocks[position // BLOCK] * BLOCK + position % BLOCK
            kernels.store_kv(key, value, slots.int(), self.keys, self.values)
            self.key.append(key)
            self.value.append(value)

    def attend(self, query: torch.Tensor, rows: list[Row], **options: Any) -> torch.Tensor:
        """Attend with the queries of rows, which follow one another."""
        which, starts, lengths = torch.tensor(rows, dtype=torch.int32).T.contiguous()
        offsets = (lengths.cumsum(0) - lengths).int()
        tables = self.tables[which.long()].contiguous()
        places = (tables, offsets, lengths, starts)
        return self.kernels.attention(
            query, self.keys, self.values, self.kv_heads, *places, scale=0.3, **options
        )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    start: int,
    window: int = 0,
    softcap: float = 0.0,
    slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend with one row in float64."""
    tokens, heads, _ = query.shape
    key, value = (x.double().repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query.double(), key) * 0.3
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = torch.arange(key.shape[0]) - torch.arange(start, start + tokens)[:, None]
    if slopes is not None:
        scores = scores + slopes.double()[:, None, None] * distance
    hidden = distance > 0
    if window < 0:
        hidden = hidden | (distance < -(torch.arange(start, start + tokens) % -window)[:, None])
    elif window:
        hidden = hidden | (distance <= -window)
    scores = scores.masked_fill(hidden, -math.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, tokens, 1)), -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(key)], value)


ROWS: list[Row] = [(0, 0, 1), (1, 20, 37), (2, 299, 1), (3, 700, 5), (4, 0, 80), (5, 1030, 1)]
"""Decode and prefill, with and without context, over several chunks of the cache."""
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 50},
    "narrow": {"window": 1},
    "chunks": {"window": -50},
    "softcap": {"softcap": 2.0},
    "alibi": {"slopes": True},
    "sinks": {"sinks": True},
    "all": {"window": 300, "softcap": 3.0, "slopes": True, "sinks": True},
}


def chosen(options: str, heads: int) -> dict[str, Any]:
    """Return a copy of these options, with slopes and sinks for the heads if they are wanted."""
    given = dict(OPTIONS[options])
    for name in given.keys() & {"slopes", "sinks"}:
        given[name] = torch.rand(heads, generator=torch.Generator().manual_seed(7))
    return given


@BOTH
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("heads", [(4, 4, 32), (8, 2, 64), (6, 1, 128), (3, 3, 256), (2, 1, 80)])
def test_attention(kernels: Kernels, dtype: torch.dtype, options: str, heads: tuple[int, int, int]) -> None:
    count, kv_heads, size = heads
    given = chosen(options, count)
    cache = Cache(kernels, [start + length for _, start, length in ROWS], kv_heads, size, dtype)
    query = random(sum(length for _, _, length in ROWS), count, size, dtype=dtype)
    result = cache.attend(query, ROWS, **given)
    begin = 0
    for which, start, length in ROWS:
        part = slice(begin, begin + length)
        begin += length
        expected = attend(query[part], cache.key[which], cache.value[which], start, **given)
        close(result[part], expected, roundings=2)  # of weights, and of the result


@BOTH
@pytest.mark.parametrize("options", OPTIONS)
def test_a_query_does_not_depend_on_company_chunks_or_threads(
    kernels: Kernels, dtype: torch.dtype, options: str
) -> None:
    given = chosen(options, 6)
    cache, query = Cache(kernels, [900], 2, 64, dtype), random(900, 6, 64, dtype=dtype)
    whole = cache.attend(query, [(0, 0, 900)], **given)
    for size in (1, 7, 100, 256, 899):
        for start in range(0, 900, size) if size > 1 else (0, 1, 255, 256, 511, 512, 600, 899):
            length = min(size, 900 - start)
            part = cache.attend(query[start : start + length], [(0, start, length)], **given)
            assert torch.equal(part, whole[start : start + length]), (size, start)
    kernels.use_threads(1)
    assert torch.equal(cache.attend(query, [(0, 0, 900)], **given), whole)


def test_tables_may_begin_within_a_window(kernels: Kernels) -> None:
    cache, query = Cache(kernels, [400], 1, 32, torch.float32), random(1, 2, 32, dtype=torch.float32)
    whole = cache.attend(query, [(0, 399, 1)], window=40)
    cache.tables = cache.tables[:, 22:].contiguous()
    bases = torch.tensor([22 * BLOCK], dtype=torch.int32)
    assert torch.equal(cache.attend(query, [(0, 399, 1)], window=40, bases=bases), whole)


def test_queries_keys_and_values_may_be_transposed(kernels: Kernels) -> None:
    cache, query = Cache(kernels, [40], 2, 32, torch.float32), random(40, 4, 32, dtype=torch.float32)
    whole = cache.attend(query, [(0, 0, 40)])
    slots = cache.tables[0][torch.arange(40) // BLOCK] * BLOCK + torch.arange(40) % BLOCK
    key, value, apart = (
        x.transpose(0, 1).contiguous().transpose(0, 1) for x in (cache.key[0], cache.value[0], query)
    )
    cache.keys.zero_()
    kernels.store_kv(key, value, slots.int(), cache.keys, cache.values)
    assert torch.equal(cache.attend(apart, [(0, 0, 40)]), whole)
