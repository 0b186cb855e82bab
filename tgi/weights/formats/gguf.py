"""Blocks of llama.cpp's files, as `tgi.weights.convert` copies them from a GGUF file into a checkpoint.

For "x.weight" [out, in] a checkpoint has "x.Q4_K" [out, bytes of a row], or any other of TYPES. Numbers are
those of llama.cpp, bit for bit. In K types the scales of a block's groups are integers times one factor, and
so are its minima.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .dense import DenseWeight
from .integers import IntegerWeight
from .mxfp4 import DOUBLED
from .stored import fuse

_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Numbers that 4 bits of the IQ4 types stand for."""
_MIDDLE = 128


@attrs.frozen
class BlockType:
    """A kind of blocks."""

    features: int
    """Input features of a block."""
    bytes: int
    bits: int
    """Bits of the numbers as they are kept."""
    group: int
    """Input features that share a scale."""
    read: Callable[[torch.Tensor], Mapping[str, torch.Tensor]]
    """Returns the fields of an `IntegerWeight`, [out, blocks, each], of blocks [out, blocks, bytes] uint8."""
    table: tuple[int, ...] | None = None

    def weight(self, rows: torch.Tensor) -> IntegerWeight:
        """Return the weight in rows [out, bytes of a row]."""
        blocks = rows.view(len(rows), -1, self.bytes)
        fields: dict[str, Any] = {name: each.flatten(1) for name, each in self.read(blocks).items()}
        return IntegerWeight(**{"zeros": None, **fields}, bits=self.bits, group=self.group, table=self.table)


def _float(octets: torch.Tensor) -> torch.Tensor:
    return octets.contiguous().view(torch.float16).float()


def _nibbles(octets: torch.Tensor) -> torch.Tensor:
    """Return the low halves of bytes [..., n], and then the high ones, [..., 2n]."""
    return torch.cat([octets & 15, octets >> 4], -1)


