"""Normalisation layers."""

import torch
from torch import nn

from tgi.weights import TensorPart

from .build import Build


class RMSNorm(nn.Module):
    """Division by the root mean square (Zhang and Sennrich 2019, arXiv 1910.07467) over `size` features."""

    def __init__(self, build: Build, name: str, size: int, epsilon: float) -> None:
        super().__init__()
        self._device = build.device
        self._epsilon = epsilon
        self._weight = build.read(TensorPart(f"{name}.weight", (size,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] to the same shape."""
        return self._device.rms_norm(x, self._weight, self._epsilon)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba, Kiros and Hinton 2016, arXiv 1607.06450) over `size` features."""

    def __init__(self, build: Build, name: str, size: int, epsilon: float) -> None:
        super().__init__()
        self._device = build.device
        self._epsilon = epsilon
        self._weight = build.read(TensorPart(f"{name}.weight", (size,)))
        self._bias = build.read(TensorPart(f"{name}.bias", (size,)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] to the same shape."""
        return self._device.layer_norm(x, self._weight, self._bias, self._epsilon)
