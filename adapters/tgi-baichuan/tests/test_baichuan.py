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
from tgi.testing.check_generation import check_generation
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


def make_7b(folder, monkeypatch):
    """One that rotates, with the second generation's head of unit rows."""
    monkeypatch.setattr(tgi_baichuan.plugin, "_ROTATING", 64)
    monkeypatch.setattr(tgi_baichuan.plugin, "_SECOND", 512)
    reference = make_baichuan(folder)
    reference.lm_head.weight.data = F.normalize(reference.lm_head.weight.data)
    return reference


class Alibi:
    """A Llama whose positions are all 0, which rotates nothing, with the biases in its mask."""

    def __init__(self, folder, _):
        self._llama = make_baichuan(folder)
        self.config = self._llama.config

    def __call__(self, tokens):
        places = torch.arange(tokens.shape[1])
        distance = places - places[:, None]
        mask = (SLOPES[:, None, None] * distance).masked_fill(distance > 0, -torch.inf)[None]
        zeros = torch.zeros_like(tokens)
        return SimpleNamespace(logits=self._llama(tokens, attention_mask=mask, position_ids=zeros).logits)

    @torch.inference_mode()
    def generate(self, tokens, max_new_tokens, **_):
        logits = []
        for _ in range(max_new_tokens):
            logits.append(self(tokens).logits[:, -1])
            tokens = torch.cat((tokens, logits[-1].argmax(-1, keepdim=True)), 1)
        return SimpleNamespace(sequences=tokens, logits=tuple(logits))


CONFIGS = {"2 of 7B": make_7b, "13B": Alibi}


@pytest.mark.parametrize("name", CONFIGS)
def test_baichuan(tmp_path, monkeypatch, name):
    reference = CONFIGS[name](tmp_path, monkeypatch)
    check_architecture(tmp_path, reference=reference)
    check_generation(tmp_path, [5, 40], reference=lambda: reference)


@pytest.mark.parametrize(("hidden", "alibi"), [(4096, False), (5120, True)])
def test_only_the_larger_models_have_alibi(hidden, alibi):
    sizes = {"num_attention_heads": 32, "num_hidden_layers": 2, "vocab_size": 64000, "intermediate_size": 9}
    config = tgi_baichuan.plugin.read_config(JsonReader(sizes | {"hidden_size": hidden}))
    assert (config.alibi, config.ropes[0] is None) == (alibi, alibi)
