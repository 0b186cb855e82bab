"""Weights in 4 bits (e2m1) or 8 (e4m3) with a scale for 16 or 32 neighbours: NVFP4, MXFP4 and MXFP8.

Those of 8 bits are made dense while they are loaded. For "x.weight" [out, in] compressed-tensors has
"x.weight_packed" [out, in / 2] of 4 bits or "x.weight" of 8, and "x.weight_scale" [out, groups]: exponents of
2, or for NVFP4 e4m3, to be divided by "x.weight_global_scale". ModelOpt has NVFP4 in "x.weight"
[out, in / 2], and a factor "x.weight_scale_2".
"""

from collections.abc import Mapping
from typing import Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .compressed import fault_beside_weights, format_of, groups_of
from .dense import DenseWeight
from .fp8 import FP8, ScaledCache
from .integers import power
from .mxfp4 import float_weight
from .stored import fuse, make_dense

_GROUPS = {"nvfp4-pack-quantized": 16, "mxfp4-pack-quantized": 32, "mxfp8-quantized": 32, "modelopt": 16}
"""Numbers that share a scale, by the kind of packing."""


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class MicroFloats(ScaledCache, WeightFormat):
    """Floats of few bits in small groups."""

    name = "fp4"
    methods = frozenset({"compressed-tensors", "modelopt"})
    scope = "NVFP4, MXFP4 or MXFP8"

    packing: str

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether the first group of layers is packed so."""
        return super().means(config) and _packing(config) in _GROUPS

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for other tensors."""
        if config(str, "quant_method") == "modelopt":
            cache = config.data.get("kv_cache_quant_algo")
            return None if cache in (None, "FP8", "auto") else f"'kv_cache_quant_algo' is {cache!r}"
        packings = [format_of(config, group) for group in groups_of(config).values()]
        other = [packing for packing in packings if packing != packings[0]]
        return f"'format' is {other[0]!r}" if other else fault_beside_weights(config)

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the kind."""
        return cls(_packing(config))

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the scales if the checkpoint lacks them."""
        name = f"{part.name}_scale"
        return None if part.index is None and name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read the numbers, and expand those of 8 bits."""
        if self.packing == "mxfp8-quantized":
            return make_dense(reader, self.name, parts, (self._read(reader, part).dense() for part in parts))
        return fuse(reader, self.name, parts, [self._read(reader, part) for part in parts])

    def _read(self, reader: Reader, part: TensorPart) -> LinearWeight:
        (out, size), name, group = part.shape, part.name, _GROUPS[self.packing]
        rows, columns = (part.indices, None) if part.dim == 0 else (None, part.indices)

        def raw(kind: str, width: int, dtype: torch.dtype) -> torch.Tensor:
            return reader.read_raw(TensorPart(f"{name}{kind}", (out, width), 0, rows), dtype, kept=False)

        for kind in ("input_scale", "input_global_scale"):
            reader.dismiss(f"{part.module}.{kind}")
        powers, count = self.packing.startswith("mx"), -(-size // group)
        scales = raw("_scale", count, torch.uint8 if powers else FP8)
        if self.packing == "mxfp8-quantized":
            matrix = raw("", size, FP8).float() * power(scales).repeat_interleave(group, 1)[:, :size]
            return DenseWeight(matrix if columns is None else matrix[:, columns])
        octets = raw("" if self.packing == "modelopt" else "_packed", size // 2, torch.uint8)
        factor = 1 if powers else self._whole(reader, name)
        return float_weight(octets, scales, factor, group, columns)

    def _whole(self, reader: Reader, name: str) -> torch.Tensor:
        """Return the factor of all scales of an NVFP4 weight."""
        place = f"{name}_scale_2" if self.packing == "modelopt" else f"{name}_global_scale"
        shape = [1] if reader.has_shape(place, [1]) else []
        factor = reader.read_raw(TensorPart(place, shape), torch.float32, kept=False)
        return factor if self.packing == "modelopt" else 1 / factor


def _packing(config: JsonReader) -> str:
    if config(str, "quant_method") == "modelopt":
        return "modelopt" if config(str, "quant_algo", "") == "NVFP4" else ""
    groups: list[Mapping[str, object]] = list(groups_of(config).values())
    return format_of(config, groups[0]) if groups else ""
