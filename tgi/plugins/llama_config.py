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
    windows: tuple[int | None, ...]
    """Number of tokens that a token sees in each layer, itself included; None: all before it."""
    qkv_bias: bool = False
    out_bias: bool = False
    """Whether the attention's output projection has a bias."""
    mlp_bias: bool = False


def read_llama_config(get: JsonReader, window: int | None = None, **own: Any) -> LlamaConfig:
    """Read config.json with the names and defaults of Llama; `own` fields of a family replace or extend them.

    `window` is that of the layers which "layer_types" calls sliding, or of all if there is none.
    Raises ConfigError if config.json asks for something that `LlamaDecoder` cannot do.
    """
    heads, hidden = get.size("num_attention_heads"), get.size("hidden_size")
    activation = get(str, "hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"config.json: 'hidden_act' is {activation!r}; only 'silu' is supported")
    head_dim = get.size("head_dim", hidden // heads)
    rope = read_rope(get, head_dim)
    if rope.dim != head_dim:
        raise ConfigError(
            "config.json: 'partial_rotary_factor' is set; this architecture rotates whole heads"
        )
    layers = get.size("num_hidden_layers")
    common: dict[str, Any] = {
        "vocab_size": get.size("vocab_size"),
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": get.size("num_key_value_heads", heads),
        "head_dim": head_dim,
        "max_position": get.size("max_position_embeddings", 2048),
        "prefix_limit": rope.depends_on_length_beyond,
        "intermediate_size": get.size("intermediate_size"),
        "rms_norm_eps": get(float, "rms_norm_eps", 1e-6),
        "rope": rope,
        "windows": _windows(get, layers, window),
        "tie_word_embeddings": get(bool, "tie_word_embeddings", False),
    }
    return LlamaConfig(**common | own)


def _windows(get: JsonReader, layers: int, window: int | None) -> tuple[int | None, ...]:
    types = get(list, "layer_types", None)
    if types is None:
        return (window,) * layers
    known = ("full_attention",) if window is None else ("full_attention", "sliding_attention")
    other = [kind for kind in types if kind not in known]
    if other or len(types) != layers:
        fault = f"has {other[0]!r}" if other else f"has {len(types)} entries"
        raise ConfigError(f"config.json: 'layer_types' {fault}; expected {layers} of {', '.join(known)}")
    return tuple(window if kind == "sliding_attention" else None for kind in types)
