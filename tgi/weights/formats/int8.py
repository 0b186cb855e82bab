"""Dense weights rounded to 8 bits at loading, with one scale for each output feature (`--quantize int8`)."""

from .integers import IntegerRounding


class Int8(IntegerRounding):
    """Weights and inputs in 8 bits; inputs are rounded by each row's own maximum."""

    name = "int8"
    bits = 8
    symmetric = True

    def group(self, size: int) -> int:
        """Return all."""
        return size
