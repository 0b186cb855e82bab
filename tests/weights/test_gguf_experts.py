"""Models with experts in files of llama.cpp, written by its own library, against what that says they are."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from tests.weights.quantized import PROMPT, KeepingDevice
from tests.weights.test_gguf import add_tokenizer, quantize
from tgi.device.base import Device
from tgi.device.cpu import SPEC as CPU
from tgi.device.cpu import open_device
from tgi.hub import HubError, Source, find_model
from tgi.layers.loading import describe
from tgi.plugins.lookup import read_config_json
from tgi.protocol import Describe
from tgi.testing.checkpoints import make_checkpoint
from tgi.testing.driver import make_driver
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import random_prompt, transformers_logprobs, whole
from tgi.text.tokenizer import Tokenizer

gguf: Any = pytest.importorskip("gguf")
COMMON: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "num_experts_per_tok": 2,
    "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
LATENT: dict[str, Any] = {
    **COMMON, "num_key_value_heads": 4, "intermediate_size": 256, "moe_intermediate_size": 256,
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 512,
    "mscale": 0.7, "mscale_all_dim": 0.7,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, PreTrainedConfig]] = {
    "Mixtral": ("llama", MixtralConfig(**COMMON, intermediate_size=512, num_local_experts=4)),
    "Qwen1.5 MoE": (
        "qwen2moe",
        Qwen2MoeConfig(
            **COMMON, intermediate_size=512, moe_intermediate_size=256, num_experts=4,
            shared_expert_intermediate_size=512,
        ),
    ),
    "Qwen3 30B A3B": (
        "qwen3moe",
        Qwen3MoeConfig(
            **COMMON, intermediate_size=512, moe_intermediate_size=256, num_experts=4, head_dim=32,
            norm_topk_prob=True,
        ),
    ),
    "DeepSeek V2 Lite": ("deepseek2", DeepseekV2Config(**LATENT, q_lora_rank=None, rope_parameters=YARN)),
    "DeepSeek V3": (
        "deepseek2",
        DeepseekV3Config(**LATENT, q_lora_rank=64, n_group=2, topk_group=1, routed_scaling_factor=2.0),
    ),
    "gpt-oss": (
        "gpt-oss",
        GptOssConfig(
            **COMMON, intermediate_size=64, num_local_experts=4, head_dim=32, sliding_window=16,
        ),
    ),
}  # fmt: skip


def write(folder: Path, name: str, kind: str, joined: bool = False) -> tuple[Path, Any]:
    """A model as a file of llama.cpp, and transformers' model of the numbers that it stands for.

    `joined`: DeepSeek's keys and values are one tensor, as in older files.
    """
    architecture, config = CONFIGS[name]
    dense = make_checkpoint(folder / "dense", config)
    model: Any = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    config = model.config
    file = folder / f"model-{kind}.gguf"
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("a name")
    add_settings(writer, config, joined)
    add_tokenizer(writer, dense)
    writer.add_chat_template(TEMPLATE)
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for place, tensor in model.state_dict().items():
        for end, real in split(config, place, tensor, joined):
            add(writer, names, end, real, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, model


def add_settings(writer: Any, config: Any, joined: bool) -> None:
    """Write the settings as llama.cpp's converter does."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    latent = config.model_type.startswith("deepseek") and not joined
    writer.add_head_count_kv(1 if latent else config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if "mscale_all_dim" in rope:
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    writer.add_expert_count(
        getattr(config, "num_experts", None)
        or getattr(config, "num_local_experts", None)
        or config.n_routed_experts
    )
    writer.add_expert_used_count(config.num_experts_per_tok)
    if config.model_type != "mixtral":
        writer.add_expert_feed_forward_length(
            getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        )
    if config.model_type.startswith("deepseek"):
        latent, turned = config.kv_lora_rank, config.qk_rope_head_dim
        wide = config.qk_nope_head_dim + turned
        writer.add_leading_dense_block_count(config.first_k_dense_replace)
        writer.add_kv_lora_rank(latent)
        if config.q_lora_rank:
            writer.add_q_lora_rank(config.q_lora_rank)
        writer.add_key_length(wide if joined else latent + turned)
        writer.add_value_length(config.v_head_dim if joined else latent)
        if not joined:
            writer.add_key_length_mla(wide)
            writer.add_value_length_mla(config.v_head_dim)
        writer.add_rope_dimension_count(turned)
        writer.add_expert_shared_count(config.n_shared_experts)
        writer.add_expert_weights_scale(config.routed_scaling_factor)
        if config.model_type == "deepseek_v3":
            writer.add_expert_weights_norm(config.norm_topk_prob)
            writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
            writer.add_expert_group_count(config.n_group)
            writer.add_expert_group_used_count(config.topk_group)
    elif getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if config.model_type == "gpt_oss":
        writer.add_sliding_window(config.sliding_window)


def split(config: Any, name: str, tensor: torch.Tensor, joined: bool) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a file, as views, that one of transformers' is made of."""
    if "gate_up_proj" in name:
        if config.model_type == "gpt_oss":
            turned = tensor.transpose(1, 2) if tensor.dim() == 3 else tensor
            gate, up = turned[:, ::2], turned[:, 1::2]
        else:
            gate, up = tensor.chunk(2, 1)
        return [(name.replace("gate_up", "gate"), gate), (name.replace("gate_up", "up"), up)]
    if "experts.down_proj" in name and config.model_type == "gpt_oss" and tensor.dim() == 3:
        return [(name, tensor.transpose(1, 2))]
    if "kv_b_proj" in name and not joined:
        heads = tensor.view(config.num_attention_heads, -1, config.kv_lora_rank)
        keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], 1)
        return [(name.replace("kv_b", "k_b"), keys.transpose(1, 2)), (name.replace("kv_b", "v_b"), values)]
    if config.model_type == "mixtral" and name.endswith(("q_proj.weight", "k_proj.weight")):
        size = config.hidden_size // config.num_attention_heads
        return [(name, tensor.view(-1, 2, size // 2, tensor.shape[1]).transpose(1, 2))]
    return [(name, tensor)]


def add(writer: Any, names: Any, name: str, tensor: torch.Tensor, kind: Any) -> None:
    """Write a tensor, and put the numbers in its place that it stands for."""
    module, _, end = (
        name.replace("_correction_bias", "_correction.bias").replace("proj_bias", "proj.bias").rpartition(".")
    )
    if end not in ("weight", "bias"):
        module, end = f"{module}.{end}", "weight"
    place = f"{names.get_name(module)}.{end}"
    assert "None" not in place, name
    matrix = tensor.flatten(0, 2) if tensor.dim() == 4 else tensor
    if end == "bias" or tensor.dim() == 1 or "ffn_gate_inp" in place:
        if tensor.dim() == 2 and end == "weight":  # a router, in 16 bits in the model
            tensor.copy_(tensor.bfloat16().float())
        numbers = tensor[0] if "inp_shexp" in place else tensor
        writer.add_tensor(place, numbers.contiguous().numpy())
        return
    flat = matrix.reshape(-1, matrix.shape[-1])
    if flat.shape[1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = gguf.GGMLQuantizationType.Q8_0  # as llama.cpp's own program does
    if kind.name == "MXFP4" and "_exps" not in place:
        kind = gguf.GGMLQuantizationType.Q8_0
    if not place.startswith("blk."):  # their blocks are `test_gguf`'s
        kind = gguf.GGMLQuantizationType.BF16
    stored = quantize(flat, kind, place)
    real = torch.from_numpy(gguf.quants.dequantize(stored, kind).copy())
    if "_b." in place and "attn_q" not in place and "kv_b" not in place:
        real = real.bfloat16().float()  # the two halves are joined, dense
    tensor.copy_(real.view(tensor.shape))
    writer.add_tensor(place, stored.reshape(*matrix.shape[:-1], -1), raw_dtype=kind)


TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
FILES = [
    ("Mixtral", "Q4_K", False), ("Qwen1.5 MoE", "Q4_K", False), ("Qwen3 30B A3B", "Q4_K", False),
    ("Qwen3 30B A3B", "Q6_K", False), ("Qwen3 30B A3B", "BF16", False), ("DeepSeek V2 Lite", "Q8_0", False),
    ("DeepSeek V2 Lite", "Q8_0", True), ("DeepSeek V3", "Q4_K", False), ("gpt-oss", "MXFP4", False),
    ("gpt-oss", "BF16", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "joined"), FILES)
def test_logits(tmp_path: Path, name: str, kind: str, joined: bool) -> None:
    """Kernels multiply blocks as plain torch does, and their inputs are rounded."""
    with torch.no_grad():
        file, model = write(tmp_path, name, kind, joined)
    folder = find_model(Source(str(file), cache=tmp_path / "cache"))
    words = "Deep learning is a part of machine learning"
    assert Tokenizer.from_folder(folder).encode(words) == Tokenizer.from_folder(tmp_path / "dense").encode(
        words
    )
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    text, size = [*PROMPT, 0], len(PROMPT)
    (wanted,) = transformers_logprobs(tmp_path / "dense", model, [PROMPT])
    run = partial(whole, text=text, length=size)
    one = run(make_driver(folder, Device(1), dtype="float32"))
    two = on_threads(folder, 2, lambda driver: [run(driver)], range(1, 9))[0]
    for each in (one, two):
        torch.testing.assert_close(each, wanted[-1:], rtol=1e-3, atol=2e-3)
    if kind == "BF16":
        return
    plain, device = make_driver(folder, KeepingDevice(1), dtype="float32"), open_device(1)
    assert not torch.allclose(run(plain), one, atol=1e-4)
    if "nested" in device.keeps:
        kernels = make_driver(folder, device, dtype="float32")
        errors = [
            (whole(kernels, prompt, 9) - whole(plain, prompt, 9)).abs().max()
            for prompt in (random_prompt(512, 10, seed) for seed in range(4))
        ]
        assert min(errors) < 1e-4  # a number between two integers may be rounded to the other one
        assert max(errors) < 0.1


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("name", "kind"), [("Qwen3 30B A3B", "Q4_K"), ("gpt-oss", "MXFP4")])
def test_blocks_of_experts_are_kept(tmp_path: Path, name: str, kind: str, ranks: int) -> None:
    """A rank has 128 of the 256 inner features, or 32 of 64: halves of a block, or one."""
    with torch.no_grad():
        file, _ = write(tmp_path, name, kind)
    folder = find_model(Source(str(file), cache=tmp_path / "cache"))
    (architecture,) = read_config_json(folder)["architectures"]
    command = Describe(
        folder=str(folder), architecture=architecture, ranks=ranks, dtype="bfloat16", keeps=sorted(CPU.keeps)
    )
    experts = [each for each in describe(command).tensors if "experts" in each.name and "_proj" in each.name]
    matrices = [each for each in experts if "bias" not in each.name]
    assert {each.format for each in matrices} == {"gguf"}


def test_a_tensor_for_each_expert_is_of_an_older_time(tmp_path: Path) -> None:
    file = tmp_path / "mixtral.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_expert_count(2)
    writer.add_tensor("blk.0.ffn_down.0.weight", torch.zeros(4, 4).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(HubError, match="it has a tensor for each expert, as until April 2024"):
        find_model(Source(str(file), cache=tmp_path))
