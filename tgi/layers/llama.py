"""The decoder that many families share, whole and in parts, under the names of a Llama's tensors.

`tgi.plugins.llama_config` says the same without torch.
"""

import torch
from torch import nn

from tgi.device.batch import Batch
from tgi.plugins import ModelConfig
from tgi.plugins.llama_config import LlamaConfig

from .attention import Attention
from .build import Build
from .linear import ColumnLinear, Embedding, Head, RowLinear
from .norm import RMSNorm
from .rotary import Rotary

Rotation = tuple[torch.Tensor, torch.Tensor]


class SelfAttention(nn.Module):
    """Attention with its projections, `q_proj`, `k_proj`, `v_proj` and `o_proj`, over `config.window`."""

    def __init__(self, build: Build, name: str, layer: int, config: ModelConfig, bias: bool = False) -> None:
        super().__init__()
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        names = [f"{name}.{part}_proj" for part in "qkv"]
        pieces = [heads, kv_heads, kv_heads]
        sizes = [count * size for count in pieces]
        self.qkv = ColumnLinear(build, names, config.hidden_size, sizes, bias, pieces)
        build.scale_cache(layer, name)
        self.attention = Attention(build, layer, heads, kv_heads, size, window=config.window)
        self.out = RowLinear(build, f"{name}.o_proj", heads * size, config.hidden_size, bias)

    def forward(
        self, x: torch.Tensor, batch: Batch, rotation: Rotation | None, residual: torch.Tensor
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


class LlamaLayer(nn.Module):
    """Attention and a gated MLP, each after a norm and added to what it got."""

    def __init__(self, config: LlamaConfig, build: Build, index: int) -> None:
        super().__init__()
        at = f"model.layers.{index}"
        hidden, inner, epsilon = config.hidden_size, config.intermediate_size, config.rms_norm_eps
        self.attention_norm = RMSNorm(build, f"{at}.input_layernorm", hidden, epsilon)
        self.attention = SelfAttention(build, f"{at}.self_attn", index, config, config.attention_bias)
        self.mlp_norm = RMSNorm(build, f"{at}.post_attention_layernorm", hidden, epsilon)
        self.mlp = GatedMLP(build, f"{at}.mlp", hidden, inner, config.mlp_bias)

    def forward(self, x: torch.Tensor, batch: Batch, rotation: Rotation) -> torch.Tensor:
        """[T, hidden_size] to the same."""
        x = self.attention(self.attention_norm(x), batch, rotation, residual=x)
        return self.mlp(self.mlp_norm(x), residual=x)  # type: ignore[no-any-return]


class LlamaDecoder(nn.Module):
    """The whole model."""

    def __init__(self, config: LlamaConfig, build: Build) -> None:
        super().__init__()
        hidden, vocab = config.hidden_size, config.vocab_size
        self.rotary = Rotary(build, config.rope)
        self.embed = Embedding(build, "model.embed_tokens", vocab, hidden)
        self.layers = nn.ModuleList(LlamaLayer(config, build, index) for index in range(config.num_layers))
        self.norm = RMSNorm(build, "model.norm", hidden, config.rms_norm_eps)
        if config.tie_word_embeddings:
            build.weights.dismiss("lm_head.weight")
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        self.head = Head(build, head, vocab, hidden)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of `batch.last`, [n, vocab_size]."""
        x = self.embed(batch.tokens)
        rotation = self.rotary(batch)
        for layer in self.layers:
            x = layer(x, batch, rotation)
        return self.head(self.norm(x), batch)  # type: ignore[no-any-return]
