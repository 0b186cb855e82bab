"""Weights of integers in the order in which the kernels read them."""

from dataclasses import dataclass

import torch

from .interface import SHARE_KINDS, UNIT


@dataclass(frozen=True, eq=False)
class PackedInts:
    """A weight [n, k] of integers in the order that `Kernels.quantized_linear` reads; made by `pack_ints`."""

    numbers: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    n: int
    k: int
    bits: int
    group: int
    """Input features that share a scale, rounded up to a multiple of 8."""
    shares: torch.Tensor | None = None
    minima: torch.Tensor | None = None
    span: int = 1
    """Groups that share a factor in `scales` and `minima`."""
    table: torch.Tensor | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Bits, group, span, and the kind of shares."""
        return self.bits, self.group, self.span, 0 if self.shares is None else SHARE_KINDS[self.shares.dtype]

    def rows(self, indices: torch.Tensor) -> list[torch.Tensor | None]:
        """Return the numbers [m, k], scales, zeros, shares and minima of rows by their indices [m]."""
        unit, column = indices // UNIT, indices % UNIT
        octets = self.numbers.view(-(-self.n // UNIT), -1, UNIT, 4)[unit, :, column]
        if self.bits == 4:
            octets = torch.stack([octets & 15, octets >> 4], 2)
        others = (self.scales, self.zeros, self.shares, self.minima)
        return [
            octets.flatten(1)[:, : self.k],
            *(each if each is None else each[unit, :, column] for each in others),
        ]


def by_unit(columns: torch.Tensor) -> torch.Tensor:
    """Return numbers [n, groups] of the output columns as [units, groups, UNIT], padded with 0."""
    n, groups = columns.shape
    padded = columns.new_zeros(-(-n // UNIT) * UNIT, groups)
    padded[:n] = columns
    return padded.view(-1, UNIT, groups).transpose(1, 2).contiguous()
