"""Phi for tgi: the description of the models. Imports no torch."""

import attrs

from tgi.plugins import Architecture, ConfigError, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import (
    LlamaConfig,
    Names,
    read_gelu,
    read_gpt_config,
    read_llama_config,
)
from tgi.plugins.rope_config import read_rope

_PHI3 = {
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
_PHIMOE = {
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "num_key_value_heads": 8,
    "router_jitter_noise": 0.01,
}


def read_phi(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Phi 1, 1.5 or 2, whose layers add attention and MLP together.

    Raises ConfigError.
    """
    get = get.adapted({"rms_norm_eps": "layer_norm_eps"})
    heads, size = get.size("num_attention_heads"), get.size("hidden_size")
    partial = get.adapted(defaults={"partial_rotary_factor": 0.5})
    return read_gpt_config(
        get,
        bias=True,
        ropes=(read_rope(partial, size // heads),) * get.size("num_hidden_layers"),
        activation=read_gelu(get),
        parallel=True,
        head_norm="head" if get(bool, "qk_layernorm", False) else None,
        head_bias=True,
        names=Names(
            norm="model.final_layernorm",
            before_mlp=None,
            query_norm="q_layernorm",
            key_norm="k_layernorm",
            out="dense",
            up=("fc1",),
            down="fc2",
        ),
    )


def read_phi3(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Phi 3, 3.5 or 4, whose projections are fused. Raises ConfigError."""
    get = get.adapted(defaults=_PHI3)
    heads, size = get.size("num_attention_heads"), get.size("hidden_size")
    rope = read_rope(get, get.size("head_dim", size // heads))
    if rope.kind == "yarn":  # an old name
        rope = attrs.evolve(rope, kind="longrope")
    layers = get.size("num_hidden_layers")
    return read_llama_config(
        get,
        windows=(get.optional_size("sliding_window"),) * layers,
        ropes=(rope,) * layers,
        names=Names(qkv=("qkv_proj",), up=("gate_up_proj",)),
    )


def read_phimoe(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Phi 3.5 MoE. Raises ConfigError."""
    get = get.adapted(defaults=_PHIMOE)
    bias, layers = get(bool, "attention_bias", False), get.size("num_hidden_layers")
    if (top := get(int, "num_experts_per_tok", 2)) != 2:
        raise ConfigError(f"config.json: 'num_experts_per_tok' is {top}; SparseMixer chooses 2 experts")
    experts = ExpertsConfig(
        layers=(True,) * layers,
        count=get.size("num_local_experts", 16),
        top=top,
        inner=get.size("intermediate_size"),
        scores="sparsemixer",
        jitter=get(float, "router_jitter_noise"),
        name="block_sparse_moe",
        up=("experts.{}.w1.weight", "experts.{}.w3.weight"),
        down="experts.{}.w2.weight",
    )
    return read_llama_config(
        get,
        windows=(get.optional_size("sliding_window"),) * layers,
        layer_norm=True,
        norm_bias=True,
        qkv_bias=bias,
        out_bias=bias,
        head_bias=get(bool, "lm_head_bias", False),
        experts=experts,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {
        "PhiForCausalLM": read_phi,
        "Phi3ForCausalLM": read_phi3,
        "PhimoeForCausalLM": read_phimoe,
        "PhiMoEForCausalLM": read_phimoe,
    }
    harmless = frozenset({"input_jitter_noise", "embd_layer", "rotary_emb_base"})
    neutral = {"full_attn_mod": (1,), "interpolate_factor": (1,), "lm_head_bias": (False,)}  # of Phi-4-mini
    return [
        Architecture(name, "tgi.layers:LlamaDecoder", read, harmless, neutral)
        for name, read in readers.items()
    ]
