"""Logits and text against transformers for OLMo 2 and 3 and OLMoE."""

import pytest
from transformers import Olmo2Config, Olmo3Config, OlmoeConfig

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": 1,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CONFIGS = {
    "2": Olmo2Config(**SIZES, num_hidden_layers=2, attention_bias=True),
    "3": Olmo3Config(**SIZES, num_hidden_layers=4, sliding_window=24, rope_scaling=YARN),
    "E": OlmoeConfig(
        **SIZES, num_hidden_layers=2, num_experts=4, num_experts_per_tok=2, clip_qkv=0.8, norm_topk_prob=False
    ),
}
RANKS = {"2": 4, "3": 2, "E": 2}
"""Numbers of ranks: more than key/value heads, whose norm counts each of them once; as many."""


@pytest.mark.parametrize("name", CONFIGS)
def test_olmo(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder, ranks=RANKS[name])
    check_generation(folder, [5, 40])
