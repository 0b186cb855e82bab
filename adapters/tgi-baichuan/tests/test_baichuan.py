"""Logits against a Llama of transformers: it has no Baichuan, which has the same layers under other names."""

import json
from types import SimpleNamespace

import pytest
import tgi_baichuan.plugin
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tgi.plugins import JsonReader
from tgi.testing.check_architecture import check_architecture
from tgi.testing.models import make_llama

SLOPES = torch.tensor([2**-2, 2**-4, 2**-6, 2**-8])
"""Those of 4 heads, by the paper."""


def make_baichuan(folder):
    """Write a checkpoint, and return it and the Llama that it is made of, which has no biases."""
    make_llama(folder, num_key_value_heads=4)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "q_proj" in name]:
        parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        tensors[name.replace("q_proj", "W_pack")] = torch.cat(parts)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    for key in ("num_key_value_heads", "model_type", "attention_bias", "mlp_bias", "rope_theta"):
        del config[key]
    config |= {"architectures": ["BaichuanForCausalLM"], "z_loss_weight": 0}
    (folder / "config.json").write_text(json.dumps(config))
    return reference


def test_rotating_and_with_a_head_of_unit_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(tgi_baichuan.plugin, "_ROTATING", 64)
    monkeypatch.setattr(tgi_baichuan.plugin, "_SECOND", 512)
    reference = make_baichuan(tmp_path)
    reference.lm_head.weight.data = F.normalize(reference.lm_head.weight.data)
    check_architecture(tmp_path, reference=reference)


def test_alibi(tmp_path):
    """A Llama whose positions are all 0, which rotates nothing, with the biases in its mask."""
    llama = make_baichuan(tmp_path)

    def reference(tokens):
        places = torch.arange(tokens.shape[1])
        distance = places - places[:, None]
        mask = (SLOPES[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)[None]
        zeros = torch.zeros_like(tokens)
        return SimpleNamespace(logits=llama(tokens, attention_mask=mask, position_ids=zeros).logits)

    check_architecture(tmp_path, reference=reference)


@pytest.mark.parametrize(("hidden", "alibi"), [(4096, False), (5120, True)])
def test_only_the_larger_models_have_alibi(hidden, alibi):
    sizes = {"num_attention_heads": 32, "num_hidden_layers": 2, "vocab_size": 64000, "intermediate_size": 9}
    config = tgi_baichuan.plugin.read_config(JsonReader(sizes | {"hidden_size": hidden}))
    assert (config.alibi, config.ropes[0] is None) == (alibi, alibi)
