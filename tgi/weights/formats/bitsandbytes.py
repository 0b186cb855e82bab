"""Weights in 4 or 8 bits as bitsandbytes writes them (Dettmers et al. 2023, arXiv 2305.14314).

In 8 bits a checkpoint has integers "x.weight" [out, in], and "x.SCB" [out], the greatest number of each row,
for which 127 stands. In 4 bits it has the matrix row after row in "x.weight", with two numbers in a byte,
"x.weight.quant_map" [16], what they stand for, and "x.weight.absmax", a factor for each 64. Factors that are
in 8 bits themselves are decoded likewise, by "x.weight.nested_quant_map" [256] and
"x.weight.nested_absmax", and have an offset in the JSON of "x.weight.quant_state.bitsandbytes__…".
"""

import json
import math
from collections.abc import Sequence
from typing import Any, Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .integers import IntegerWeight
from .stored import fuse, group_columns, groups_from, make_dense

_STATES = ("nf4", "fp4")


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class BitsAndBytes(WeightFormat):
    """Integers by row, or numbers of 4 bits, of which a device's table has 8."""

    name = "bitsandbytes"
    methods = frozenset({"bitsandbytes"})
    scope = "bitsandbytes of 8 bits, nf4 or fp4"

    bits: int

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the setting that asks for other tensors."""
        if "checkpoint_format" in config.data:  # GPTQModel's, whose tensors have other names
            return f"'checkpoint_format' is {config.data['checkpoint_format']!r}"
        if not config(bool, "load_in_4bit", False):
            return None if config(bool, "load_in_8bit", False) else "'load_in_8bit' is False"
        kind, storage = config(str, "bnb_4bit_quant_type", "fp4"), config.data.get("bnb_4bit_quant_storage")
        if kind not in _STATES:
            return f"'bnb_4bit_quant_type' is {kind!r}"
        return None if storage in (None, "uint8") else f"'bnb_4bit_quant_storage' is {storage!r}"

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the number of bits."""
        return cls(4 if config(bool, "load_in_4bit", False) else 8)

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the scales if the checkpoint lacks them."""
        name = f"{part.name}.absmax" if self.bits == 4 else f"{part.name.removesuffix('weight')}SCB"
        return None if part.index is None and name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read integers, or codes, or decode."""
        if self.bits == 8:
            return fuse(reader, self.name, parts, [_read_integers(reader, part) for part in parts])
        blocksize = _read_state(reader, parts[0].name)["blocksize"]
        if "nested" in reader.device.keeps and parts[0].shape[1] % blocksize == 0:
            return fuse(reader, self.name, parts, [_read_codes(reader, part) for part in parts])
        return make_dense(reader, self.name, parts, (_decode(reader, part) for part in parts))


def _read_integers(reader: Reader, part: TensorPart) -> LinearWeight:
    module, (out, size) = part.name.removesuffix(".weight"), part.shape
    rows, columns = (part.indices, None) if part.dim == 0 else (None, part.indices)
    numbers = reader.read_raw(attrs.evolve(part, transposed=False), torch.int8, kept=False)
    greatest = reader.read_raw(TensorPart(f"{module}.SCB", (out,), 0, rows), torch.float32, kept=False)
    reader.skip_zeros(f"{module}.weight_format")  # 0 means that rows are in order
    stored = (numbers.short() + 128).to(torch.uint8)
    return group_columns(stored, greatest[:, None] / 127, None, 8, size, columns.start if columns else 0)


def _read_stored(
    reader: Reader, name: str, count: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return the codes [count], what they stand for, the factor of each block, and the numbers in one."""
    state = _read_state(reader, name)
    octets = _raw(reader, name, [-(-count // 2), 1], torch.uint8)
    codes = torch.stack((octets >> 4, octets & 15), -1).flatten()[:count]
    table = _raw(reader, f"{name}.quant_map", [16], torch.float32)
    return codes, table, _read_factors(reader, name, count, state), state["blocksize"]


def _decode(reader: Reader, part: TensorPart) -> torch.Tensor:
    """Return the numbers of a part in float32."""
    out, size = part.shape
    codes, table, factors, block = _read_stored(reader, part.name, out * size)
    matrix = (table[codes.int()] * factors.repeat_interleave(block)[: out * size]).view(out, size)
    return matrix if part.indices is None else matrix[(slice(None),) * part.dim + (part.indices,)]


def _read_codes(reader: Reader, part: TensorPart) -> IntegerWeight:
    """Return a part whose blocks are within rows."""
    out, size = part.shape
    codes, table, factors, block = _read_stored(reader, part.name, out * size)
    places, step = _round_table(table)
    rows, columns = slice(None), slice(0, size)
    if part.indices is not None:
        rows, columns = (part.indices, columns) if part.dim == 0 else (rows, part.indices)
    numbers = codes.view(out, size)[rows, columns]
    group, chosen = groups_from(columns.start, numbers.shape[1], block)
    scales = factors.view(out, -1)[rows][:, chosen] * step
    return IntegerWeight(numbers, scales, None, 4, group, table=places)


def _round_table(table: torch.Tensor) -> tuple[tuple[int, ...], float]:
    """Return integers of 8 bits and the step in which they are nearest to the numbers of a table.

    Of nf4 and fp4 a number changes by 0.4% of the greatest at most, and weights by 0.2%; the formats
    themselves are off by 3.6% and 4.7% (root mean square, of blocks of 64 normally distributed weights).
    """
    if table.is_meta:
        return (0,) * 16, 1.0
    greatest = float(table.abs().max())
    steps = greatest / torch.linspace(64, 127, 253)
    rounded = (table[:, None] / steps).round()
    best = int((rounded * steps - table[:, None]).square().sum(0).argmin())
    return tuple(rounded[:, best].int().tolist()), float(steps[best])


def _read_factors(reader: Reader, name: str, count: int, state: dict[str, Any]) -> torch.Tensor:
    """Return the factor of each block."""
    count = -(-count // state["blocksize"])
    if f"{name}.nested_absmax" not in reader:
        return _raw(reader, f"{name}.absmax", [count], torch.float32)
    size = state["nested_blocksize"]
    codes = _raw(reader, f"{name}.absmax", [count], torch.uint8)
    table = _raw(reader, f"{name}.nested_quant_map", [256], torch.float32)
    factors = _raw(reader, f"{name}.nested_absmax", [math.ceil(count / size)], torch.float32)
    nested: torch.Tensor = table[codes.int()] * factors.repeat_interleave(size)[:count]
    return nested + float(state["nested_offset"])


def _read_state(reader: Reader, name: str) -> dict[str, Any]:
    """Return the settings of a weight, those of most checkpoints where there is no file."""
    content = b""
    for kind in _STATES:
        if (state := f"{name}.quant_state.bitsandbytes__{kind}") in reader:
            content = reader.read_bytes(state)
    return {"blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.0, **json.loads(content or "{}")}


def _raw(reader: Reader, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    return reader.read_raw(TensorPart(name, shape), dtype, kept=False)
