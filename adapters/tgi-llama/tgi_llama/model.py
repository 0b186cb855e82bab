"""Llama for tgi: the layers. Imported in rank processes only."""

import torch
from torch import nn

from tgi.layers import Batch, Build, Embedding, GatedMLP, Head, RMSNorm, Rotary, SelfAttention

from .plugin import LlamaConfig

Rotation = tuple[torch.Tensor, torch.Tensor]


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


class Llama(nn.Module):
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
