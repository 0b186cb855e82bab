"""GLM for tgi: the description of the models. Imports no torch."""

from typing import Any

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig, Names, read_llama_config
from tgi.plugins.rope_config import read_rope

_COMMON = {"max_position_embeddings": 131072, "partial_rotary_factor": 0.5}
_DENSE = {**_COMMON, "attention_bias": True, "head_dim": 128, "num_key_value_heads": 2}
_GLM = Names(up=("gate_up_proj",))
_GLM4 = Names(
    after_attention="post_self_attn_layernorm",
    after_mlp="post_mlp_layernorm",
    up=("gate_up_proj",),
)


def read_glm(get: JsonReader) -> LlamaConfig:
    """Read config.json of a GLM-4. Raises ConfigError if it asks for what the layers cannot do."""
    return _read_dense(get, _GLM)


def read_glm4(get: JsonReader) -> LlamaConfig:
    """Read config.json of a GLM-4-0414, which has norms behind attention and MLP. Raises ConfigError."""
    return _read_dense(get, _GLM4)


def read_glm4_moe(get: JsonReader) -> LlamaConfig:
    """Read config.json of a GLM-4.5, most layers of which have experts. Raises ConfigError."""
    get = get.adapted(
        {"n_routed_experts": "num_local_experts"},
        {**_COMMON, "rms_norm_eps": 1e-5, "num_key_value_heads": 8},
    )
    dense, inner = get(int, "first_k_dense_replace", 1), get.size("moe_intermediate_size", 1408)
    experts = ExpertsConfig(
        layers=tuple(layer >= dense for layer in range(get.size("num_hidden_layers"))),
        count=get.size("n_routed_experts", 128),
        top=get.size("num_experts_per_tok", 8),
        inner=inner,
        scores="sigmoid",
        normalise=get(bool, "norm_topk_prob", True),
        scale=get(float, "routed_scaling_factor", 1.0),
        groups=get.size("n_group", 1),
        top_groups=get.size("topk_group", 1),
        group_top=2,
        wide=True,
        correction="gate.e_score_correction_bias",
        shared=inner * get.size("n_shared_experts", 1),
        shared_name="mlp.shared_experts",
    )
    norm = "head" if get(bool, "use_qk_norm", False) else None
    return _read(get, head_norm=norm, experts=experts)


def _read_dense(get: JsonReader, names: Names) -> LlamaConfig:
    get = get.adapted(defaults={**_DENSE, "rms_norm_eps": 1.5625e-7})
    return _read(get, names=names, interleaved=True)


def _read(get: JsonReader, **own: Any) -> LlamaConfig:
    size = get.size("head_dim", get.size("hidden_size") // get.size("num_attention_heads"))
    ropes = (read_rope(get, size),) * get.size("num_hidden_layers")
    return read_llama_config(get, ropes=ropes, qkv_bias=get(bool, "attention_bias", False), **own)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {
        "GlmForCausalLM": read_glm,
        "Glm4ForCausalLM": read_glm4,
        "Glm4MoeForCausalLM": read_glm4_moe,
    }
    harmless = frozenset({"num_mtp_layers"})
    return [Architecture(name, "tgi.layers:LlamaDecoder", read, harmless) for name, read in readers.items()]
