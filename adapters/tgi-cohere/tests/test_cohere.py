"""Logits and text against transformers for Command R and its successors."""

import pytest
from transformers import Cohere2Config, CohereConfig

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "logit_scale": 0.25,
}
CONFIGS = {
    "R": CohereConfig(**SIZES, num_hidden_layers=2, attention_bias=True),
    "R+": CohereConfig(**SIZES, num_hidden_layers=2, use_qk_norm=True, tie_word_embeddings=False),
    "R7B": Cohere2Config(**SIZES, num_hidden_layers=4, sliding_window=24),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_cohere(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])
