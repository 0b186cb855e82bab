"""Experts on NVIDIA GPUs: one kernel multiplies the tokens of all experts, each by its own expert's weight.

Import this module only if Triton is installed. A token and one of its experts are a *pair*. Pairs are sorted
by expert, and a program multiplies a *tile*: some rows of one expert, times some output features. The
tiles suffice for any choice of experts, so that no shape depends on it; those that are left over do nothing.
"""

from typing import NamedTuple

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

_COLUMNS, _DEPTH = 64, 32
"""Output features of a tile, and input features that are multiplied at once."""


class Pairs(NamedTuple):
    """The pairs of a step, sorted by expert; those of other ranks' experts come last."""

    order: torch.Tensor
    """[pairs] int32: number of the pair at each place; token * top + choice."""
    rows: int
    """Rows of a tile."""
    experts: torch.Tensor
    """[tiles] int32: expert of each tile."""
    begins: torch.Tensor
    """[tiles] int32: place of a tile's first pair."""
    ends: torch.Tensor
    """[tiles] int32: place after its last pair; that of its first one if it has none."""


def sort_pairs(chosen: torch.Tensor, first: int, count: int) -> Pairs:
    """Sort the pairs of tokens with chosen experts [T, top], of which this rank has `count` from `first`."""
    local = chosen.flatten() - first
    mine = torch.where((local >= 0) & (local < count), local, count)
    order = mine.argsort(stable=True)
    rows = 16 if len(local) <= 32 * count else 64
    sizes = (mine[:, None] == torch.arange(count, device=mine.device)).sum(0)
    ends = sizes.cumsum(0)
    tiles = (sizes + rows - 1) // rows
    last_tiles = tiles.cumsum(0)
    numbers = torch.arange(min(len(local), len(local) // rows + count), device=mine.device)
    expert = torch.searchsorted(last_tiles, numbers, right=True).clamp_max(count - 1)
    begins = ends[expert] - sizes[expert] + (numbers - last_tiles[expert] + tiles[expert]) * rows
    stops = torch.maximum(torch.minimum(begins + rows, ends[expert]), begins)
    return Pairs(order.int(), rows, expert.int(), begins.int(), stops.int())


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _multiply_tile(  # type: ignore[no-untyped-def]
    x, weights, biases, out, order, experts, begins, ends, columns, size,
    TOP: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Multiply rows of x by an expert's weight; program (tile, slice of the columns)."""
    tile = tl.program_id(0)
    begin, end = tl.load(begins + tile), tl.load(ends + tile)
    if begin < end:
        expert = tl.load(experts + tile).to(tl.int64)
        row = begin + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        here, there = row < end, column < columns
        source = row.to(tl.int64)
        if TOP:
            source = tl.load(order + row, mask=here, other=0).to(tl.int64) // TOP
        weight = weights + expert * columns * size + column.to(tl.int64)[None, :] * size
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        for start in range(0, size, DEPTH):
            depth = start + tl.arange(0, DEPTH)
            inside = depth < size
            a_mask, b_mask = here[:, None] & inside[None, :], inside[:, None] & there[None, :]
            a = tl.load(x + source[:, None] * size + depth[None, :], mask=a_mask, other=0.0)
            b = tl.load(weight + depth[:, None], mask=b_mask, other=0.0)
            sums += tl.dot(a, b, input_precision="ieee")
        if BIAS:
            bias = tl.load(biases + expert * columns + column, mask=there, other=0.0)
            sums += bias.to(tl.float32)[None, :]
        place = out + row.to(tl.int64)[:, None] * columns + column[None, :]
        tl.store(place, sums.to(out.dtype.element_ty), mask=here[:, None] & there[None, :])


def multiply_pairs(
    x: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor | None, pairs: Pairs, top: int = 0
) -> torch.Tensor:
    """Return [pairs, out]: rows of x times the weights [experts, out, in] of their experts, plus biases.

    x is [T, in] with the `top` experts of each token, or [pairs, in] in the order of the pairs. Pairs of
    other ranks' experts get zeros.
    """
    x = x.contiguous()
    _, columns, size = weights.shape
    out = x.new_zeros(len(pairs.order), columns)
    _multiply_tile[len(pairs.experts), triton.cdiv(columns, _COLUMNS)](
        x, weights, weights if biases is None else biases, out, pairs.order, pairs.experts, pairs.begins,
        pairs.ends, columns, size,
        TOP=top, BIAS=biases is not None, ROWS=pairs.rows, COLUMNS=_COLUMNS, DEPTH=_DEPTH,
    )  # fmt: skip
    return out


def add_up(y: torch.Tensor, weights: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Return each token's sum [T, out] of its pairs' rows of y, times their factors [T, top]."""
    places = order.argsort()
    rows = y.index_select(0, places).view(*weights.shape, -1)
    return (rows * weights[..., None]).sum(1).to(y.dtype)
