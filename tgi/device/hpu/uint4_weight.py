"""Weights of 4 bits that the card expands by a kernel of its own in each step."""

from typing import Self

import attrs
import torch

from tgi.weights.formats import IntegerWeight, Operations, PreparedWeight

from .bridge import Bridge

BITS = 4
_WORD = 8
"""Numbers in a word of 32 bits."""


@attrs.frozen(eq=False)
class Uint4Weight(PreparedWeight):
    """An `IntegerWeight` in the order in which `convert_from_uint4` reads it; inputs are not rounded."""

    bridge: Bridge
    numbers: torch.Tensor
    """Words [in, out / 8] int32 of eight output features each, the first in the lowest bits."""
    scales: torch.Tensor
    """Factors [groups, out] in the dtype of the model."""
    zeros: torch.Tensor
    """Words [groups, out / 8] int32."""
    order: torch.Tensor | None

    @staticmethod
    def takes(weight: IntegerWeight) -> bool:
        """Return whether the kernel has such weights: whole words of output features, and equal groups."""
        out, size = weight.numbers.shape
        return weight.bits == BITS and out % _WORD == 0 and size % weight.scales.shape[1] == 0

    @classmethod
    def of(cls, bridge: Bridge, weight: IntegerWeight, dtype: torch.dtype, place: torch.device) -> Self:
        """Pack a weight, and put it on the card."""
        order = None if weight.order is None else weight.order.int().to(place)
        scales = weight.scales.T.to(dtype).contiguous().to(place)
        return cls(
            bridge, _pack(weight.numbers).to(place), scales, _pack(weight.zeros_or_middle).to(place), order
        )

    def multiply(
        self,
        device: Operations,  # noqa: ARG002
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Expand the weight and multiply."""
        assert self.bridge.from_uint4 is not None
        weight = self.bridge.from_uint4(self.numbers, self.scales, self.zeros, x.dtype)
        y = (x if self.order is None else x.index_select(1, self.order)) @ weight
        y = y if bias is None else y + bias
        return y if residual is None else residual + y


def _pack(numbers: torch.Tensor) -> torch.Tensor:
    """Return numbers [out, any] uint8 as words [any, out / 8] int32."""
    columns = numbers.T.contiguous()
    pairs = columns[:, ::2] | (columns[:, 1::2] << BITS)
    return pairs.flatten().view(torch.int32).view(len(columns), -1)  # a single row may have any stride
