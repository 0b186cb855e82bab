"""Dense weights rounded to fp8 (e4m3) at loading, with a scale for each output feature (`--quantize fp8`)."""

import torch

from .base import WeightFormat
from .dense import Dense
from .fp8 import FP8, FP8_LIMIT, Fp8Weight, row_scale
from .rounding import Rounding


class RoundedFp8(Rounding):
    """Weights and inputs in fp8; inputs are rounded by each row's own maximum. The head is not rounded."""

    name = "fp8"

    @property
    def head(self) -> WeightFormat:
        """The format of the head."""
        return Dense()

    def bytes(self, out: int, size: int) -> int:
        """Return the bytes of numbers and scales."""
        return out * (size + 4)

    def round(self, matrix: torch.Tensor) -> Fp8Weight:
        """Round each row by its greatest number."""
        scale = row_scale(matrix, FP8_LIMIT)
        return Fp8Weight((matrix.float() * scale.inverse).to(FP8), scale.value[:, 0], None)
