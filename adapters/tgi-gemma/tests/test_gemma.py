"""Logits and text against transformers for every generation of Gemma, and the published sizes of one."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from tgi_gemma.plugin import read_gemma3
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GemmaConfig

from tgi.plugins import JsonReader
from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import describe_config, make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}
WINDOW = {"sliding_window": 24, "query_pre_attn_scalar": 24}
LINEAR = {"rope_type": "linear", "factor": 8.0}
CONFIGS = {
    "1": GemmaConfig(**SIZES),
    "1 with its legacy activation": GemmaConfig(**SIZES, hidden_act="gelu", attention_bias=True),
    "2": Gemma2Config(**SIZES, **CAPS, **WINDOW),
    "3": Gemma3TextConfig(**SIZES, **WINDOW, rope_scaling=LINEAR, sliding_window_pattern=2),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_gemma(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder)
    check_generation(folder, [5, 40])


def test_ropes_of_published_configs():
    """Before transformers 5 the two bases stood beside the scaling, which is that of one kind of layers."""
    new = json.loads(CONFIGS["3"].to_json_string())
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old |= {"rope_scaling": LINEAR, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    assert read_gemma3(JsonReader(old)) == read_gemma3(JsonReader(new))


@pytest.mark.parametrize("names", ["language_model.model.", "model.language_model."])
def test_a_model_of_images_and_text(tmp_path, names):
    """Its decoder, by its names in published files and by those that transformers 5 writes."""
    folder = make_checkpoint(tmp_path, CONFIGS["3"])
    reference = AutoModelForCausalLM.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    renamed = {names + name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    renamed["vision_tower.patch.weight"] = torch.ones(3)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    text = json.loads((folder / "config.json").read_bytes())
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(config))
    check_generation(folder, [20], tokens=8, reference=lambda: reference)


GEMMA_27B = {
    "hidden_size": 5376,
    "intermediate_size": 21504,
    "num_hidden_layers": 62,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "head_dim": 128,
    "query_pre_attn_scalar": 168,
    "sliding_window": 1024,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "model_type": "gemma3_text",
}


def test_sizes_of_a_model_of_images_and_text(tmp_path):
    """Gemma 3 27B has 27,009,346,304 parameters without its vision tower."""
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": GEMMA_27B}
    described = describe_config(tmp_path, config | {"vision_config": {}})
    assert sum({each.name: math.prod(each.shape) for each in described.tensors}.values()) == 27_009_346_304
    assert [(group.window, len(group.layers)) for group in described.groups] == [(1024, 52), (None, 10)]
