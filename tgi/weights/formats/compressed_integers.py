"""Integers of 2 to 8 bits as the library compressed-tensors writes them.

For "x.weight" [out, in] a checkpoint has "x.weight_packed", packed along in ("pack-quantized"), or
numbers of 8 bits in "x.weight" itself ("int-quantized"), "x.weight_scale" [out, groups], and perhaps
"x.weight_zero_point" and the groups of input features, "x.weight_g_idx" [in]. Inputs are never rounded by the
scales in the file: devices that multiply integers round them by each row's own maximum.
"""

from collections.abc import Mapping
from typing import Any, Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .compressed import Group, fault_beside_weights, format_of, group_for, groups_of, stores_integers
from .fp8 import ScaledCache
from .packed import read_packed
from .stored import fuse, group_columns

_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")
_STRATEGIES = ("group", "channel", "tensor")
_ORDERED = (True, "group", "dynamic")
"""Values of "actorder" with which a checkpoint has "weight_g_idx"."""
_INPUTS = ("input_scale", "input_zero_point")


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class CompressedIntegers(ScaledCache, WeightFormat):
    """Integers, packed or not; each layer has the settings of a group."""

    name = "compressed-tensors"
    methods = frozenset({"compressed-tensors"})
    scope = "integers of 2 to 8 bits by group, channel or tensor"

    groups: Mapping[str, Group]

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether the groups have integers."""
        return super().means(config) and stores_integers(config)

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for something else."""
        groups = groups_of(config)
        for name, group in groups.items():
            packing = format_of(config, group)
            if packing not in _FORMATS:
                return f"'format' is {packing!r}"
            if not _is_known(group.get("weights")):
                return f"'weights' of {name!r} is {group.get('weights')!r}"
        return fault_beside_weights(config)

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the groups."""
        groups = groups_of(config)
        return cls({name: {**each, "format": format_of(config, each)} for name, each in groups.items()})

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the scales if the checkpoint lacks them."""
        name = f"{part.name}_scale"
        return None if part.index is None and name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read and unpack."""
        return fuse(reader, self.name, parts, [self._read(reader, part) for part in parts])

    def _read(self, reader: Reader, part: TensorPart) -> LinearWeight:
        (out, size), module = part.shape, part.module
        layer = group_for(self.groups, module)
        weights: dict[str, Any] = layer["weights"]
        bits, grouped = weights["num_bits"], weights.get("strategy") == "group"
        group = weights["group_size"] if grouped else size
        packed, symmetric = layer["format"] == "pack-quantized", weights.get("symmetric", True)
        rows, columns = (part.indices, None) if part.dim == 0 else (None, part.indices)
        scales = TensorPart(f"{part.name}_scale", (out, -(-size // group)), 0, rows)
        zeros = attrs.evolve(scales, name=f"{part.name}_zero_point")
        offset = 2 ** (bits - 1)
        if packed:
            whole = attrs.evolve(part, name=f"{part.name}_packed")
            numbers = read_packed(reader, whole, bits, 1)
            reader.dismiss(f"{part.name}_shape")
        else:
            numbers = _unsigned(reader.read_raw(part, torch.int8, kept=False), offset)
        middles = None
        if symmetric:
            reader.skip_zeros(zeros.name)
        elif packed:
            middles = read_packed(reader, zeros, bits, 0).T
        else:
            middles = _unsigned(_read_rows(reader, zeros, torch.int8), offset)
        for kind in _INPUTS:
            reader.dismiss(f"{module}.{kind}")
        groups = None
        if grouped and weights.get("actorder") in _ORDERED:
            index = TensorPart(f"{part.name}_g_idx", (size,), 0, columns)
            groups = reader.read_raw(index, torch.int32, kept=False)
        start = 0 if columns is None else columns.start
        factors = _read_rows(reader, scales, torch.float32)
        return group_columns(numbers, factors, middles, bits, group, start, groups)


def _is_known(weights: Any) -> bool:
    return isinstance(weights, dict) and (
        weights.get("type", "int") == "int"
        and weights.get("num_bits") in range(2, 9)
        and weights.get("strategy") in _STRATEGIES
        and (weights["strategy"] != "group" or isinstance(weights.get("group_size"), int))
        and not weights.get("dynamic")
    )


def _unsigned(numbers: torch.Tensor, offset: int) -> torch.Tensor:
    return (numbers.short() + offset).to(torch.uint8)


def _read_rows(reader: Reader, part: TensorPart, dtype: torch.dtype) -> torch.Tensor:
    """Return a part [rows, groups]; the checkpoint may have one number for all rows."""
    if part.shape[1] == 1 and not reader.has_shape(part.name, list(part.shape)):
        for shape in ([1], []):
            if reader.has_shape(part.name, shape):
                number = reader.read_raw(TensorPart(part.name, shape), dtype, kept=False)
                return number.reshape(1, 1).expand(part.size[0], 1)
    return reader.read_raw(part, dtype, kept=False)
