"""Weights in 8 bits (e4m3) with scales by tensor, by channel or by block.

Beside the numbers "x.weight" [out, in] a checkpoint has "x.weight_scale" or "x.weight_scale_inv": [] or [1],
[out] or [out, 1], or a scale for each block. Written by compressed-tensors, AutoFP8, FBGEMM, ModelOpt and
GPTQModel, and for DeepSeek and Qwen. A device that keeps fp8 rounds each row of its inputs by its own
greatest number. Where a row has several scales, and on other devices, weights are made dense while they are
loaded.
"""

from typing import Any, Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Reader, WeightFormat
from .compressed import fault_beside_weights, format_of, group_for, groups_of, stores_integers
from .fp8 import FORMATS, FP8, Fp8Weight, ScaledCache
from .stored import make_dense

_CHANNELS = "FP8_PER_CHANNEL_PER_TOKEN"
"""ModelOpt's name for scales by channel."""
_SUFFIXES = ("_scale_inv", "_scale")


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class WideFp8(ScaledCache, WeightFormat):
    """Any fp8 whose inputs have no fixed scales."""

    name = "fp8"
    methods = frozenset({"fp8", "compressed-tensors", "fbgemm_fp8", "modelopt"})
    scope = "e4m3 weights by tensor, channel or block"

    blocks: "dict[str, Any]"
    """Groups of layers as in compressed-tensors' "config_groups"."""
    inverse: bool = False
    """Whether scales are factors from real to stored, as GPTQModel writes them."""

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether no layer has integers."""
        if config(str, "quant_method", "none") == "modelopt":
            return config(str, "quant_algo", "") == _CHANNELS
        return super().means(config) and not stores_integers(config)

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for something else."""
        if config(str, "quant_method") != "compressed-tensors":
            kind = config.data.get("fmt", config.data.get("format", "e4m3"))
            return None if kind in ("e4m3", "float8_e4m3fn") else f"'fmt' is {kind!r}"
        groups = groups_of(config)
        for name, group in groups.items():
            packing = format_of(config, group)
            if packing not in FORMATS:
                return f"'format' is {packing!r}"
            if not _is_known(group.get("weights")):
                return f"'weights' of {name!r} is {group.get('weights')!r}"
        return fault_beside_weights(config) if groups else "'config_groups' is empty"

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the groups, or the only one that other methods have."""
        method = config(str, "quant_method")
        if method == "compressed-tensors":
            return cls(groups_of(config))
        block = config(list, "weight_block_size", None)
        weights = {"strategy": "block", "block_structure": block}
        if not block:
            by_row = method in ("fbgemm_fp8", "modelopt") or config(str, "weight_scale_method", "") == "row"
            weights = {"strategy": "channel" if by_row else "tensor"}
        return cls({"all": {"targets": ["Linear"], "weights": weights}}, has_inverse_scales(config))

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the weight's scale if the checkpoint lacks it."""
        known = part.index is None and any(f"{part.name}{suffix}" in reader for suffix in _SUFFIXES)
        return None if known else f"{part.name}_scale"

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read numbers and scales; those of a weight that the device does not keep are multiplied."""
        scales = [self._read_scales(reader, part) for part in parts]
        if "fp8" in reader.device.keeps and all(one.shape[1] == 1 for one in scales):
            numbers = torch.cat([reader.read_raw(part, FP8) for part in parts])
            return Fp8Weight(numbers, torch.cat(scales)[:, 0], None)
        pairs = zip(parts, scales, strict=True)
        dense = (reader.read_raw(part, FP8, kept=False).float() * one for part, one in pairs)
        return make_dense(reader, self.name, parts, dense)

    def _read_scales(self, reader: Reader, part: TensorPart) -> torch.Tensor:
        """Return the scales [out, 1] of a part's rows, or [out, in] of its numbers if a row has several."""
        module, (out, size) = part.module, part.shape
        weights = group_for(self.blocks, module)["weights"]
        height, width = {
            "block": weights.get("block_structure"), "channel": (1, size), "tensor": (out, size),
        }[weights["strategy"]]  # fmt: skip
        name = next(name for suffix in _SUFFIXES if (name := f"{part.name}{suffix}") in reader)
        scales = _read_scales(reader, name, [-(-out // height), -(-size // width)])
        scales = 1 / scales if self.inverse else scales
        for kind in ("input_scale", "input_scale_ub"):
            reader.dismiss(f"{module}.{kind}")
        rows, columns = torch.arange(out) // height, torch.arange(size) // width
        if part.indices is not None:
            rows, columns = (rows[part.indices], columns) if part.dim == 0 else (rows, columns[part.indices])
        return scales[rows] if scales.shape[1] == 1 else scales[rows][:, columns]


def has_inverse_scales(config: JsonReader) -> bool:
    """Whether scales are factors from real to stored; "weight_scale_inv" of other tools are not."""
    return config(str, "weight_scale_semantics", "") == "inverse"


def _is_known(weights: Any) -> bool:
    return isinstance(weights, dict) and (
        weights.get("type") == "float"
        and weights.get("num_bits") == 8
        and (
            weights.get("strategy") in ("tensor", "channel")
            or (weights.get("strategy") == "block" and len(weights.get("block_structure") or ()) == 2)
        )
        and not weights.get("dynamic")
    )


def _read_scales(reader: Reader, name: str, shape: list[int]) -> torch.Tensor:
    """Return scales of that shape, in float32; those of channels or of a tensor may lack dimensions."""
    shapes = [shape]
    if shape[1] == 1:
        shapes += [shape[:1]] + ([[]] if shape[0] == 1 else [])
    stored = next((each for each in shapes if reader.has_shape(name, each)), shape)
    return reader.read_raw(TensorPart(name, stored), torch.float32, kept=False).reshape(shape)
