"""Dense weights rounded to 4 bits at loading, in groups of input features (`--quantize int4`)."""

from .int8 import Int8
from .integers import IntegerRounding

GROUP = 64
"""Input features that share a scale and a zero, which take 5/8 of a bit for each weight."""


class Int4(IntegerRounding):
    """Weights in 4 bits and inputs in 8, in groups. The head, which decides between tokens, keeps 8 bits."""

    name = "int4"
    bits = 4
    symmetric = False

    @property
    def head(self) -> Int8:
        """The format of the head."""
        return Int8()

    def group(self, size: int) -> int:  # noqa: ARG002
        """Return GROUP."""
        return GROUP
