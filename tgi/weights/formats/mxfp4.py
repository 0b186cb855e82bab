"""Experts in 4 bits (e2m1) with a scale in 8 bits (a power of 2) for 32 numbers, as gpt-oss has them.

The weights are made dense when they are loaded. For all experts together a checkpoint has
"x_blocks", [experts, out, in / 32, 16] with two numbers in a byte, and "x_scales", [experts, out, in / 32].
"""

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import Reader, WeightFormat
from .dense import DenseWeight
from .stored import make_dense

GROUP = 32
"""Numbers that share a scale."""
_BIAS = 127
"""Exponent that is stored for a scale of 1."""
_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Numbers without sign by their code."""


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

    def read(self, reader: Reader, *parts: TensorPart) -> DenseWeight:
        """Read and expand the experts' numbers, stored by rows even where the dense tensor is not."""
        return make_dense(reader, self.name, parts, (_read(reader, part) for part in parts))


def _read(reader: Reader, part: TensorPart) -> torch.Tensor:
    (rows, width), cut = part.shape, part.indices if part.dim == 0 else None
    stacked = attrs.evolve(part, dim=0, indices=cut, transposed=False)

    def raw(kind: str, *rest: int) -> torch.Tensor:
        place = attrs.evolve(stacked, name=f"{part.name}_{kind}", shape=(rows, width // GROUP, *rest))
        return reader.read_raw(place, torch.uint8, kept=False)

    numbers = expand(raw("blocks", GROUP // 2), raw("scales"))
    return numbers if part.dim == 0 or part.indices is None else numbers[:, part.indices]


def expand(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the numbers [rows, in] of blocks [rows, in / 32, 16] and scales [rows, in / 32]."""
    return (decode(blocks) * power(scales)[..., None]).flatten(-2)


def decode(octets: torch.Tensor) -> torch.Tensor:
    """Return the numbers [..., 2n] float32 in bytes [..., n].

    The low half of a byte is the first of its two numbers; of its four bits the highest is the sign.
    """
    codes = torch.tensor([*_NUMBERS, *(-number for number in _NUMBERS)], device=octets.device)
    return codes[torch.stack((octets & 15, octets >> 4), -1).flatten(-2).int()]


def power(exponents: torch.Tensor) -> torch.Tensor:
    """Return the scales, in float32, whose exponents are stored."""
    return (exponents.float() - _BIAS).exp2()
