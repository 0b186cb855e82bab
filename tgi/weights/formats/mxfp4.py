"""Experts in 4 bits (e2m1) with a scale in 8 bits (a power of 2) for 32 numbers, as gpt-oss has them.

For all experts together a checkpoint has "x_blocks", [experts, out, in / 32, 16] with two numbers in a byte,
and "x_scales", [experts, out, in / 32].
"""

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .integers import IntegerWeight
from .stored import fuse, groups_from

GROUP = 32
"""Numbers that share a scale."""
DOUBLED = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
"""Twice the numbers by their code, of whose bits the highest is the sign."""


class Mxfp4(WeightFormat):
    """Stacked experts in MXFP4; other weights are dense."""

    name = "mxfp4"
    methods = frozenset({"mxfp4"})
    scope = "experts in MXFP4"

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:  # noqa: ARG003
        """Return None: the format has one variant."""
        return None

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the blocks, if the weight is no expert's or the checkpoint lacks them."""
        name = f"{part.name}_blocks"
        return None if part.index is not None and name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read the experts' numbers, stored by rows even where the dense tensor is not."""
        return fuse(reader, self.name, parts, [_read(reader, part) for part in parts])


def _read(reader: Reader, part: TensorPart) -> IntegerWeight:
    (rows, width), cut = part.shape, part.indices if part.dim == 0 else None
    stacked = attrs.evolve(part, dim=0, indices=cut, transposed=False)

    def raw(kind: str, *rest: int) -> torch.Tensor:
        place = attrs.evolve(stacked, name=f"{part.name}_{kind}", shape=(rows, width // GROUP, *rest))
        return reader.read_raw(place, torch.uint8, kept=False)

    octets, scales = raw("blocks", GROUP // 2).flatten(1), raw("scales")
    return float_weight(octets, scales, 1, GROUP, part.indices if part.dim == 1 else None)


def float_weight(
    octets: torch.Tensor,
    scales: torch.Tensor,
    factor: torch.Tensor | float,
    group: int,
    columns: slice | None,
) -> IntegerWeight:
    """Return the weight, or some columns, with the numbers in bytes [rows, in / 2].

    The low half of a byte is the first of its two numbers. A scale [rows, in / group] times a factor []
    belongs to each `group`.
    """
    numbers = torch.stack((octets & 15, octets >> 4), -1).flatten(-2)
    start, numbers = (0, numbers) if columns is None else (columns.start, numbers[:, columns])
    step, chosen = groups_from(start, numbers.shape[1], group)
    whole = factor / 2 * torch.ones(len(numbers), 1, device=numbers.device)
    return IntegerWeight(numbers, whole, None, 4, step, shares=scales[:, chosen], table=DOUBLED)
