"""Command R and its successors for tgi: the description of the models. Imports no torch."""

from typing import Any

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, Names, read_llama_config, read_whole_rope, read_windows

_DEFAULTS = {
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
_NEUTRAL = {
    "layer_switch": (4,),
    "order_of_interleaved_layers": ("local_attn_first",),
    "position_embedding_type": ("rope_gptj",),
    "rotary_pct": (1.0,),
    "use_embedding_sharing": (True,),
    "use_gated_activation": (True,),
    "use_parallel_block": (True,),
}
_HARMLESS = frozenset({"cache_implementation", "use_parallel_embedding"})


def read_cohere(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Command R, which may normalise queries and keys. Raises ConfigError."""
    norm = "heads" if get(bool, "use_qk_norm", False) else None
    return _read(get.adapted(defaults={"rope_theta": 500_000.0}), head_norm=norm)


def read_cohere2(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Command R7B or A, which rotates in layers with a window only.

    Raises ConfigError.
    """
    layers, window = get.size("num_hidden_layers"), get.size("sliding_window", 4096)
    every = get.size("sliding_window_pattern", 4)
    windows = read_windows(get, layers, window, lambda layer: (layer + 1) % every != 0)
    size = get.size("head_dim", get.size("hidden_size") // get.size("num_attention_heads"))
    rope = read_whole_rope(get, size)
    ropes = tuple(None if window is None else rope for window in windows)
    return _read(get, windows=windows, ropes=ropes)


def _read(get: JsonReader, **own: Any) -> LlamaConfig:
    get = get.adapted({"rms_norm_eps": "layer_norm_eps"}, _DEFAULTS)
    bias = get(bool, "attention_bias", False)
    return read_llama_config(
        get,
        names=Names(before_mlp=None),
        layer_norm=True,
        parallel=True,
        interleaved=True,
        qkv_bias=bias,
        out_bias=bias,
        logit_scale=get(float, "logit_scale"),
        **own,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {"CohereForCausalLM": read_cohere, "Cohere2ForCausalLM": read_cohere2}
    return [
        Architecture(name, "tgi.layers:LlamaDecoder", read, _HARMLESS, _NEUTRAL)
        for name, read in readers.items()
    ]
