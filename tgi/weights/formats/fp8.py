"""Weights and inputs in 8 bits (e4m3), with one fixed scale for each tensor.

Beside the numbers "x.weight" [out, in] a checkpoint has "x.weight_scale" and "x.input_scale". Written by
compressed-tensors ("float-quantized"), AutoFP8 ("fp8" with "static" activations) and ModelOpt; transformers
writes "x.weight_scale_inv" and "x.activation_scale".
"""

from typing import NamedTuple, Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Operations, Reader, WeightFormat
from .compressed import fault_beside_weights, format_of, groups_of, is_static_fp8
from .stored import make_dense

FP8 = torch.float8_e4m3fn
FP8_LIMIT = 448.0
"""The greatest number of the dtype; some devices have less."""
FORMATS = ("float-quantized", "naive-quantized")
"""Values of compressed-tensors' "format" for weights in 8 bits as they are."""
_TINY = 1e-30
"""Least scale, whose inverse is finite: that of a row of zeros."""


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


def row_scale(x: torch.Tensor, limit: float) -> Scale:
    """Return scales [n, 1] by which the greatest number of each row of x [n, in] is stored as `limit`."""
    value = (x.float().abs().amax(-1, keepdim=True) / limit).clamp_min(_TINY)
    return Scale(value, 1 / value)


@attrs.frozen(eq=False)
class Fp8Weight(LinearWeight):
    """A matrix in 8 bits with its scales."""

    numbers: torch.Tensor
    """Stored weights [out, in] e4m3."""
    scales: torch.Tensor
    """Scales [out] float32 of the rows: real = stored * scale."""
    input: Scale | None
    """Scale by which inputs are rounded to 8 bits; None: each row is, by its own greatest number."""

    def dense(self) -> torch.Tensor:
        """Return the real numbers, in float32."""
        return self.numbers.float() * self.scales[:, None]

    def to(self, device: torch.device) -> Self:
        """Return a copy on the device."""
        return attrs.evolve(
            self,
            numbers=self.numbers.to(device),
            scales=self.scales.to(device),
            input=self.input and self.input.to(device),
        )

    def halved(self) -> Self:
        """Return the same weight with numbers half as great: exact but for the last bit of some near 0."""
        numbers = (self.numbers.float() / 2).to(FP8)
        doubled = self.input and self.input.doubled()
        return attrs.evolve(self, numbers=numbers, scales=2 * self.scales, input=doubled)

    def prepare(self, device: Operations) -> Self:
        """Return a copy on the device, within its range: checkpoints are made for FP8_LIMIT."""
        weight = self.halved() if device.fp8_limit < FP8_LIMIT else self
        return weight.to(device.torch_device)

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Round x to 8 bits and multiply in float32."""
        limit = device.fp8_limit
        scale = self.input or row_scale(x, limit)
        numbers = (x.float() * scale.inverse).clamp(-limit, limit).to(FP8)
        y = device.linear(numbers.float(), self.numbers.float()) * scale.value * self.scales
        y = (y if bias is None else y + bias).to(x.dtype)
        return y if residual is None else residual + y


class ScaledCache:
    """Part of the formats whose checkpoints may have scales for keys and values in 8 bits."""

    def cache_scales(self, reader: Reader, name: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Read the scales under the first of the names that different tools give them."""
        pairs = [(f"{name}.k_scale", f"{name}.v_scale"), (f"{name}.kv_scale",) * 2]
        pairs.append((f"{name}.k_proj.output_scale", f"{name}.v_proj.output_scale"))
        pairs.append((f"{name}.k_proj.k_scale", f"{name}.v_proj.v_scale"))
        for key, value in pairs:
            if key in reader and value in reader:
                return _read_scalar(reader, key), _read_scalar(reader, value)
        return None


class Fp8(ScaledCache, WeightFormat):
    """Static fp8, one scale per tensor."""

    name = "fp8"
    methods = frozenset({"fp8", "compressed-tensors", "modelopt"})
    scope = "e4m3 weights and inputs with one fixed scale for each tensor"

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether scales are fixed, one for each tensor."""
        method = config(str, "quant_method", "none")
        if method == "compressed-tensors":
            schemes = [
                group.get(part)
                for group in groups_of(config).values()
                for part in ("weights", "input_activations")
            ]
            return bool(schemes) and all(map(is_static_fp8, schemes))
        if method == "modelopt":
            return config(str, "quant_algo", "") != "NVFP4"
        static = config(str, "activation_scheme", "dynamic") == "static"
        return method == "fp8" and static and not config.data.get("weight_block_size")

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for another kind of fp8."""
        method = config(str, "quant_method")
        if method == "modelopt":
            algorithm, cache = config(str, "quant_algo", ""), config.data.get("kv_cache_quant_algo")
            if algorithm != "FP8":
                return f"'quant_algo' is {algorithm!r}"
            return None if cache in (None, "FP8", "auto") else f"'kv_cache_quant_algo' is {cache!r}"
        if method == "fp8":
            return None
        packings = [format_of(config, group) for group in groups_of(config).values()]
        other = [packing for packing in packings if packing not in FORMATS]
        return f"'format' is {other[0]!r}" if other else fault_beside_weights(config)

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the weight's scale if the checkpoint lacks it."""
        name = _scale_name(reader, part)
        return None if name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read numbers and scales; those of a weight that the device does not keep are multiplied.

        Parts that are fused have one input scale, the greatest of theirs.
        """
        kept = "fp8" in reader.device.keeps
        numbers, scales, inputs = [], [], []
        for part in parts:
            numbers.append(reader.read_raw(part, FP8, kept))
            scales.append(_read_scalar(reader, _scale_name(reader, part)).expand(part.size[0]))
            names = (f"{part.module}.input_scale", f"{part.module}.activation_scale")
            inputs.append(_read_scalar(reader, _first(reader, *names)))
        if not kept:
            pairs = zip(numbers, scales, strict=True)
            return make_dense(
                reader, self.name, parts, (piece.float() * one[:, None] for piece, one in pairs)
            )
        return Fp8Weight(torch.cat(numbers), torch.cat(scales), Scale.of(torch.stack(inputs).amax()))


def _scale_name(reader: Reader, part: TensorPart) -> str:
    return _first(reader, f"{part.name}_scale", f"{part.name}_scale_inv")


def _first(reader: Reader, *names: str) -> str:
    """Return the first name that the checkpoint has, or of all."""
    return next((name for name in names if name in reader), names[0])


def _read_scalar(reader: Reader, name: str) -> torch.Tensor:
    """Read a scalar [] float32, which files may have as the only element of a vector or matrix."""
    shape = next((shape for shape in ([1], [1, 1]) if reader.has_shape(name, shape)), [])
    return reader.read_raw(TensorPart(name, shape), torch.float32).reshape(())
