"""Logits and text against transformers for every Phi, with every switch of published configs."""

import pytest
from transformers import Phi3Config, PhiConfig, PhimoeConfig

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
    "pad_token_id": 0,
}


def longrope(pairs, **more):
    """Factors for heads of which that many pairs of features are rotated, from 32 tokens to 128."""
    short, long = ([start + i / 8 for i in range(pairs)] for start in (1.0, 2.0))
    return {"rope_type": "longrope", "short_factor": short, "long_factor": long, "rope_theta": 1e4, **more}


LENGTHS = {"max_position_embeddings": 128, "original_max_position_embeddings": 32}
ALIKE = {"short_mscale": 1.2, "long_mscale": 1.2, "long_factor": longrope(8)["short_factor"]}
EXPERTS = {"num_local_experts": 4, "attention_bias": True, "lm_head_bias": True}
CONFIGS = {
    "2": PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "1 with norms of queries": PhiConfig(**SIZES, partial_rotary_factor=0.25, qk_layernorm=True),
    "3 with a window": Phi3Config(**SIZES, sliding_window=24),
    "3.5": Phi3Config(**SIZES, **LENGTHS, rope_parameters=longrope(8)),
    "4 mini": Phi3Config(
        **SIZES,
        **LENGTHS,
        rope_parameters=longrope(6, partial_rotary_factor=0.75),
        tie_word_embeddings=True,
    ),
    # transformers never takes the long factors of a Phi-MoE, as its authors' own code does
    "3.5 MoE": PhimoeConfig(
        **SIZES,
        **EXPERTS,
        max_position_embeddings=128,
        rope_parameters=longrope(8, **ALIKE, original_max_position_embeddings=32),
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_phi(tmp_path, name):
    """Texts stay within the original length or begin beyond it: transformers rotates all tokens alike."""
    config = CONFIGS[name]
    folder = make_checkpoint(tmp_path, config)
    check_architecture(folder, lengths=(26, 5, 18))
    scaled = config.rope_parameters["rope_type"] == "longrope"
    check_generation(folder, [5, 40], tokens=24 if scaled else 64)
