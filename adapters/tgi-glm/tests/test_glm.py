"""Logits and text against transformers for GLM-4 and its successors."""

import pytest
from transformers import Glm4Config, Glm4MoeConfig, GlmConfig

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS = {
    "4": GlmConfig(**SIZES),
    "4-0414": Glm4Config(**SIZES, attention_bias=False),
    "4.5 Air": Glm4MoeConfig(**SIZES, **EXPERTS, attention_bias=True),
    "4.5": Glm4MoeConfig(
        **SIZES,
        **EXPERTS,
        attention_bias=True,
        use_qk_norm=True,
        routed_scaling_factor=2.5,
        n_group=2,
        topk_group=1,
        n_shared_experts=2,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_glm(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder, expert_parallel=name == "4.5 Air")
    check_generation(folder, [5, 40])
