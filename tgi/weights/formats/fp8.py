"""Weights and inputs in 8 bits (e4m3), with one fixed scale for each tensor.

Beside the numbers "x.weight" [out, in] a checkpoint has "x.weight_scale" and "x.input_scale". Written by
compressed-tensors ("float-quantized") and AutoFP8 ("fp8" with "static" activations).
"""

from typing import Any, NamedTuple, Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Operations, Reader, WeightFormat

FP8 = torch.float8_e4m3fn
FP8_LIMIT = 448.0
"""The greatest number of the dtype; some devices have less."""
_FORMATS = ("float-quantized", "naive-quantized")


class Scale(NamedTuple):
    """The scale of a tensor that is stored in 8 bits, and its inverse; both [] float32."""

    value: torch.Tensor
    """Factor from stored to real: real = stored * value."""
    inverse: torch.Tensor
    """Factor from real to stored."""

    @classmethod
    def of(cls, value: torch.Tensor) -> "Scale":
        """Make a scale from its value, as checkpoints have it."""
        return cls(value.float(), 1 / value.float())

    def doubled(self) -> "Scale":
        """Return the scale for stored numbers that are half as great."""
        return Scale(2 * self.value, self.inverse / 2)

    def to(self, device: torch.device) -> "Scale":
        """Return a copy on the device."""
        return Scale(self.value.to(device), self.inverse.to(device))


@attrs.frozen(eq=False)
class Fp8Weight(LinearWeight):
    """A matrix in 8 bits with its scales."""

    numbers: torch.Tensor
    """Stored weights [out, in] e4m3."""
    scales: torch.Tensor
    """Scales [out] float32 of the rows: real = stored * scale."""
    input: Scale
    """Scale by which inputs are rounded to 8 bits."""

    def dense(self) -> torch.Tensor:
        """Return the real numbers, in float32."""
        return self.numbers.float() * self.scales[:, None]

    def to(self, device: torch.device) -> Self:
        """Return a copy on the device."""
        return attrs.evolve(
            self,
            numbers=self.numbers.to(device),
            scales=self.scales.to(device),
            input=self.input.to(device),
        )

    def halved(self) -> Self:
        """Return the same weight with numbers half as great: exact but for the last bit of some near 0."""
        numbers = (self.numbers.float() / 2).to(FP8)
        return attrs.evolve(self, numbers=numbers, scales=2 * self.scales, input=self.input.doubled())

    def prepare(self, device: Operations) -> Self:
        """Return a copy on the device, within its range: checkpoints are made for FP8_LIMIT."""
        weight = self.halved() if device.fp8_limit < FP8_LIMIT else self
        return weight.to(device.torch_device)

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
    ) -> torch.Tensor:
        """Round x to 8 bits and multiply in float32."""
        limit = device.fp8_limit
        numbers = (x.float() * self.input.inverse).clamp(-limit, limit).to(FP8)
        y = device.linear(numbers.float(), self.numbers.float()) * self.input.value * self.scales
        y = (y if bias is None else y + bias).to(x.dtype)
        return y if residual is None else residual + y


class Fp8(WeightFormat):
    """Static fp8, one scale per tensor."""

    name = "fp8"
    methods = frozenset({"fp8", "compressed-tensors"})
    scope = "e4m3 weights and inputs with one fixed scale for each tensor"

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for another kind of fp8."""
        if config(str, "quant_method") == "compressed-tensors":
            return _fault_of_groups(config)
        if config.data.get("weight_block_size"):
            return "'weight_block_size' is set"
        scheme = config(str, "activation_scheme", "dynamic")
        return None if scheme == "static" else f"'activation_scheme' is {scheme!r}"

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the weight's scale if the checkpoint lacks it."""
        name = f"{part.name}_scale"
        return None if name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> Fp8Weight:
        """Read numbers and scales. Parts that are fused have one input scale, the greatest of theirs."""
        numbers, scales, inputs = [], [], []
        for part in parts:
            numbers.append(reader.read_raw(part, FP8))
            scales.append(_read_scalar(reader, f"{part.name}_scale").expand(part.size[0]))
            inputs.append(_read_scalar(reader, f"{part.name.removesuffix('weight')}input_scale"))
        scale = Scale.of(torch.stack(inputs).amax())
        return Fp8Weight(torch.cat(numbers), torch.cat(scales), scale)

    def cache_scales(self, reader: Reader, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Read the scales under the first of the names that different tools give them."""
        pairs = [(f"{name}.k_scale", f"{name}.v_scale"), (f"{name}.kv_scale",) * 2]
        pairs.append((f"{name}.k_proj.output_scale", f"{name}.v_proj.output_scale"))
        for key, value in pairs:
            if key in reader and value in reader:
                return _read_scalar(reader, key), _read_scalar(reader, value)
        return None


def _read_scalar(reader: Reader, name: str) -> torch.Tensor:
    """Read a scalar [] float32, which files may have as the only element of a vector or matrix."""
    shape = next((shape for shape in ([1], [1, 1]) if reader.has_shape(name, shape)), [])
    return reader.read_raw(TensorPart(name, shape), torch.float32).reshape(())


def _fault_of_groups(config: JsonReader) -> str | None:
    if config(str, "format", "") not in _FORMATS:
        return f"'format' is {config.data.get('format')!r}"
    cache = config.data.get("kv_cache_scheme")
    if cache is not None and not _is_static_fp8(cache):
        return f"'kv_cache_scheme' is {cache!r}"
    for name, group in config(dict, "config_groups").items():
        if not isinstance(group, dict):
            return f"{name!r} is {group!r}"
        for part in ("weights", "input_activations"):
            if not _is_static_fp8(group.get(part)):
                return f"{part!r} of {name!r} is {group.get(part)!r}"
        if group.get("output_activations"):
            return f"'output_activations' of {name!r} is set"
    return None


def _is_static_fp8(scheme: Any) -> bool:
    return isinstance(scheme, dict) and (
        (scheme.get("type"), scheme.get("num_bits"), scheme.get("strategy")) == ("float", 8, "tensor")
        and not scheme.get("dynamic")
        and scheme.get("symmetric", True) is True
    )
