"""Logits and text against transformers for GPT-2, GPT-J and GPT-NeoX."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, GPTNeoXConfig

from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

OLD = {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
NEW = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "GPT-2": GPT2Config(**OLD),
    "GPT-2 with another inner size": GPT2Config(**OLD, n_inner=48, activation_function="gelu"),
    "GPT-J": GPTJConfig(**OLD, rotary_dim=8),
    "GPT-NeoX": GPTNeoXConfig(**NEW, intermediate_size=48),
    "GPT-NeoX one after the other": GPTNeoXConfig(
        **NEW, intermediate_size=48, use_parallel_residual=False, attention_bias=False, rotary_pct=1.0
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_gpt(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])


def test_names_and_buffers_of_the_first_checkpoints(tmp_path):
    folder = make_checkpoint(tmp_path, CONFIGS["GPT-2"])
    reference = AutoModelForCausalLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 128, 128).tril()
    save_file(old, folder / "model.safetensors", {"format": "pt"})
    check_architecture(folder, reference=reference, cards=[], ranks=0)
