"""Dense weights rounded to 4 bits at loading, in groups of input features (`--quantize int4`)."""

import torch

from .base import Rounding
from .int8 import Int8
from .integers import IntegerWeight, round_weight

GROUP = 64
"""Input features that share a scale: half a bit for each weight."""


class Int4(Rounding):
    """Weights in 4 bits and inputs in 8, in groups. The head, which decides between tokens, keeps 8 bits."""

    name = "int4"

    @property
    def head(self) -> Int8:
        """The format of the head."""
        return Int8()

    def bytes(self, out: int, size: int) -> int:
        """Count the numbers, and a scale and a zero for each group."""
        return out * (size // 2 + 5 * -(-size // GROUP))

    def round(self, matrix: torch.Tensor) -> IntegerWeight:
        """Round each group between its least and greatest number."""
        return round_weight(matrix, 4, GROUP, symmetric=False)
