"""Normalisation layers."""

import torch
import torch.nn.functional as F
from torch import nn

from tgi.device import decoder
from tgi.plugins.llama_config import LlamaConfig
from tgi.weights import TensorPart

from .build import Build


def make_norm(build: Build, name: str, size: int, config: LlamaConfig) -> nn.Module:
    """Return the norm of the config's kind over `size` features."""
    if config.layer_norm:
        return LayerNorm(build, name, size, config.rms_norm_eps, config.norm_bias)
    return RMSNorm(build, name, size, config.rms_norm_eps, config.norm_offset)


class RMSNorm(nn.Module):
    """Division by the root mean square (Zhang and Sennrich 2019, arXiv 1910.07467) over `size` features.

    If `offset` is not 0, it is added to the weight, and all is computed in float32 (Gemma).
    """

    def __init__(self, build: Build, name: str, size: int, epsilon: float, offset: float = 0.0) -> None:
        super().__init__()
        self._device = build.device
        self._epsilon = epsilon
        self._weight = build.read(TensorPart(f"{name}.weight", (size,)))
        self._wide = bool(offset)
        if self._wide:
            self._weight = self._weight.float() + offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] to the same shape."""
        if not self._wide:
            return self._device.rms_norm(x, self._weight, self._epsilon)
        return self._device.rms_norm(x.float(), self._weight, self._epsilon).to(x.dtype)

    def describe(self) -> decoder.Norm | None:
        """Return the norm for `Device.join_layers`; None if it is computed in float32."""
        return None if self._wide else decoder.Norm(self._weight, self._epsilon)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba, Kiros and Hinton 2016, arXiv 1607.06450) over `size` features."""

    def __init__(self, build: Build, name: str, size: int, epsilon: float, bias: bool = True) -> None:
        super().__init__()
        self._epsilon = epsilon
        self._weight = build.read(TensorPart(f"{name}.weight", (size,)))
        self._bias = build.read(TensorPart(f"{name}.bias", (size,))) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] to the same shape."""
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, self._epsilon)


class HeadNorm(nn.Module):
    """Norm of the features of each head, [T, heads, size] of this rank to the same shape.

    `kind` is that of `LlamaConfig.head_norm`.
    """

    def __init__(self, build: Build, name: str, heads: int, config: LlamaConfig) -> None:
        super().__init__()
        self._device, self._kind, size = build.device, config.head_norm, config.head_dim
        cut = build.shard.cut(heads, heads)
        self._epsilon = config.rms_norm_eps
        if self._kind == "plain":
            self._weight = build.put(torch.ones(size, dtype=build.dtype))
        elif self._kind == "head":
            self.norm = make_norm(build, name, size, config)
        elif self._kind == "all":
            part = slice(cut.start * size, cut.stop * size)
            self._weight = build.read(TensorPart(f"{name}.weight", (heads * size,), 0, part))
            self._shard = build.shard
            copies = (cut.stop - cut.start) * build.shard.size // heads
            self._count = heads * size * copies
        elif "{}" in name:
            every = [name.format(head) for head in range(heads)]
            parts = [TensorPart(f"{each}.weight", (size,)) for each in every[cut]]
            self._weight = build.read(*parts).view(-1, size)
            for other in every:
                build.weights.skip(other)
        else:
            self._weight = build.read(TensorPart(f"{name}.weight", (heads, size), 0, cut))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, heads, size] to the same shape."""
        if self._kind == "plain":
            flat = x.reshape(-1, x.shape[-1])
            return self._device.rms_norm(flat, self._weight, self._epsilon).view(x.shape)
        if self._kind == "head":
            rows = self.norm(x.reshape(-1, x.shape[-1]))
            return rows.view(x.shape)  # type: ignore[no-any-return]
        if self._kind == "heads":
            return F.layer_norm(x, x.shape[-1:], eps=self._epsilon) * self._weight
        if self._shard.size == 1:
            return self._device.rms_norm(x.flatten(1), self._weight, self._epsilon).view(x.shape)
        wide = x.flatten(1).float()
        total = self._device.all_reduce(wide.pow(2).sum(-1, keepdim=True), self._shard)
        wide = wide * torch.rsqrt(total / self._count + self._epsilon)
        return (wide.to(x.dtype) * self._weight).view(x.shape)

    def describe(self) -> decoder.Norm | None:
        """Return the norm for `Device.join_layers`; None unless it is an RMS norm that all heads share."""
        return describe_norm(self.norm) if self._kind == "head" else None


def describe_norm(norm: nn.Module | None) -> decoder.Norm | None:
    """Return a norm for `Device.join_layers`; None if it is of a less common kind."""
    return norm.describe() if isinstance(norm, RMSNorm | HeadNorm) else None
