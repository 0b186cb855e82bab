"""Gemma for tgi: the description of the models. Imports no torch."""

from typing import Any

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import (
    LlamaConfig,
    Names,
    read_activation,
    read_gelu,
    read_llama_config,
    read_text_part,
    with_local_rope,
)

_COMMON = {"tie_word_embeddings": True, "head_dim": 256}
_GEMMA2 = {
    **_COMMON,
    "max_position_embeddings": 8192,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = {
    **_COMMON,
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1e6,
}
_NAMES = Names(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
)
_HARMLESS = frozenset({"cache_implementation", "sliding_window_size", "_sliding_window_pattern"})
_NEUTRAL = {"use_bidirectional_attention": (False,)}


def read_gemma(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Gemma 1. Its "gelu" has always meant the approximation. Raises ConfigError."""
    get = get.adapted(defaults=_COMMON | {"max_position_embeddings": 8192})
    read_gelu(get, "hidden_activation", "gelu_pytorch_tanh")
    return _read(get)


def read_gemma2(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Gemma 2, every other layer of which has a window. Raises ConfigError."""
    get = get.adapted(defaults=_GEMMA2)
    read_activation(get, "hidden_activation", ("gelu_tanh",), "gelu_pytorch_tanh")
    return _read(
        get,
        get.size("sliding_window"),
        slides=lambda layer: layer % 2 == 0,
        names=_NAMES,
        attention_scale=get.size("query_pre_attn_scalar") ** -0.5,
        attention_softcap=get.positive("attn_logit_softcapping", None),
        logit_softcap=get.positive("final_logit_softcapping", None),
    )


def read_gemma3(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Gemma 3, whose layers with a window have a RoPE of their own.

    Raises ConfigError.
    """
    get = get.adapted(defaults=_GEMMA3)
    read_activation(get, "hidden_activation", ("gelu_tanh",), "gelu_pytorch_tanh")
    every = get.size("sliding_window_pattern", 6)
    config = _read(
        get,
        get.size("sliding_window"),
        slides=lambda layer: (layer + 1) % every != 0,
        names=_NAMES,
        head_norm="head",
        attention_scale=get.size("query_pre_attn_scalar") ** -0.5,
        logit_softcap=get.positive("final_logit_softcapping", None),
        ropes=(),
    )
    return with_local_rope(config, get, get(float, "rope_local_base_freq", 10_000.0))


def _read(get: JsonReader, window: int | None = None, **own: Any) -> LlamaConfig:
    read_gelu(get, default="gelu")
    bias = get(bool, "attention_bias", False)
    return read_llama_config(
        get,
        window,
        activation="gelu_tanh",
        norm_offset=1.0,
        embedding_scale=get.size("hidden_size") ** 0.5,
        qkv_bias=bias,
        out_bias=bias,
        **own,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head, and that of the models of images and text."""
    readers = {
        "GemmaForCausalLM": read_gemma,
        "Gemma2ForCausalLM": read_gemma2,
        "Gemma3ForCausalLM": read_gemma3,
        "Gemma3ForConditionalGeneration": read_text_part(read_gemma3, "gemma3_text"),
    }
    return [
        Architecture(name, "tgi.layers:LlamaDecoder", read, _HARMLESS, _NEUTRAL)
        for name, read in readers.items()
    ]
