"""Integers of a checkpoint as a device takes them: as they are, or made dense while they are loaded."""

import math
from collections.abc import Iterable, Sequence

import torch

from tgi.weights.shard import TensorPart

from .base import EXPANDED, LinearWeight, Reader
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
        step = math.gcd(start, group) if start % group else group
        chosen = (start + torch.arange(0, size, step)) // group
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


def fuse(
    reader: Reader, name: str, parts: Sequence[TensorPart], pieces: Sequence[LinearWeight]
) -> LinearWeight:
    """Return one weight with the rows of all pieces, which are those of `parts`, and take note of it.

    `name` is that of the format.
    """
    whole = _join(pieces, reader.device.keeps)
    if whole is None:
        return make_dense(reader, name, parts, (piece.dense() for piece in pieces))
    for part in parts:
        held = torch.empty(part.size, dtype=torch.uint8, device="meta")
        reader.keep(part.name, part.stored, held, name, part.size[0] * whole.row_bytes)
    return whole


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


def _join(pieces: Sequence[LinearWeight], kept: frozenset[str]) -> IntegerWeight | None:
    """Return the pieces as one weight of integers, if they are alike and of a kind that is `kept`."""
    weights = [piece for piece in pieces if isinstance(piece, IntegerWeight)]
    if len(weights) < len(pieces):
        return None
    first = weights[0]
    if f"int{first.bits}" not in kept or (first.group % _STEP and first.group < first.numbers.shape[1]):
        return None
    if any((first.bits, first.group) != (each.bits, each.group) for each in weights):
        return None
    if not all(_same_order(first.order, each.order) for each in weights):
        return None
    zeros = None
    if any(each.zeros is not None for each in weights):
        zeros = torch.cat([each.zeros_or_middle for each in weights])
    numbers, scales = (
        torch.cat([each.numbers for each in weights]),
        torch.cat([each.scales for each in weights]),
    )
    return IntegerWeight(numbers, scales, zeros, first.bits, first.group, first.order)


def _same_order(order: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if order is None or other is None:
        return order is other
    return order.is_meta or torch.equal(order, other)
