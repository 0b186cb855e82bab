"""Linear layers whose weights and inputs have 8 bits: e4m3 numbers, times a scale that the checkpoint has."""

from typing import NamedTuple

import attrs
import torch

FP8 = torch.float8_e4m3fn
FP8_LIMIT = 448.0
"""The greatest number of that dtype; a device may have less."""


class Scale(NamedTuple):
    """Of tensors that are kept in 8 bits. Both [] float32."""

    value: torch.Tensor
    """What the numbers are multiplied by, to have what they stand for,"""
    inverse: torch.Tensor
    """and what that is multiplied by to have the numbers."""

    @classmethod
    def of(cls, value: torch.Tensor) -> "Scale":
        """As a checkpoint has it."""
        return cls(value.float(), 1 / value.float())

    def doubled(self) -> "Scale":
        """For numbers that are half as great."""
        return Scale(2 * self.value, self.inverse / 2)

    def to(self, device: torch.device) -> "Scale":
        """The same there."""
        return Scale(self.value.to(device), self.inverse.to(device))


@attrs.frozen(eq=False)
class Fp8Weight:
    """What `Device.linear_fp8` takes."""

    numbers: torch.Tensor
    """[out, in] e4m3."""
    scales: torch.Tensor
    """[out] float32: of the rows of the numbers."""
    input: Scale
    """Of what the layer gets."""

    def to(self, device: torch.device) -> "Fp8Weight":
        """The same there."""
        return Fp8Weight(self.numbers.to(device), self.scales.to(device), self.input.to(device))

    def halved(self) -> "Fp8Weight":
        """The same with numbers that are half as great: exact, but for the last bit of some near 0."""
        numbers = (self.numbers.float() / 2).to(FP8)
        return Fp8Weight(numbers, 2 * self.scales, self.input.doubled())
