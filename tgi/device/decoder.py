"""The layers of the most common kind of decoder, for devices that run all of them in one call."""

from collections.abc import Callable, Sequence

import attrs
import torch

from tgi.weights.formats import LinearWeight

from .attention import AttentionSpec
from .batch import Batch, KVLayer

Rotation = tuple[torch.Tensor, torch.Tensor]
"""The result of `Device.rotation`."""
RunLayers = Callable[[torch.Tensor, Batch, Sequence[Rotation]], torch.Tensor]
"""Takes features [T, hidden], a batch, and the rotations that layers refer to; returns features."""


@attrs.frozen(eq=False)
class Linear:
    """A linear layer."""

    weight: LinearWeight
    """The weight, prepared."""
    bias: torch.Tensor | None


@attrs.frozen(eq=False, kw_only=True)
class DecoderLayer:
    """RMS norm and attention, RMS norm and an MLP that SiLU gates, each pair added to its input.

    It is the whole layer: no other rank has a part of it.
    """

    epsilon: float
    """Epsilon of all norms."""
    attention_norm: torch.Tensor
    qkv: Linear
    """Projection to queries, then keys, then values."""
    head_norms: tuple[torch.Tensor, torch.Tensor] | None
    """Weights [head_dim] of RMS norms of each query and key before their rotation."""
    rotation: int | None
    """Index of the layer's rotation; None: positions do not count."""
    heads: int
    kv_heads: int
    head_dim: int
    kv: KVLayer
    spec: AttentionSpec
    out: Linear
    mlp_norm: torch.Tensor
    up: Linear
    """Projection to the gates, then to what they multiply."""
    down: Linear
