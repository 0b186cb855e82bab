"""Logits and text against transformers for MPT."""

import pytest
from tgi_mpt.plugin import read_config
from transformers import MptConfig

from tgi.plugins import ConfigError, JsonReader
from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {"vocab_size": 320, "d_model": 32, "n_layers": 2, "n_heads": 4}
CONFIGS = {
    "plain": MptConfig(**SIZES),
    "clipped and scaled": MptConfig(**SIZES, attn_config={"clip_qkv": 0.8, "softmax_scale": 0.2}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_mpt(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])


@pytest.mark.parametrize("change", [{"n_heads": 6}, {"attn_config": {"qk_ln": True}}], ids=str)
def test_what_would_be_another_model_is_refused_by_name(change):
    key = next(iter(change.get("attn_config", change)))
    with pytest.raises(ConfigError, match=f"'{key}'"):
        read_config(JsonReader(SIZES | change))
