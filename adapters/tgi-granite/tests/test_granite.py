"""Logits and text against transformers for Granite 3, with every switch of published configs."""

import pytest
from transformers import GraniteConfig, GraniteMoeConfig, GraniteMoeSharedConfig

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SCALES = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
    "logits_scaling": 4.0,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
CONFIGS = {
    "3": GraniteConfig(**SIZES, **SCALES, tie_word_embeddings=True),
    "3 with biases": GraniteConfig(**SIZES, **SCALES, attention_bias=True, mlp_bias=True),
    "3 MoE": GraniteMoeConfig(**SIZES, **SCALES, **EXPERTS),
    "3 MoE with a shared MLP": GraniteMoeSharedConfig(
        **SIZES, **SCALES, **EXPERTS, shared_intermediate_size=24
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_granite(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])
