"""Dense weights rounded to 8 bits at loading, with one scale for each output feature (`--quantize int8`)."""

import torch

from .base import Rounding
from .integers import IntegerWeight, round_weight


class Int8(Rounding):
    """Weights and inputs in 8 bits; inputs are rounded by each row's own maximum."""

    name = "int8"

    def bytes(self, out: int, size: int) -> int:
        """Count the numbers and a scale for each row."""
        return out * (size + 4)

    def round(self, matrix: torch.Tensor) -> IntegerWeight:
        """Round a matrix row by row, 0 in the middle."""
        return round_weight(matrix, 8, matrix.shape[1], symmetric=True)
