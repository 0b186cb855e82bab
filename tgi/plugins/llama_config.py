"""The decoder of Llama, which many families share: RMS norms, rotary positions, grouped queries, gated MLPs.

What config.json says of it, without torch; the layers are in `tgi.layers.llama`.
"""

from typing import Any

import attrs

from .architecture import ConfigError, JsonReader, ModelConfig, Weight
from .quantization import read_fp8
from .rope_config import RopeConfig, read_rope
from .weights import attention_weights, gated_mlp_weights, norm_weights


@attrs.frozen(kw_only=True)
class LlamaConfig(ModelConfig):
    """config.json of such a model."""

    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    attention_bias: bool = False
    mlp_bias: bool = False

    def weights(self) -> list[Weight]:
        """The head is apart from the embedding, even where they are tied."""
        vocabulary = (self.vocab_size, self.hidden_size)
        weights = [Weight("model.embed_tokens.weight", vocabulary, 0)]
        for index in range(self.num_layers):
            at = f"model.layers.{index}"
            weights += norm_weights(f"{at}.input_layernorm", self.hidden_size)
            weights += attention_weights(f"{at}.self_attn", self, self.attention_bias)
            weights += norm_weights(f"{at}.post_attention_layernorm", self.hidden_size)
            weights += gated_mlp_weights(f"{at}.mlp", self.hidden_size, self.intermediate_size, self.mlp_bias)
        weights += norm_weights("model.norm", self.hidden_size)
        head = "model.embed_tokens" if self.tie_word_embeddings else "lm_head"
        return [*weights, Weight(f"{head}.weight", vocabulary, 0)]

    def divides(self, ranks: int) -> bool:
        """By the MLP too."""
        return super().divides(ranks) and self.intermediate_size % ranks == 0

    @property
    def widest(self) -> int:
        """Of the fused layers."""
        return max(2 * self.intermediate_size, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim)


def read_llama_config(get: JsonReader, **own: Any) -> LlamaConfig:
    """Raises ConfigError where config.json asks for what no such model can do.

    `own` is what a family has beside the names and defaults of Llama, or instead.
    """
    heads, hidden = get.size("num_attention_heads"), get.size("hidden_size")
    activation = get(str, "hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"config.json: 'hidden_act' is {activation!r}; only 'silu' is supported")
    head_dim = get.size("head_dim", hidden // heads)
    rope = read_rope(get, head_dim)
    common: dict[str, Any] = {
        "vocab_size": get.size("vocab_size"),
        "hidden_size": hidden,
        "num_layers": get.size("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": get.size("num_key_value_heads", heads),
        "head_dim": head_dim,
        "max_position": get.size("max_position_embeddings", 2048),
        "prefix_limit": rope.depends_on_length_beyond,
        "intermediate_size": get.size("intermediate_size"),
        "rms_norm_eps": get(float, "rms_norm_eps", 1e-6),
        "rope": rope,
        "fp8": read_fp8(get),
        "tie_word_embeddings": get(bool, "tie_word_embeddings", False),
    }
    return LlamaConfig(**common | own)
