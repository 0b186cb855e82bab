"""Falcon for tgi: the layers. Imported in rank processes only."""

import torch
from torch import nn

from tgi.layers import (
    Attention,
    Batch,
    Build,
    ColumnLinear,
    Embedding,
    GroupedQKV,
    Head,
    LayerNorm,
    Rotary,
    RowLinear,
    alibi_slopes,
)

from .plugin import FalconConfig

Rotation = tuple[torch.Tensor, torch.Tensor]


class FalconLayer(nn.Module):
    """Attention and an MLP, one after the other, or in parallel with one sum over the ranks for both."""

    def __init__(self, config: FalconConfig, build: Build, index: int) -> None:
        super().__init__()
        self._device, self._parallel = build.device, config.parallel
        layer = f"transformer.h.{index}"
        attention, mlp = f"{layer}.self_attention", f"{layer}.mlp"
        hidden, inner, bias = config.hidden_size, config.inner_size, config.bias
        heads, kv_heads, size = config.num_heads, config.num_kv_heads, config.head_dim
        # Falcon's ALiBi is added before the scale.
        slopes = alibi_slopes(heads) * size**-0.5 if config.rope is None else None
        norms = [LayerNorm(build, f"{layer}.{name}", hidden, config.epsilon) for name in config.norms]
        self.norms = nn.ModuleList(norms)
        self.qkv = GroupedQKV(build, f"{attention}.query_key_value", hidden, heads, kv_heads, size, bias)
        self.attention = Attention(build, index, heads, kv_heads, size, slopes=slopes)
        self.out = RowLinear(build, f"{attention}.dense", heads * size, hidden, bias)
        self.up = ColumnLinear(build, [f"{mlp}.dense_h_to_4h"], hidden, [inner], bias)
        self.down = RowLinear(build, f"{mlp}.dense_4h_to_h", inner, hidden, bias)

    def forward(self, x: torch.Tensor, batch: Batch, rotation: Rotation | None) -> torch.Tensor:
        """[T, hidden_size] to the same."""
        normal = self.norms[0](x)
        attended = self.attention(self.qkv(normal), batch, rotation)
        if not self._parallel:
            x = self.out(attended, residual=x)
            return self.down(self._device.gelu(self.up(self.norms[1](x))), residual=x)  # type: ignore[no-any-return]
        if len(self.norms) == 2:
            normal = self.norms[1](x)
        partial = self.out.partial(attended, residual=x)
        return self.down(self._device.gelu(self.up(normal)), partial=partial)  # type: ignore[no-any-return]


class Falcon(nn.Module):
    """The whole model."""

    def __init__(self, config: FalconConfig, build: Build) -> None:
        super().__init__()
        self.rotary = None if config.rope is None else Rotary(build, config.rope)
        embedding, head = build.tie("transformer.word_embeddings", "lm_head", config.tie_word_embeddings)
        vocab, hidden = config.vocab_size, config.hidden_size
        if build.stage.first:
            self.embed = Embedding(build, embedding, vocab, hidden)
        layers = build.layers(config.num_layers)
        self.layers = nn.ModuleList(FalconLayer(config, build, index) for index in layers)
        self._last = build.stage.last
        if self._last:
            self.norm = LayerNorm(build, "transformer.ln_f", hidden, config.epsilon)
            self.head = Head(build, head, vocab, hidden)

    def forward(self, batch: Batch) -> torch.Tensor:
        """Logits of `batch.last`, [n, vocab_size]; of a stage before the last one, [T, hidden_size]."""
        x = self.embed(batch.tokens) if batch.received is None else batch.received
        rotation = None if self.rotary is None else self.rotary(batch)
        for layer in self.layers:
            x = layer(x, batch, rotation)
        return self.head(self.norm(x), batch) if self._last else x
