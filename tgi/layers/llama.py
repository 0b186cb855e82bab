"""The decoder of Llama, which many families share: RMS norms, rotary positions, grouped queries, gated MLPs.

`tgi.plugins.llama_config` reads its config.json.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tgi.device.batch import Batch
from tgi.plugins.llama_config import LlamaConfig

from .attention import Attention
from .build import Build
from .linear import ColumnLinear, Embedding, Head, RowLinear
from .norm import RMSNorm
from .rotary import Rotary

Rotation = tuple[torch.Tensor, torch.Tensor]
MakeMLP = Callable[[Any, Build, str], nn.Module]


class SelfAttention(nn.Module):
    """Attention with its projections `q_proj`, `k_proj`, `v_proj` and `o_proj` below `name`."""

    def __init__(self, build: Build, name: str, layer: int, config: LlamaConfig) -> None:
        super().__init__()
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        names = [f"{name}.{part}_proj" for part in "qkv"]
        pieces = [heads, kv_heads, kv_heads]
        sizes = [count * size for count in pieces]
        self.qkv = ColumnLinear(build, names, config.hidden_size, sizes, config.qkv_bias, pieces)
        build.scale_cache(layer, name)
        self.attention = Attention(build, layer, heads, kv_heads, size, window=config.windows[layer])
        self.out = RowLinear(build, f"{name}.o_proj", heads * size, config.hidden_size, config.out_bias)

    def forward(
        self, x: torch.Tensor, batch: Batch, rotation: Rotation | None, residual: torch.Tensor
    ) -> torch.Tensor:
        """[T, hidden_size] to the same, plus the residual."""
        return self.out(self.attention(self.qkv(x), batch, rotation), residual)  # type: ignore[no-any-return]


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), called SwiGLU (Shazeer 2020, arXiv 2002.05202).

    `names` are those of the three layers below `name`.
    """

    def __init__(
        self,
        build: Build,
        name: str,
        hidden: int,
        inner: int,
        bias: bool = False,
        names: Sequence[str] = ("gate_proj", "up_proj", "down_proj"),
    ) -> None:
        super().__init__()
        self._device = build.device
        gate, up, down = (f"{name}.{layer}" for layer in names)
        self.gate_up = ColumnLinear(build, [gate, up], hidden, [inner, inner], bias)
        self.down = RowLinear(build, down, inner, hidden, bias)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to the same, plus the residual."""
        return self.down(self._device.silu_mul(self.gate_up(x)), residual)  # type: ignore[no-any-return]

    def partial(self, x: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to this rank's summand of the same."""
        return self.down.partial(self._device.silu_mul(self.gate_up(x)))


class LlamaLayer(nn.Module):
    """Attention and an MLP, each after a norm and added to its input."""

    def __init__(self, config: LlamaConfig, build: Build, index: int, make_mlp: MakeMLP) -> None:
        super().__init__()
        name = f"model.layers.{index}"
        hidden, epsilon = config.hidden_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(build, f"{name}.input_layernorm", hidden, epsilon)
        self.attention = SelfAttention(build, f"{name}.self_attn", index, config)
        self.mlp_norm = RMSNorm(build, f"{name}.post_attention_layernorm", hidden, epsilon)
        self.mlp = make_mlp(config, build, name)

    def forward(self, x: torch.Tensor, batch: Batch, rotation: Rotation) -> torch.Tensor:
        """[T, hidden_size] to the same."""
        x = self.attention(self.attention_norm(x), batch, rotation, residual=x)
        return self.mlp(self.mlp_norm(x), residual=x)  # type: ignore[no-any-return]


class LlamaDecoder(nn.Module):
    """The whole model. A family whose layers have another MLP overrides `make_mlp`."""

    def __init__(self, config: LlamaConfig, build: Build) -> None:
        super().__init__()
        hidden, vocab = config.hidden_size, config.vocab_size
        self.rotary = Rotary(build, config.rope)
        embedding, head = build.tie("model.embed_tokens", "lm_head", config.tie_word_embeddings)
        self.embed = Embedding(build, embedding, vocab, hidden)
        numbers = range(config.num_layers)
        self.layers = nn.ModuleList(LlamaLayer(config, build, number, self.make_mlp) for number in numbers)
        self.norm = RMSNorm(build, "model.norm", hidden, config.rms_norm_eps)
        self.head = Head(build, head, vocab, hidden)

    def make_mlp(self, config: LlamaConfig, build: Build, name: str) -> nn.Module:
        """Build the MLP of the layer `name`: called with [T, hidden_size] and the residual to add."""
        hidden, inner = config.hidden_size, config.intermediate_size
        return GatedMLP(build, f"{name}.mlp", hidden, inner, config.mlp_bias)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of `batch.last`, [n, vocab_size]."""
        x = self.embed(batch.tokens)
        rotation = self.rotary(batch)
        for layer in self.layers:
            x = layer(x, batch, rotation)
        return self.head(self.norm(x), batch)  # type: ignore[no-any-return]
