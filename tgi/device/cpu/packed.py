"""Weights, adapters and experts in the order in which the kernels read them."""

from collections.abc import Sequence
from typing import Self

import attrs
import torch
from tgi_cpu_kernels import MAX_QUANTIZED_FEATURES, UNIT, Kernels, PackedInts
from tgi_cpu_kernels.decoder import LinearLayer
from tgi_cpu_kernels.experts import Experts as KernelExperts
from tgi_cpu_kernels.interface import GATES
from tgi_cpu_kernels.lora import LoraRows
from tgi_cpu_kernels.lora import LoraTable as KernelTable

from tgi.device.experts import Experts
from tgi.device.lora import LoraShape, LoraTable, Matrices
from tgi.weights.formats import (
    IntegerRounding,
    IntegerWeight,
    LinearWeight,
    Operations,
    PiecewiseWeight,
    StackedWeight,
)


@attrs.frozen(eq=False)
class PackedWeight(PiecewiseWeight):
    """A dense matrix in the order in which the kernels read it."""

    STEP = UNIT
    kernels: Kernels
    packed: torch.Tensor
    shape: tuple[int, int]
    """Numbers of output and input features."""

    @classmethod
    def empty(cls, kernels: Kernels, rows: int, columns: int, dtype: torch.dtype) -> Self:
        """Return a weight whose rows are yet to come."""
        packed = torch.empty(kernels.packed_size(dtype, rows, columns), dtype=dtype)
        return cls(kernels, packed, (rows, columns))

    def put(self, first: int, rows: torch.Tensor) -> None:
        """Pack the rows."""
        self.kernels.pack_rows(rows, self.packed, first)

    def multiply(
        self,
        device: Operations,  # noqa: ARG002
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply, add in float32, and round once."""
        return self.kernels.linear(x, self.packed, self.shape[0], bias, residual)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Gather the numbers of each row."""
        return self.kernels.packed_rows(self.packed, *self.shape, indices)


@attrs.frozen(eq=False)
class PackedIntegers(PiecewiseWeight):
    """An `IntegerWeight` in the order in which the kernels read it."""

    STEP = UNIT
    kernels: Kernels
    packed: PackedInts
    order: torch.Tensor | None

    @staticmethod
    def takes(weight: IntegerWeight) -> bool:
        """Return whether the kernels have such weights."""
        size = weight.numbers.shape[1]
        return (
            weight.bits in (4, 8)
            and (weight.group % 8 == 0 or weight.group >= size)
            and size <= MAX_QUANTIZED_FEATURES
        )

    @classmethod
    def of(cls, kernels: Kernels, weight: IntegerWeight) -> Self:
        """Pack a weight."""
        sizes, nested = (weight.bits, weight.group), (weight.shares, weight.minima)
        packed = kernels.pack_ints(weight.numbers, weight.scales, weight.zeros, *sizes, *nested, weight.table)
        return cls(kernels, packed, weight.order)

    @classmethod
    def empty(cls, kernels: Kernels, rows: int, columns: int, rounding: IntegerRounding) -> Self:
        """Return a weight whose rows are yet to come, and are rounded then."""
        group, symmetric = rounding.group(columns), rounding.symmetric
        return cls(
            kernels, kernels.empty_ints(rows, columns, rounding.bits, group, symmetric=symmetric), None
        )

    def put(self, first: int, rows: torch.Tensor) -> None:
        """Round and pack the rows."""
        self.kernels.round_rows(rows, self.packed, first)

    def multiply(
        self,
        device: Operations,  # noqa: ARG002
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply as defined, exactly within each group."""
        x = x if self.order is None else x[:, self.order]
        return self.kernels.quantized_linear(x, self.packed, bias, residual)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Gather the numbers of each row, in float32."""
        numbers, scales, zeros, shares, minima = self.packed.rows(indices.clamp(0, self.packed.n - 1))
        assert numbers is not None
        assert scales is not None
        sizes = self.packed.bits, self.packed.group
        table = None if self.packed.table is None else tuple(self.packed.table.tolist())
        rows = IntegerWeight(numbers, scales, zeros, *sizes, self.order, shares, minima, table).dense()
        return rows.masked_fill(((indices < 0) | (indices >= self.packed.n))[:, None], 0)


class PackedTable(LoraTable):
    """Adapters in the order in which the kernels read them."""

    def __init__(self, kernels: Kernels, shape: LoraShape) -> None:
        self.table = KernelTable(kernels, shape.slots.count, shape.outputs)
        self.columns, self._dtype = shape.columns, shape.dtype
        sizes = [(self.columns, shape.inputs), *((size, shape.slots.rank) for size in shape.outputs)]
        numbers = sum(kernels.packed_size(shape.dtype, *size) for size in sizes)
        self.bytes = shape.slots.count * numbers * shape.dtype.itemsize

    def put(self, slot: int, matrices: Sequence[Matrices | None]) -> None:
        """Pack the matrices."""
        cast = [pair and (pair[0].to(self._dtype), pair[1].to(self._dtype)) for pair in matrices]
        self.table.put(slot, cast)

    def add(self, x: torch.Tensor, y: torch.Tensor, rows: LoraRows) -> torch.Tensor:
        """Add in place."""
        self.table.add(x, y, rows)
        return y


def packed_layer(
    weight: LinearWeight, bias: torch.Tensor | None, loras: KernelTable | None = None
) -> LinearLayer | None:
    """Return a linear layer as the kernels take it, if they can read the weight as it is."""
    if isinstance(weight, PackedWeight):
        return LinearLayer(weight.packed, weight.shape[0], bias, loras)
    pieces = weight.pieces if isinstance(weight, StackedWeight) else [weight]
    packed = [each.packed for each in pieces if isinstance(each, PackedIntegers) and each.order is None]
    if len(packed) < len(pieces):
        return None
    return LinearLayer(packed, sum(each.n for each in packed), bias, loras)


@attrs.frozen(eq=False, kw_only=True)
class PackedExperts(Experts):
    """Experts whose weights are in the kernels' order."""

    packed: KernelExperts

    @classmethod
    def of(cls, kernels: Kernels, plain: Experts) -> Self | None:
        """Return experts that the kernel takes; None if it does not."""
        if plain.kind not in GATES:
            return None
        parts = (plain.up, plain.up_bias), (plain.down, plain.down_bias)
        up, down = (
            [packed_layer(weight, None if bias is None else bias[index]) for index, weight in enumerate(part)]
            for part, bias in parts
        )
        ups, downs = ([layer for layer in part if layer is not None] for part in (up, down))
        if len(ups) + len(downs) < len(up) + len(down):
            return None
        made = KernelExperts(kernels, ups, downs, plain.first, plain.kind)
        return cls(**attrs.asdict(plain, recurse=False), packed=made)
