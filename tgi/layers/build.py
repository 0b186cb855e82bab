"""What every layer needs to build itself."""

import attrs
import torch

from tgi.device import Device
from tgi.weights import Checkpoint, Shard


@attrs.define(eq=False)
class Build:
    """Where a layer's weights are, its share of them, what it runs on, and in which dtype."""

    weights: Checkpoint
    shard: Shard
    device: Device
    dtype: torch.dtype
    widest: int = 0
    """Most features that a linear layer gives one token on this rank; for the estimate of the workspace."""

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor in the model's dtype on the device."""
        return tensor.to(self.device.torch_device, self.dtype)

    def linear(self, weight: torch.Tensor) -> torch.Tensor:
        """A linear layer's weight [out, in], ready for `Device.linear`."""
        self.widest = max(self.widest, weight.shape[0])
        return self.device.prepare_weight(weight.to(self.dtype))
