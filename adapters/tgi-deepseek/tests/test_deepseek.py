"""Logits and text against transformers for DeepSeek V2 and V3, and the sizes of published models."""

import pytest
from transformers import DeepseekV2Config, DeepseekV3Config

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import describe_config, make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "mscale": 0.7,
    "mscale_all_dim": 0.9,
    "rope_theta": 1e4,
}
GROUPS = {"n_group": 4, "topk_group": 2}
CONFIGS = {
    "V2 Lite": DeepseekV2Config(**SIZES, q_lora_rank=None),
    "V2": DeepseekV2Config(
        **SIZES, **GROUPS, q_lora_rank=20, topk_method="group_limited_greedy", routed_scaling_factor=4.0
    ),
    "V3": DeepseekV3Config(
        **SIZES, **GROUPS, q_lora_rank=20, rope_parameters=YARN, max_position_embeddings=128
    ),
    "V3 with biases": DeepseekV3Config(
        **SIZES, n_group=1, topk_group=1, q_lora_rank=None, attention_bias=True, norm_topk_prob=False
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_deepseek(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])


V2_LITE = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "vocab_size": 102400,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "q_lora_rank": None,
    "first_k_dense_replace": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "topk_method": "greedy",
}
V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "topk_method": "noaux_tc",
}


@pytest.mark.parametrize(("config", "billions", "layers"), [(V2_LITE, 15.7, 27), (V3, 671.0, 61)])
def test_published_sizes(tmp_path, config, billions, layers):
    """The papers say 15.7 and 671 billion parameters, and 576 numbers in the cache for a token and layer."""
    described = describe_config(tmp_path, config)
    assert described.parameters / 1e9 == pytest.approx(billions, abs=0.05)
    assert described.groups[0].token_bytes == 576 * layers * 2
