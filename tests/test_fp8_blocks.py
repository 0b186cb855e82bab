"""Weights in 8 bits with scales for blocks, against transformers with the real numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, PreTrainedConfig, Qwen3MoeConfig

from tgi.plugins import JsonReader
from tgi.testing.check_architecture import check_architecture
from tgi.testing.checkpoints import make_checkpoint
from tgi.weights.formats import read_format
from tgi.weights.formats.fp8_wide import WideFp8

QUANTIZED = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
SIZES = {
    "vocab_size": 320,
    "hidden_size": 144,
    "intermediate_size": 272,
    "moe_intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
}
CONFIGS = {
    "Qwen3 MoE": Qwen3MoeConfig(
        **SIZES, num_experts=4, head_dim=36, num_key_value_heads=2, mlp_only_layers=[0]
    ),
    "DeepSeek-V3": DeepseekV3Config(
        **SIZES,
        num_key_value_heads=4,
        q_lora_rank=40,
        kv_lora_rank=136,
        qk_nope_head_dim=36,
        qk_rope_head_dim=8,
        v_head_dim=34,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
    ),
}


def quantize(folder):
    """Round the linear layers of a checkpoint by blocks; return the model of what they stand for."""
    tensors, generator = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(0)
    real = {}
    for name, tensor in list(tensors.items()):
        if not name.endswith("proj.weight") and not name.endswith("proj_with_mqa.weight"):
            continue
        rows, columns = tensor.shape
        shape = (-(-rows // 128), -(-columns // 128))
        scales = 0.001 + 0.002 * torch.rand(shape, generator=generator)
        each = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
        tensors[name] = (tensor / each).clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scales
        real[name] = tensors[name].float() * each
    dense = {name: real.get(name, tensor) for name, tensor in tensors.items() if "scale_inv" not in name}
    save_file(dense, folder / "model.safetensors", {"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": QUANTIZED}))
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(tmp_path, name):
    """Ranks cut blocks in the middle."""
    config: PreTrainedConfig = CONFIGS[name]
    folder = make_checkpoint(tmp_path, config)
    check_architecture(folder, reference=quantize(folder), ranks=4)


@pytest.mark.parametrize(
    "change", [{"weight_block_size": [64, 128]}, {"activation_scheme": "static"}], ids=str
)
def test_other_kinds_are_made_dense(change):
    stored = read_format(JsonReader({"quantization_config": QUANTIZED | change}))
    assert isinstance(stored, WideFp8)
