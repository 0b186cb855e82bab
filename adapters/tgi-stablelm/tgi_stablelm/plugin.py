"""StableLM for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, Names, read_llama_config
from tgi.plugins.rope_config import read_rope


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json. Raises ConfigError if it asks for something that the layers cannot do."""
    names = {"rms_norm_eps": "layer_norm_eps", "partial_rotary_factor": "rope_pct"}
    defaults = {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "partial_rotary_factor": 0.25}
    get = get.adapted(names, defaults)
    parallel = get(bool, "use_parallel_residual", False)
    rope = read_rope(get, get.size("hidden_size") // get.size("num_attention_heads"))
    return read_llama_config(
        get,
        ropes=(rope,) * get.size("num_hidden_layers"),
        names=Names(
            before_mlp=None if parallel else "post_attention_layernorm",
            query_norm="q_layernorm.norms.{}",
            key_norm="k_layernorm.norms.{}",
        ),
        parallel=parallel,
        layer_norm=True,
        norm_bias=True,
        head_norm="heads" if get(bool, "qk_layernorm", False) else None,
        qkv_bias=get(bool, "use_qkv_bias", False),
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head, under both of its names."""
    names, model = ("StableLmForCausalLM", "StableLMEpochForCausalLM"), "tgi.layers:LlamaDecoder"
    harmless = frozenset({"rotary_scaling_factor"})
    return [Architecture(name, model, read_config, harmless) for name in names]
