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


@attrs.frozen(eq=False)
class Norm:
    """An RMS norm."""

    weight: torch.Tensor
    epsilon: float


@attrs.frozen(eq=False, kw_only=True)
class SelfAttention:
    """Attention between its projections."""

    qkv: Linear
    """Projection to queries, then keys, then values."""
    head_norms: tuple[Norm, Norm] | None
    """Norms of each query and of each key before their rotation."""
    heads: int
    kv_heads: int
    head_dim: int
    kv: KVLayer
    spec: AttentionSpec
    out: Linear


@attrs.frozen(eq=False)
class GatedMLP:
    """An MLP that SiLU gates."""

    up: Linear
    """Projection to the gates, then to what they multiply."""
    down: Linear


@attrs.frozen(eq=False, kw_only=True)
class DecoderLayer:
    """A norm and attention, a norm and an MLP, each pair added to its input.

    It is the whole layer: no other rank has a part of it.
    """

    attention_norm: Norm
    attention: SelfAttention
    rotation: int | None
    """Index of the layer's rotation; None: positions do not count."""
    mlp_norm: Norm
    mlp: GatedMLP
