"""Reads config.json of a Llama, or of a family that is built like one; `tgi.layers.llama` has the layers."""

from typing import Any

import attrs

from .architecture import ConfigError, JsonReader, ModelConfig
from .rope_config import RopeConfig, read_rope


@attrs.frozen(kw_only=True)
class LlamaConfig(ModelConfig):
    """The settings of a decoder like Llama's."""

    intermediate_size: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool
    window: int | None = None
    """Number of tokens that a token sees, itself included; None: all before it."""
    attention_bias: bool = False
    mlp_bias: bool = False


def read_llama_config(get: JsonReader, **own: Any) -> LlamaConfig:
    """Read config.json with the names and defaults of Llama; `own` fields of a family replace or extend them.

    Raises ConfigError if config.json asks for something that `LlamaDecoder` cannot do.
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
        "tie_word_embeddings": get(bool, "tie_word_embeddings", False),
    }
    return LlamaConfig(**common | own)
