"""Weights as the library torchao writes them to safetensors.

For "x.weight" [out, in] a checkpoint has "x._weight_qdata" [out, in], integers of 8 bits, of which some kinds
use fewer, or e4m3; "x._weight_scale" [out, groups]; and for integers "x._weight_zero_point", likewise.
"""

from collections.abc import Mapping
from typing import Any, Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .fp8 import FP8, Fp8Weight
from .stored import fuse, group_columns, make_dense

_FLOATS = ("Float8WeightOnlyConfig", "Float8DynamicActivationFloat8WeightConfig")
_INTEGERS = (
    "Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig", "IntxWeightOnlyConfig",
    "Int8DynamicActivationIntxWeightConfig",
)  # fmt: skip
_SYMMETRIC = ("SYMMETRIC", "SYMMETRIC_NO_CLIPPING_ERR")


@attrs.frozen
class Kind:
    """The forms in which a checkpoint stores its layers."""

    bits: int
    """Bits of integers; 0 of floats."""
    group: int
    """Input features that share a scale; 0: all; -1: a whole tensor has one scale."""
    symmetric: bool


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class TorchAo(WeightFormat):
    """Integers or fp8, one kind for all layers."""

    name = "torchao"
    methods = frozenset({"torchao"})
    scope = "torchao's Int8, Intx and Float8 weights by row or group"

    kind: Kind

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for other tensors."""
        if config.data.get("include_input_output_embeddings"):
            return "'include_input_output_embeddings' is true"
        kind, settings = _settings(config)
        if kind not in (*_FLOATS, *_INTEGERS):
            return f"'quant_type' is {kind!r}"
        packing = _value(settings.get("intx_packing_format"), "UNPACKED_TO_INT8")
        if packing != "UNPACKED_TO_INT8":
            return f"'intx_packing_format' is {packing!r}"
        if kind in _FLOATS and _value(settings.get("weight_dtype"), "float8_e4m3fn") != "float8_e4m3fn":
            return "'weight_dtype' is no float8_e4m3fn"
        if _group(settings) is None or (kind in _INTEGERS and _group(settings) == -1):
            return f"'granularity' is {_granularity(settings)!r}"
        return None

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the kind."""
        kind, settings = _settings(config)
        bits = (
            int(_value(settings.get("weight_dtype"), "int8").removeprefix("int")) if kind in _INTEGERS else 0
        )
        mapping = settings.get("weight_mapping_type", settings.get("mapping_type"))
        return cls(Kind(bits, _group(settings) or 0, _value(mapping, "SYMMETRIC") in _SYMMETRIC))

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the numbers if the checkpoint lacks them."""
        name = f"{_beginning(part)}qdata"
        return None if part.index is None and name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read the numbers."""
        if self.kind.bits:
            return fuse(reader, self.name, parts, [self._read_integers(reader, part) for part in parts])
        kept = "fp8" in reader.device.keeps and self.kind.group <= 0
        numbers = [reader.read_raw(_part_of(part, "qdata"), FP8, kept) for part in parts]
        scales = [self._read_scales(reader, part) for part in parts]
        if kept:
            return Fp8Weight(torch.cat(numbers), torch.cat(scales)[:, 0], None)
        pairs = zip(numbers, scales, strict=True)
        return make_dense(reader, self.name, parts, (piece.float() * one for piece, one in pairs))

    def _read_scales(self, reader: Reader, part: TensorPart) -> torch.Tensor:
        """Return the scales [out, 1] of a part in fp8."""
        if self.kind.group == -1:
            name = f"{_beginning(part)}scale"
            return reader.read_raw(TensorPart(name, (1, 1)), torch.float32, kept=False).expand(
                part.size[0], 1
            )
        return self._read_groups(reader, part, "scale", torch.float32)

    def _read_groups(self, reader: Reader, part: TensorPart, kind: str, dtype: torch.dtype) -> torch.Tensor:
        """Return the numbers [out, groups] of all groups of a part's rows."""
        out, size = part.shape
        shape, rows = (out, size // (self.kind.group or size)), part.indices if part.dim == 0 else None
        return reader.read_raw(TensorPart(f"{_beginning(part)}{kind}", shape, 0, rows), dtype, kept=False)

    def _read_integers(self, reader: Reader, part: TensorPart) -> LinearWeight:
        middle, zeros = 2 ** (self.kind.bits - 1), None
        numbers = reader.read_raw(_part_of(part, "qdata"), torch.int8, kept=False)
        scales = self._read_groups(reader, part, "scale", torch.float32)
        if self.kind.symmetric:
            reader.skip_zeros(f"{_beginning(part)}zero_point")
        else:
            zeros = (self._read_groups(reader, part, "zero_point", torch.int16) + middle).to(torch.uint8)
        stored, group = (numbers.short() + middle).to(torch.uint8), self.kind.group or part.shape[1]
        start = part.indices.start if part.dim == 1 and part.indices is not None else 0
        return group_columns(stored, scales, zeros, self.kind.bits, group, start)


def _beginning(part: TensorPart) -> str:
    """Return the beginning of the names of a weight's tensors."""
    return f"{part.module}._weight_"


def _part_of(part: TensorPart, kind: str) -> TensorPart:
    return attrs.evolve(part, name=f"{_beginning(part)}{kind}", transposed=False)


def _settings(config: JsonReader) -> tuple[str, Mapping[str, Any]]:
    """Return the type and the settings of the config of all layers."""
    kinds = config(dict, "quant_type", {})
    chosen = kinds.get("default") if len(kinds) == 1 else None
    if not isinstance(chosen, dict):
        return ", ".join(kinds), {}
    return str(chosen.get("_type")), chosen.get("_data") or {}


def _value(member: Any, default: str) -> str:
    """Return the name of a member of an enumeration, or of a dtype."""
    return str(member["_data"]) if isinstance(member, dict) else default


def _granularity(settings: Mapping[str, Any]) -> Any:
    chosen = settings.get("weight_granularity", settings.get("granularity"))
    return chosen[-1] if isinstance(chosen, list) and chosen else chosen


def _group(settings: Mapping[str, Any]) -> int | None:
    """Return `Kind.group`; None if it is of another kind."""
    chosen = _granularity(settings)
    if not isinstance(chosen, dict):
        return 0 if chosen is None and not settings.get("group_size") else None
    if chosen.get("_type") == "PerGroup":
        return int(chosen["_data"]["group_size"])
    return {"PerRow": 0, "PerAxis": 0, "PerTensor": -1}.get(str(chosen.get("_type")))
