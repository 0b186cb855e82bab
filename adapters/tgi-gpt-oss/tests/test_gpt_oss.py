"""Logits and text against transformers, and experts in MXFP4 against transformers' own expansion."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tgi_gpt_oss.plugin import read_config
from transformers import AutoModelForCausalLM, GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.device.cpu.packed import PackedExperts
from tgi.layers import Build
from tgi.layers.moe import read_experts
from tgi.plugins import JsonReader
from tgi.plugins.lookup import read_config_json
from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import describe_config, make_checkpoint
from tgi.weights import Checkpoint, Shard
from tgi.weights.formats import read_format

SIZES = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": 24,
}
CONFIGS = {"20B": GptOssConfig(**SIZES)}


def test_gpt_oss(tmp_path):
    folder = make_checkpoint(tmp_path, CONFIGS["20B"])
    check_architecture(folder, expert_parallel=True)
    check_generation(folder, [5, 40])


def make_packed(tmp_path):
    """Make a checkpoint with experts in MXFP4, and the same model in transformers."""
    folder = make_checkpoint(tmp_path, GptOssConfig(**SIZES, tie_word_embeddings=False))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith("_proj") and "experts" in name]:
        experts, width, rows = tensors.pop(name).shape
        shape = (experts, rows, width // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(121, 125, shape, dtype=torch.uint8, generator=generator)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        expanded = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        model.get_parameter(name).data.copy_(expanded)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, model


@pytest.mark.parametrize("ranks", [2, 4])
def test_experts_in_4_bits(tmp_path, ranks):
    """Four ranks have parts of an expert that are no multiples of 32 numbers."""
    folder, model = make_packed(tmp_path)
    check_architecture(folder, reference=model, cards=[], ranks=ranks)


class Keeping(Device):
    """The definition of what the kernels multiply."""

    keeps = frozenset({"int4", "nested"})


def experts_of(folder, device, rank=0, ranks=1):
    get = JsonReader(read_config_json(folder))
    build = Build(Checkpoint(folder), Shard(rank, ranks), device, torch.float32, read_format(get))
    return read_experts(build, "model.layers.0.mlp", read_config(get)), build


def test_experts_stay_in_4_bits(tmp_path):
    """A layer's are one call of the kernels, whose result for a token depends on nothing else."""
    folder, device = make_packed(tmp_path)[0], open_device(1)
    if "nested" not in device.keeps:
        pytest.skip("the kernels are not built here")
    experts, build = experts_of(folder, device)
    assert isinstance(experts, PackedExperts)
    kept = {tensor.bytes for tensor in build.tensors if tensor.format == "mxfp4"}
    assert kept == {64 * 64 // 2 + 64 * 2 + 64 * 4}  # numbers, exponents, and one factor for each row
    x = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    weights, chosen = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)).softmax(-1).topk(2, -1)
    got = device.experts(x, weights, chosen, experts)
    alone = [device.experts(x[i : i + 1], weights[i : i + 1], chosen[i : i + 1], experts) for i in range(40)]
    assert torch.equal(torch.cat(alone), got)
    halves = (experts_of(folder, device, rank, 2)[0] for rank in range(2))
    torch.testing.assert_close(sum(device.experts(x, weights, chosen, half) for half in halves), got)
    plain = Keeping()
    error = (plain.experts(x, weights, chosen, experts_of(folder, plain)[0]) - got).abs() / got.abs().max()
    assert error.median() < 1e-6  # a number between two integers may be rounded to the other one
    assert error.max() < 0.01


GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 24,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "experts_per_token": 4,
    "num_experts_per_tok": 4,
    "initial_context_length": 4096,
    "swiglu_limit": 7.0,
    "quantization_config": {"quant_method": "mxfp4"},
}


def test_the_published_size(tmp_path):
    """OpenAI says 20.91 billion parameters."""
    described = describe_config(tmp_path, GPT_OSS_20B)
    assert described.parameters == pytest.approx(20.91e9, rel=1e-3)
    assert [(group.window, len(group.layers)) for group in described.groups] == [(128, 12), (None, 12)]
