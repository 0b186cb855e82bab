"""Logits and text against transformers for both generations of StarCoder."""

import pytest
from transformers import GPTBigCodeConfig, Starcoder2Config

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

OLD = {"vocab_size": 320, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
NEW = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "1": GPTBigCodeConfig(**OLD),
    "1 with keys and values for each head": GPTBigCodeConfig(**OLD, multi_query=False, n_inner=48),
    "2": Starcoder2Config(**NEW, sliding_window=24),
    "2 without biases": Starcoder2Config(**NEW, use_bias=False, tie_word_embeddings=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_starcoder(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])
