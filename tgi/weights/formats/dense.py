"""Weights as plain numbers, in the dtype of the model."""

from typing import Self

import attrs
import torch

from tgi.weights.shard import TensorPart

from .base import LinearWeight, Operations, Reader, WeightFormat


@attrs.frozen(eq=False)
class DenseWeight(LinearWeight):
    """A matrix [out, in]."""

    matrix: torch.Tensor

    def dense(self) -> torch.Tensor:
        """Return the matrix."""
        return self.matrix

    def prepare(self, device: Operations) -> Self:
        """Return the weight as `Device.prepare_weight` makes it."""
        return attrs.evolve(self, matrix=device.prepare_weight(self.matrix))

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply by `Device.linear`."""
        return device.linear(x, self.matrix, bias, residual)


class Dense(WeightFormat):
    """The format of every checkpoint without "quantization_config", and of any weight that has no other."""

    name = "dense"

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read the tensors themselves."""
        return DenseWeight(reader.read(*parts))
