"""Weights in the order in which the kernels read them."""

from typing import Self

import attrs
import torch
from tgi_cpu_kernels import MAX_QUANTIZED_FEATURES, Kernels, PackedInts

from tgi.weights.formats import IntegerWeight, Operations, PreparedWeight


@attrs.frozen(eq=False)
class PackedWeight(PreparedWeight):
    """A dense matrix in the order in which the kernels read it."""

    kernels: Kernels
    packed: torch.Tensor
    rows: int
    """Number of output features."""

    def multiply(
        self,
        device: Operations,  # noqa: ARG002
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        """Multiply, add in float32, and round once."""
        return self.kernels.linear(x, self.packed, self.rows, bias, residual)


@attrs.frozen(eq=False)
class PackedIntegers(PreparedWeight):
    """An `IntegerWeight` in the order in which the kernels read it."""

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
        packed = kernels.pack_ints(weight.numbers, weight.scales, weight.zeros, weight.bits, weight.group)
        return cls(kernels, packed, weight.order)

    def multiply(
        self,
        device: Operations,  # noqa: ARG002
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        """Multiply as defined, exactly within each group."""
        x = x if self.order is None else x[:, self.order]
        return self.kernels.quantized_linear(x, self.packed, bias, residual)
