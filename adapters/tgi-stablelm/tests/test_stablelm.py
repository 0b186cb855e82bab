"""Logits and text against transformers for StableLM 1.6B, 3B and 12B."""

import pytest
from transformers import StableLmConfig

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
}
CONFIGS = {
    "3B": StableLmConfig(**SIZES),
    "1.6B": StableLmConfig(**SIZES, use_qkv_bias=True, partial_rotary_factor=0.5),
    "12B": StableLmConfig(**SIZES, use_parallel_residual=True, qk_layernorm=True),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_stablelm(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])