def _pieces(octets: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the lowest bits of bytes [..., n], then the next ones, and so on, [..., 8 / bits * n]."""
    return torch.cat([(octets >> shift) & (2**bits - 1) for shift in range(0, 8, bits)], -1)


def _bits(octets: torch.Tensor) -> torch.Tensor:
    """Return the bits of bytes [..., n] in their order, [..., 8n]."""
    return torch.stack([(octets >> shift) & 1 for shift in range(8)], -1).flatten(-2)


def _halves(octets: torch.Tensor, count: int) -> torch.Tensor:
    """Divide bytes [..., n] into `count` rows."""
    return octets.reshape(*octets.shape[:-1], count, -1)


def _q4_0(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {"scales": _float(b[..., :2]), "numbers": _nibbles(b[..., 2:])}


def _q4_1(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    scales, minima = _float(b[..., :2]), -_float(b[..., 2:4])
    ones = torch.ones_like(minima, dtype=torch.uint8)
    return {"scales": scales, "minima": minima, "zeros": ones, "numbers": _nibbles(b[..., 4:])}


def _q5_0(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    numbers = _nibbles(b[..., 6:]) | _bits(b[..., 2:6]) << 4
    return {"scales": _float(b[..., :2]), "numbers": numbers + (_MIDDLE - 16)}


def _q5_1(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    numbers = _nibbles(b[..., 8:]) | _bits(b[..., 4:8]) << 4
    return {**_q4_1(b), "numbers": numbers}


def _q8_0(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {"scales": _float(b[..., :2]), "numbers": b[..., 2:] ^ _MIDDLE}


def _q2_k(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {
        "scales": _float(b[..., 80:82]),
        "shares": (b[..., :16] & 15).view(torch.int8),
        "minima": _float(b[..., 82:84]),
        "zeros": b[..., :16] >> 4,
        "numbers": _pieces(_halves(b[..., 16:80], 2), 2).flatten(-2),
    }


def _q3_k(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    low, high = _nibbles(b[..., 96:104]), _pieces(b[..., 104:108], 2)
    numbers = _pieces(_halves(b[..., 32:96], 2), 2).flatten(-2) | _pieces(b[..., :32], 1) << 2
    shares = (low | high << 4).view(torch.int8) - 32
    return {"scales": _float(b[..., 108:110]), "shares": shares, "numbers": numbers + 4}


def _nested(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """Read the scales and minima of Q4_K and Q5_K: 6 bits each, of which the second half is scattered."""
    first, second, third = b[..., 4:8], b[..., 8:12], b[..., 12:16]
    shares = torch.cat([first & 63, (third & 15) | (first >> 6) << 4], -1).view(torch.int8)
    zeros = torch.cat([second & 63, third >> 4 | (second >> 6) << 4], -1)
    return {"scales": _float(b[..., :2]), "shares": shares, "minima": _float(b[..., 2:4]), "zeros": zeros}


def _q4_k(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {**_nested(b), "numbers": _nibbles(_halves(b[..., 16:], 4)).flatten(-2)}


def _q5_k(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    low = _nibbles(_halves(b[..., 48:], 4)).flatten(-2)
    return {**_nested(b), "numbers": low | _pieces(b[..., 16:48], 1) << 4}


def _q6_k(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    low, high = _nibbles(_halves(b[..., :128], 2)), _pieces(_halves(b[..., 128:192], 2), 2)
    numbers = (low | high << 4).flatten(-2) + (_MIDDLE - 32)
    shares = b[..., 192:208].contiguous().view(torch.int8)
    return {"scales": _float(b[..., 208:210]), "shares": shares, "numbers": numbers}


def _iq4_nl(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    return {"scales": _float(b[..., :2]), "numbers": _nibbles(b[..., 2:])}


def _mxfp4(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    halves = torch.full_like(b[:, :1, :1], 0.5, dtype=torch.float32)
    return {"scales": halves, "shares": b[..., :1], "numbers": _nibbles(b[..., 1:])}


def _iq4_xs(b: torch.Tensor) -> Mapping[str, torch.Tensor]:
    low = torch.stack([b[..., 4:8] & 15, b[..., 4:8] >> 4], -1).flatten(-2)
    high = torch.stack([(b[..., 2:4] >> shift) & 3 for shift in range(0, 8, 2)], -1).flatten(-2)
    shares = (low | high << 4).view(torch.int8) - 32
    numbers = _nibbles(_halves(b[..., 8:], 8)).flatten(-2)
    return {"scales": _float(b[..., :2]), "shares": shares, "numbers": numbers}


TYPES = {
    "Q4_K": BlockType(256, 144, 4, 32, _q4_k),
    "Q6_K": BlockType(256, 210, 8, 16, _q6_k),
    "Q8_0": BlockType(32, 34, 8, 32, _q8_0),
    "Q4_0": BlockType(32, 18, 4, 32, _q4_0),
    "Q4_1": BlockType(32, 20, 4, 32, _q4_1),
    "Q5_0": BlockType(32, 22, 8, 32, _q5_0),
    "Q5_1": BlockType(32, 24, 8, 32, _q5_1),
    "Q2_K": BlockType(256, 84, 4, 16, _q2_k),
    "Q3_K": BlockType(256, 110, 4, 16, _q3_k),
    "Q5_K": BlockType(256, 176, 8, 32, _q5_k),
    "IQ4_NL": BlockType(32, 18, 4, 32, _iq4_nl, _NONLINEAR),
    "IQ4_XS": BlockType(256, 136, 4, 32, _iq4_xs, _NONLINEAR),
    "MXFP4": BlockType(32, 17, 4, 32, _mxfp4, DOUBLED),
}
"""Blocks that can be kept, by llama.cpp's names."""


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class Gguf(WeightFormat):
    """Blocks of several types, each layer in one of them."""

    name = "gguf"
    methods = frozenset({"gguf"})
    scope = f"blocks of {', '.join(TYPES)}"
    has_tables = True

    types: Sequence[str]

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first type that is not known."""
        unknown = [each for each in config(list, "types", []) if each not in TYPES]
        return f"'types' has {unknown[0]!r}" if unknown else None

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the types."""
        return cls(config(list, "types", list(TYPES)))

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the blocks if the checkpoint lacks them."""
        names = [f"{part.module}.{kind}" for kind in self.types]
        return None if any(name in reader for name in names) else names[0]

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read the blocks."""
        return fuse(reader, self.name, parts, [self._read(reader, part) for part in parts])

    def _read(self, reader: Reader, part: TensorPart) -> LinearWeight:
        chosen = next(kind for kind in self.types if f"{part.module}.{kind}" in reader)
        (out, size), kind = part.shape, TYPES[chosen]
        count, indices, columns = size // kind.features * kind.bytes, part.indices, None
        if part.dim == 1 and indices is not None:
            if indices.start % kind.features or indices.stop % kind.features:
                columns, indices = indices, None
            else:
                indices = slice(*(end // kind.features * kind.bytes for end in (indices.start, indices.stop)))
        name, turned = f"{part.module}.{chosen}", False
        place = attrs.evolve(part, name=name, shape=(out, count), indices=indices, transposed=turned)
        weight = kind.weight(reader.read_raw(place, torch.uint8, kept=False))
        return weight if columns is None else _cut(weight, columns, kind.features)


def _cut(weight: IntegerWeight, columns: slice, features: int) -> LinearWeight:
    """Return some columns of a weight, whose blocks have `features`; it is dense if they cut a group."""
    start, stop, group = columns.start, columns.stop, weight.group
    if start % group or stop % group:
        return DenseWeight(weight.dense()[:, columns])
    step = math.gcd(start, stop, features)
    cut: dict[str, Any] = {"numbers": weight.numbers[:, columns]}
    for name, width in {"scales": features, "minima": features, "shares": group, "zeros": group}.items():
        each = getattr(weight, name)
        if each is not None and each.shape[1] > 1:
            size = step if width == features else group
            cut[name] = each.repeat_interleave(width // size, 1)[:, start // size : stop // size]
    return attrs.evolve(weight, **cut)
