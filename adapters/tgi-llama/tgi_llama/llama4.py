"""Llama 4: the description of its text models. Imports no torch."""

from tgi.plugins import ConfigError, JsonReader
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig, Names, Temperature, read_llama_config, read_whole_rope

_DEFAULTS = {
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
}
_CHUNKED, _FULL = "chunked_attention", "full_attention"


def read_llama4(get: JsonReader) -> LlamaConfig:
    """Read config.json, by which some layers see chunks of the text and others do not rotate.

    Raises ConfigError if it asks for something that the layers cannot do.
    """
    get = get.adapted(defaults=_DEFAULTS)
    layers, every = get.size("num_hidden_layers"), get.size("no_rope_layer_interval", 4)
    rotates = get(list, "no_rope_layers", None) or [(layer + 1) % every != 0 for layer in range(layers)]
    none = get(int, "attention_chunk_size", None) is None and "attention_chunk_size" in get
    chunk = None if none else get.size("attention_chunk_size", 8192)
    types = get(list, "layer_types", [_CHUNKED if chunk and turns else _FULL for turns in rotates])
    if not {*types} <= {_FULL, _CHUNKED if chunk else _FULL} or not len(types) == len(rotates) == layers:
        raise ConfigError(
            "config.json: 'no_rope_layers' and 'layer_types' must have an entry for each layer, and "
            f"chunks a size; they are {rotates} and {types}"
        )
    rope, bias = read_whole_rope(get, get.size("head_dim")), get(bool, "attention_bias", False)
    temperature = Temperature(scale=get(float, "attn_scale", 0.1), step=get.size("floor_scale", 8192))
    return read_llama_config(
        get,
        names=Names(mlp="feed_forward"),
        intermediate_size=get.size("intermediate_size_mlp", 16384),
        ropes=tuple(rope if turns else None for turns in rotates),
        interleaved=True,
        windows=tuple(chunk if kind == _CHUNKED else None for kind in types),
        chunked=True,
        head_norm="plain" if get(bool, "use_qk_norm", True) else None,
        temperature=temperature if get(object, "attn_temperature_tuning", True) else None,
        qkv_bias=bias,
        out_bias=bias,
        experts=_read_experts(get, layers),
    )


def _read_experts(get: JsonReader, layers: int) -> ExpertsConfig:
    """Read the experts, of whose layers the dense ones have a wider MLP. Raises ConfigError."""
    step, inner = get.size("interleave_moe_layer_step", 1), get.size("intermediate_size", 8192)
    sparse = get(list, "moe_layers", list(range(step - 1, layers, step)))
    return ExpertsConfig(
        layers=tuple(layer in sparse for layer in range(layers)),
        count=get.size("num_local_experts", 16),
        top=get.size("num_experts_per_tok", 1),
        inner=inner,
        scores="sigmoid",
        normalise=False,
        before=True,
        name="feed_forward",
        router="router",
        up=("experts.gate_up_proj",),
        down="experts.down_proj",
        transposed=True,
        shared=inner,
        shared_name="feed_forward.shared_expert",
    )
