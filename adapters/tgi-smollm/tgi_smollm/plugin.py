"""SmolLM3 for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, ConfigError, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, read_llama_config, read_whole_rope

_DEFAULTS = {
    "max_position_embeddings": 32768,
    "num_key_value_heads": 4,
    "rope_theta": 2_000_000.0,
    "tie_word_embeddings": True,
}


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json, by which some layers do not rotate. Raises ConfigError."""
    get = get.adapted(defaults=_DEFAULTS)
    layers, every = get.size("num_hidden_layers"), get.size("no_rope_layer_interval", 4)
    rotates = get(list, "no_rope_layers", [int((layer + 1) % every != 0) for layer in range(layers)])
    if len(rotates) != layers:
        raise ConfigError(f"config.json: 'no_rope_layers' has {len(rotates)} entries, expected {layers}")
    window = get.optional_size("sliding_window") if get(bool, "use_sliding_window", False) else None
    rope = read_whole_rope(
        get, get.size("head_dim", get.size("hidden_size") // get.size("num_attention_heads"))
    )
    bias = get(bool, "attention_bias", False)
    return read_llama_config(
        get,
        window,
        slides=lambda layer: not rotates[layer],
        ropes=tuple(rope if turns else None for turns in rotates),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=get(bool, "mlp_bias", False),
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head."""
    return [Architecture("SmolLM3ForCausalLM", "tgi.layers:LlamaDecoder", read_config)]
