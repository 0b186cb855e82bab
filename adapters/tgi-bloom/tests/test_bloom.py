"""Logits and text against transformers for Bloom."""

import pytest
from transformers import BloomConfig

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {"vocab_size": 320, "hidden_size": 48, "n_layer": 2}
CONFIGS = {
    "4 heads": BloomConfig(**SIZES, n_head=4),
    "6 heads": BloomConfig(**SIZES, n_head=6),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_bloom(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])
