"""Halves of a layer that many families have alike, under the names that their checkpoints give to the parts.

`tgi.plugins.weights` says which tensors they keep.
"""

import torch
from torch import nn

from tgi.device import Batch
from tgi.plugins import ModelConfig

from .attention import Attention
from .build import Build
from .linear import ColumnLinear, RowLinear


class SelfAttention(nn.Module):
    """Attention with its projections, `q_proj`, `k_proj`, `v_proj` and `o_proj`, over `config.window`."""

    def __init__(self, build: Build, name: str, layer: int, config: ModelConfig, bias: bool = False) -> None:
        super().__init__()
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        names = [f"{name}.{part}_proj" for part in "qkv"]
        pieces = [heads, kv_heads, kv_heads]
        sizes = [count * size for count in pieces]
        self.qkv = ColumnLinear(build, names, config.hidden_size, sizes, bias, pieces)
        self.attention = Attention(build, layer, heads, kv_heads, size, window=config.window)
        self.out = RowLinear(build, f"{name}.o_proj", heads * size, config.hidden_size, bias)

    def forward(
        self,
        x: torch.Tensor,
        batch: Batch,
        rotation: tuple[torch.Tensor, torch.Tensor] | None,
        residual: torch.Tensor,
    ) -> torch.Tensor:
        """[T, hidden_size] to the same, plus the residual."""
        return self.out(self.attention(self.qkv(x), batch, rotation), residual)  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """`down_proj` of silu(`gate_proj`) times `up_proj` (SwiGLU; Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, build: Build, name: str, hidden: int, inner: int, bias: bool = False) -> None:
        super().__init__()
        self._device = build.device
        names = [f"{name}.{part}_proj" for part in ("gate", "up")]
        self.gate_up = ColumnLinear(build, names, hidden, [inner, inner], bias)
        self.down = RowLinear(build, f"{name}.down_proj", inner, hidden, bias)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to the same, plus the residual."""
        return self.down(self._device.silu_mul(self.gate_up(x)), residual)  # type: ignore[no-any-return]
