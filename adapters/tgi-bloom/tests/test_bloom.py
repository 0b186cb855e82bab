"""Logits and text against transformers for Bloom."""

import pytest
from transformers import BloomConfig

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint


@pytest.mark.parametrize("heads", [4, 6])
def test_bloom(tmp_path, heads):
    folder = make_checkpoint(tmp_path, BloomConfig(vocab_size=320, hidden_size=48, n_layer=2, n_head=heads))
    check_architecture(folder)
    check_generation(folder, [5, 40])
