"""What every layer needs to build itself."""

import math
from collections.abc import Sequence

import attrs
import torch

from tgi.device.base import Device
from tgi.weights import Shard, Weights


@attrs.frozen
class Part:
    """Of the tensor `name`, whose shape is `shape`, what `part` says of dimension `dim`; None: all."""

    name: str
    shape: Sequence[int]
    dim: int = 0
    part: slice | None = None

    @property
    def size(self) -> list[int]:
        """Its own shape."""
        size = list(self.shape)
        if self.part is not None:
            size[self.dim] = len(range(size[self.dim])[self.part])
        return size


@attrs.define(eq=False)
class Build:
    """Where a layer's weights are, its share of them, what it runs on, and in which dtype."""

    weights: Weights
    shard: Shard
    device: Device
    dtype: torch.dtype
    fp8: bool = False
    """See `ModelConfig`."""
    widest: int = 0
    """Most features that a linear layer gives one token on this rank; for the estimate of the workspace."""
    _spare: torch.Tensor | None = None
    """Memory of a weight that the device has made another form of, for the next one."""

    def read(self, *parts: Part, rows: int = 0) -> torch.Tensor:
        """Parts one below the other, in the model's dtype, padded with zeros to so many rows at least.

        They go straight from the file to the device.
        """
        sizes = [part.size for part in parts]
        count = sum(size[0] for size in sizes)
        whole = self._empty(max(rows, count), *sizes[0][1:])
        begin = 0
        for part, size in zip(parts, sizes, strict=True):
            out = whole[begin : begin + size[0]]
            self.weights.read(part.name, part.shape, part.dim, part.part, out)
            begin += size[0]
        whole[begin:].zero_()
        return whole

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the model's dtype on the device."""
        return tensor.to(self.device.torch_device, self.dtype)

    def linear(self, weight: torch.Tensor) -> torch.Tensor:
        """A linear layer's weight [out, in], ready for `Device.linear`; as `prepare`."""
        self.widest = max(self.widest, weight.shape[0])
        return self.prepare(weight.to(self.dtype))

    def prepare(self, weight: torch.Tensor) -> torch.Tensor:
        """As `Device.prepare_weight`. `weight` is not to be used afterwards: the next may be there."""
        prepared = self.device.prepare_weight(weight)
        if prepared.is_mkldnn:
            self._spare = torch.empty(0, dtype=self.dtype).set_(weight.untyped_storage())
        return prepared

    def _empty(self, *shape: int) -> torch.Tensor:
        size, spare = math.prod(shape), self._spare
        if spare is not None and len(shape) > 1:
            self._spare = None
            if len(spare) >= size:
                return spare[:size].view(shape)
            del spare
        return torch.empty(shape, dtype=self.dtype, device=self.device.torch_device)
