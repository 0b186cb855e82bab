"""The experts of a layer on one rank, and their definition in plain torch."""

from collections.abc import Sequence
from typing import Protocol

import attrs
import torch

from tgi.weights.formats import LinearWeight, Operations

from .activation import Activating, gate


class Multiplying(Activating, Operations, Protocol):
    """The part of a `Device` that experts use."""


@attrs.frozen(eq=False, kw_only=True)
class Experts:
    """Gated MLPs of one size, of which each token goes through some: down(gate(up(x)))."""

    up: Sequence[LinearWeight]
    """Weights [2 inner, hidden] of the experts on this rank: the gate's rows before the others."""
    down: Sequence[LinearWeight]
    """Weights [hidden, inner]."""
    up_bias: torch.Tensor | None = None
    """[experts, 2 inner]."""
    down_bias: torch.Tensor | None = None
    """[experts, hidden]."""
    first: int = 0
    """Number of the first expert on this rank."""
    kind: str
    """Kind of the activation of the first half, by which the second is multiplied."""

    def compute(self, device: Multiplying, index: int, x: torch.Tensor) -> torch.Tensor:
        """Return the result of an expert of this rank for x [n, hidden]."""
        up_bias = None if self.up_bias is None else self.up_bias[index]
        down_bias = None if self.down_bias is None else self.down_bias[index]
        inner = gate(device, self.kind, device.multiply(x, self.up[index], up_bias))
        return device.multiply(inner, self.down[index], down_bias)
