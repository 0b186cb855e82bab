"""DeepSeek V2 and V3 for tgi: the description of the models. Imports no torch."""

import math
from typing import Any

import attrs

from tgi.plugins import Architecture, ConfigError, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LatentSizes, LlamaConfig, read_llama_config, read_whole_rope
from tgi.plugins.rope_config import RopeConfig

_SIZES = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
_V2 = {**_SIZES, "q_lora_rank": 1536, "first_k_dense_replace": 0, "n_shared_experts": 2}
_V3 = {**_SIZES, "q_lora_rank": 1536, "first_k_dense_replace": 3, "n_shared_experts": 1}
_HARMLESS = frozenset(
    {
        "aux_loss_alpha",
        "ep_size",
        "head_dim",
        "num_key_value_heads",
        "num_mtp_layers",
        "qk_head_dim",
        "seq_aux",
    }
)
"""Training, and sizes that follow from others."""
_NEUTRAL = {"moe_layer_freq": (1,)}
_NEUTRAL_V2 = {"scoring_func": ("softmax",), "norm_topk_prob": (False,)}
_NEUTRAL_V3 = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}


def read_v2(get: JsonReader) -> LlamaConfig:
    """Read config.json of a DeepSeek V2. Raises ConfigError if the layers cannot do what it asks for."""
    get = get.adapted({"n_routed_experts": "num_experts"}, _V2)
    groups, top_groups = get.size("n_group", 1), get.size("topk_group", 1)  # greedy has none
    method = get(str, "topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise ConfigError(
            f"config.json: 'topk_method' is {method!r}; a DeepSeek V2 chooses experts otherwise"
        )
    grouped = method != "greedy"
    return _read(
        get,
        normalise=False,
        groups=groups if grouped else 1,
        top_groups=top_groups if grouped else 1,
        scale=get(float, "routed_scaling_factor", 1.0),
    )


def read_v3(get: JsonReader) -> LlamaConfig:
    """Read config.json of a DeepSeek V3 or R1, whose router has a bias for the choice of experts.

    Raises ConfigError.
    """
    get = get.adapted({"n_routed_experts": "num_local_experts"}, _V3)
    return _read(
        get,
        scores="sigmoid",
        correction="gate.e_score_correction_bias",
        normalise=get(bool, "norm_topk_prob", True),
        groups=get.size("n_group", 8),
        top_groups=get.size("topk_group", 4),
        group_top=2,
        scale=get(float, "routed_scaling_factor", 2.5),
    )


def _read(get: JsonReader, **routing: Any) -> LlamaConfig:
    layers, dense = get.size("num_hidden_layers"), get(int, "first_k_dense_replace")
    inner, bias = get.size("moe_intermediate_size"), get(bool, "attention_bias", False)
    sizes = LatentSizes(
        rank=get.size("kv_lora_rank"),
        query_rank=get(int, "q_lora_rank", None),
        plain=get.size("qk_nope_head_dim"),
        rotated=get.size("qk_rope_head_dim"),
        value=get.size("v_head_dim"),
    )
    experts = ExpertsConfig(
        layers=tuple(layer >= dense for layer in range(layers)),
        count=get.size("n_routed_experts"),
        top=get.size("num_experts_per_tok", 8),
        inner=inner,
        wide=True,
        shared=inner * get.size("n_shared_experts"),
        shared_name="mlp.shared_experts",
        **routing,
    )
    rope = read_whole_rope(get, sizes.rotated)
    config = read_llama_config(
        get,
        ropes=(rope,) * layers,
        interleaved=get(bool, "rope_interleave", True),
        qkv_bias=bias,
        out_bias=bias,
        attention_scale=_scale(sizes, rope),
        experts=experts,
        latent=sizes,
    )
    return attrs.evolve(config, num_kv_heads=1, head_dim=sizes.rank + sizes.rotated)


def _scale(sizes: LatentSizes, rope: RopeConfig) -> float:
    """Return the factor of the scores, which a longer context sharpens."""
    longer = rope.kind != "default" and rope.factor > 1
    sharpness = 0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1 if longer else 1.0
    return sharpness**2 / math.sqrt(sizes.plain + sizes.rotated)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    model = "tgi.layers:LlamaDecoder"
    v2, v3 = _NEUTRAL | _NEUTRAL_V2, _NEUTRAL | _NEUTRAL_V3
    return [
        Architecture("DeepseekV2ForCausalLM", model, read_v2, _HARMLESS, v2),
        Architecture("DeepseekV3ForCausalLM", model, read_v3, _HARMLESS, v3),
    ]
