"""Integers of a checkpoint as a device takes them: as they are, or made dense while they are loaded."""

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate, groupby
from typing import Any, Self

import attrs
import torch

from tgi.weights.shard import TensorPart

from .base import EXPANDED, LinearWeight, Operations, Reader
from .dense import DenseWeight
from .integers import IntegerWeight

_STEP = 8
"""Groups that are multiplied as they are have a multiple of this many input features, or all."""


def group_columns(
    numbers: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    group: int,
    start: int = 0,
    groups: torch.Tensor | None = None,
) -> LinearWeight:
    """Return the weight with columns `start`, `start` + 1, … of one whose groups are known.

    `scales` and `zeros` [out, groups] are of all groups, `group` columns each, or of those in `groups` [in].
    The weight is dense where its groups differ in size.
    """
    size = numbers.shape[1]
    if groups is None:
        step, chosen = groups_from(start, size, group)
        picked = None if zeros is None else zeros[:, chosen]
        return IntegerWeight(numbers, scales[:, chosen], picked, bits, step)
    if groups.is_meta:
        whole, order = scales.shape[1] == -(-size // group), groups
    else:
        order = groups.argsort(stable=True)
        whole = torch.equal(groups[order], torch.arange(size) // group)
    if whole:
        sorted_columns = numbers if order.is_meta else numbers[:, order]
        return IntegerWeight(sorted_columns, scales, zeros, bits, group, order.long())
    if groups.is_meta:
        return DenseWeight(numbers.float())
    middle = 2 ** (bits - 1) if zeros is None else zeros[:, groups]
    return DenseWeight((numbers.float() - middle) * scales[:, groups])


def groups_from(start: int, size: int, group: int) -> tuple[int, torch.Tensor]:
    """Return how many of `size` columns from `start` on are a group, and of which whole `group` each is."""
    step = math.gcd(start, group) if start % group else group
    return step, (start + torch.arange(0, size, step)) // group


def fuse(
    reader: Reader, name: str, parts: Sequence[TensorPart], pieces: Sequence[LinearWeight]
) -> LinearWeight:
    """Return one weight with the rows of all pieces, which are those of `parts`, and take note of it.

    `name` is that of the format.
    """
    kept = reader.device.keeps
    joined = [_join(list(run), kept) for _, run in groupby(pieces, key=_kind)]
    weights = [each for each in joined if each is not None]
    if len(weights) < len(joined) or (len(weights) > 1 and "nested" not in kept):
        return make_dense(reader, name, parts, (piece.dense() for piece in pieces))
    rows = [each.row_bytes for each in weights for _ in range(each.numbers.shape[0])]
    for part in parts:
        held = torch.empty(part.size, dtype=torch.uint8, device="meta")
        size, rows = sum(rows[: part.size[0]]), rows[part.size[0] :]
        reader.keep(part.name, part.stored, held, name, size)
    return (
        weights[0]
        if len(weights) == 1
        else StackedWeight(weights, [each.numbers.shape[0] for each in weights])
    )


def make_dense(
    reader: Reader, name: str, parts: Sequence[TensorPart], pieces: Iterable[torch.Tensor]
) -> DenseWeight:
    """Return one dense weight with the real numbers of all pieces, which are those of `parts`, and take note.

    `name` is that of the format.
    """
    matrix = torch.cat([reader.put(piece) for piece in pieces])
    for part in parts:
        held = matrix.new_empty(part.size, device="meta")
        reader.keep(part.name, part.stored, held, f"{name}, {EXPANDED}")
    return DenseWeight(matrix)


@attrs.frozen(eq=False)
class StackedWeight(LinearWeight):
    """Weights of different kinds, of the output features one after another."""

    pieces: Sequence[LinearWeight]
    sizes: Sequence[int]
    """Output features of each."""

    def dense(self) -> torch.Tensor:
        """Return the numbers of all."""
        return torch.cat([piece.dense() for piece in self.pieces])

    def prepare(self, device: Operations) -> Self:
        """Prepare each."""
        return attrs.evolve(self, pieces=[device.prepare_linear(piece) for piece in self.pieces])

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply by each."""
        ends = list(accumulate(self.sizes))
        cuts = [slice(end - size, end) for end, size in zip(ends, self.sizes, strict=True)]
        return torch.cat(
            [
                device.multiply(
                    x,
                    piece,
                    None if bias is None else bias[cut],
                    None if residual is None else residual[:, cut],
                )
                for piece, cut in zip(self.pieces, cuts, strict=True)
            ],
            1,
        )


def _kind(weight: LinearWeight) -> object:
    """Return what two weights of integers must have in common to be one."""
    if not isinstance(weight, IntegerWeight):
        return None
    nested = weight.shares is not None and weight.shares.dtype, weight.minima is not None, weight.table
    return weight.bits, weight.group, *nested, weight.scales.shape[1]


def _join(pieces: Sequence[LinearWeight], kept: frozenset[str]) -> IntegerWeight | None:
    """Return pieces of one `_kind` as one weight of integers, if it is one that is `kept`."""
    weights = [piece for piece in pieces if isinstance(piece, IntegerWeight)]
    if len(weights) < len(pieces):
        return None
    first = weights[0]
    if f"int{first.bits}" not in kept or (first.group % _STEP and first.group < first.numbers.shape[1]):
        return None
    nested = first.shares, first.minima, first.table
    if "nested" not in kept and any(each is not None for each in nested):
        return None
    if not all(_same_order(first.order, each.order) for each in weights):
        return None
    fields: dict[str, Any] = {}
    if any(each.zeros is not None for each in weights):
        fields["zeros"] = torch.cat([each.zeros_or_middle for each in weights])
    for name in ("numbers", "scales", "shares", "minima"):
        if getattr(first, name) is not None:
            fields[name] = torch.cat([getattr(each, name) for each in weights])
    return attrs.evolve(first, **fields)


def _same_order(order: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if order is None or other is None:
        return order is other
    return order.is_meta or torch.equal(order, other)
