"""Linear layers whose weights a checkpoint may have in fp8: per tensor one scale, and one for the input.

Next to the tensor `x.weight` of [out, in] e4m3 numbers there are then `x.weight_scale` and `x.input_scale`.
"""

import torch

from tgi.device.base import Device
from tgi.device.fp8 import Fp8Weight, Scale
from tgi.plugins import ConfigError

from .build import Build, Part

LinearWeight = torch.Tensor | Fp8Weight


def read_linear(build: Build, *parts: Part) -> LinearWeight:
    """The weight of a linear layer, parts named "….weight" one below the other, ready for `multiply`."""
    scaled = [build.fp8 and _scale_of(part) in build.weights for part in parts]
    if not any(scaled):
        return build.linear(build.read(*parts))
    if not all(scaled):
        missing = parts[scaled.index(False)]
        raise ConfigError(
            f"the checkpoint has no tensor {_scale_of(missing)!r}, though parts of the layer have"
        )
    numbers, scales, inputs = [], [], []
    for part in parts:
        out = torch.empty(part.size, dtype=torch.float8_e4m3fn, device=_host(build))
        numbers.append(build.weights.read(part.name, part.shape, part.dim, part.part, out))
        scales.append(_scalar(build, _scale_of(part)).expand(part.size[0]))
        inputs.append(_scalar(build, f"{part.name.removesuffix('weight')}input_scale"))
    build.widest = max(build.widest, sum(part.size[0] for part in parts))
    scale = Scale.of(torch.stack(inputs).amax())
    return build.device.prepare_fp8(Fp8Weight(torch.cat(numbers), torch.cat(scales), scale))


def multiply(
    device: Device,
    x: torch.Tensor,
    weight: LinearWeight,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `Device.linear`, for both kinds of weights."""
    if isinstance(weight, Fp8Weight):
        return device.linear_fp8(x, weight, bias, residual)
    return device.linear(x, weight, bias, residual)


def scale_cache(build: Build, layer: int, name: str) -> None:
    """Tell the device of the scales for keys and values in fp8 that a checkpoint has below that name."""
    names = [f"{name}.{kind}_scale" for kind in "kv"]
    if build.fp8 and all(each in build.weights for each in names):
        build.device.scale_cache(layer, *(_scalar(build, each) for each in names))


def _scale_of(part: Part) -> str:
    return f"{part.name}_scale"


def _scalar(build: Build, name: str) -> torch.Tensor:
    """[] float32; files have it so, or as the only element of a vector."""
    shape = [] if build.weights.fault(name, [1]) else [1]
    out = torch.empty(shape, dtype=torch.float32, device=_host(build))
    return build.weights.read(name, shape, out=out).reshape(())


def _host(build: Build) -> torch.device:
    """The device may want to change numbers before it has them."""
    mine = build.device.torch_device
    return mine if mine.type == "meta" else torch.device("cpu")
