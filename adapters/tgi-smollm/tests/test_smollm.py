"""Logits and text against transformers for SmolLM3."""

import pytest
from transformers import SmolLM3Config

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "3B": SmolLM3Config(**SIZES, num_hidden_layers=4),
    "with windows and biases": SmolLM3Config(
        **SIZES,
        num_hidden_layers=2,
        no_rope_layers=[0, 1],
        use_sliding_window=True,
        sliding_window=24,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_smollm(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])
