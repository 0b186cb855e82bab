"""Logits against a Llama of transformers: it has no InternLM, which has the same layers under other names."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.models import make_llama

DYNAMIC = {"type": "dynamic", "factor": 2.0}
NAMES = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
}


def rename(folder, architecture, change):
    """Give a Llama's checkpoint another architecture; return the Llama."""
    reference = AutoModelForCausalLM.from_pretrained(folder)
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    del config["attention_bias"], config["mlp_bias"], config["model_type"]
    (folder / "config.json").write_text(json.dumps(config | architecture))
    return reference


def by_group(tensors):
    """Join queries, keys and values of each key/value head, of which there are 2 of 16 rows."""
    renamed = {}
    for name, tensor in tensors.items():
        if "q_proj" in name:
            key, value = (tensors[name.replace("q_proj", f"{part}_proj")] for part in "kv")
            groups = zip(tensor.split(32), key.split(16), value.split(16), strict=True)
            name = name.replace("self_attn.q_proj", "attention.wqkv")
            renamed[name] = torch.cat([part for group in groups for part in group])
        elif "k_proj" not in name and "v_proj" not in name:
            for old, new in NAMES.items():
                name = name.replace(old, new)
            renamed[name] = tensor
    return renamed


def make_internlm2(folder, _):
    make_llama(folder, rope_scaling=DYNAMIC, max_position_embeddings=128)
    architecture = {"architectures": ["InternLM2ForCausalLM"], "bias": False, "attn_implementation": "eager"}
    return rename(folder, architecture, by_group)


def make_internlm3(folder, _):
    make_llama(folder, attention_bias=True, mlp_bias=True, head_dim=24)
    architecture = {"architectures": ["InternLM3ForCausalLM"], "bias": True, "qkv_bias": True}
    return rename(folder, architecture, dict)


CONFIGS = {"2.5": make_internlm2, "3": make_internlm3}


@pytest.mark.parametrize("name", CONFIGS)
def test_internlm(tmp_path, monkeypatch, name):
    reference = CONFIGS[name](tmp_path, monkeypatch)
    check_architecture(tmp_path, reference=reference)
    check_generation(tmp_path, [5, 40], reference=lambda: copy.deepcopy(reference))
