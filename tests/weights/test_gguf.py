"""Files of llama.cpp, written by its own library, against what that library says they stand for."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.weights.quantized import round_inputs
from tests.weights.test_gguf_blocks import random_octets
from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.hub import HubError, Source, find_model
from tgi.plugins.lookup import find_architecture, read_config_json
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import random_prompt, transformers_logprobs, whole
from tgi.text.tokenizer import Tokenizer
from tgi.weights.formats.gguf import TYPES

gguf: Any = pytest.importorskip("gguf")
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
"""llama.cpp's names of modules."""
LAYERS = [*(name for name in NAMES if name.endswith("_proj")), "lm_head"]
IN_Q6_K = ("v_proj", "down_proj", "lm_head")
"""Layers that Q4_K_M has in Q6_K, whose groups have 16 input features and not 32."""
SCALES = {"Q4_K": {0: 1e-4, 2: 7e-4}, "Q6_K": {208: 3e-5}}
"""Places of the scale and of the minimum of random blocks, which make their numbers as great as weights."""
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}
LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
PROMPT = random_prompt(512, 25, 0)


def write(folder: Path, kind: str, **settings: Any) -> tuple[Path, Path]:
    """A Llama as a file of llama.cpp, and a checkpoint of the numbers that it stands for."""
    dense = make_llama(
        folder / "dense", hidden_size=256, intermediate_size=512, num_attention_heads=4, **settings
    )
    config, file = json.loads((dense / "config.json").read_text()), folder / f"model-{kind}.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("a name")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters", config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "llama3":
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, 64, 2) / 64)
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](AutoConfig.from_pretrained(dense), "cpu")
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    elif rope.get("rope_type", "default") != "default":
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if original := rope.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, dense)
    tensors = load_file(dense / "model.safetensors")
    for name, tensor in tensors.items():
        tensors[name] = add_tensor(writer, name, tensor, type_of(kind, name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(tensors, dense / "model.safetensors")
    return file, dense


def type_of(kind: str, name: str) -> Any:
    """The type of a tensor in a file of a kind; Q4_K_M has some in another one."""
    if kind == "Q4_K_M":
        kind = "Q6_K" if any(each in name for each in IN_Q6_K) else "Q4_K"
    return gguf.GGMLQuantizationType[kind]


def quantize(tensor: torch.Tensor, kind: Any, place: str) -> Any:
    """Blocks of a matrix; for the types that only C++ makes, random ones, which its name determines."""
    if kind.name not in SCALES:
        return gguf.quants.quantize(tensor.numpy(), kind)
    octets = random_octets(len(tensor), tensor.shape[1], kind.name, zlib.crc32(place.encode()))
    for place, scale in SCALES[kind.name].items():
        octets[..., place : place + 2] = np.full(1, scale, "<f2").view("u1")
    return octets.reshape(len(tensor), -1)


def add_tokenizer(writer: Any, folder: Path) -> None:
    """Write the tokenizer of a checkpoint, filled up to the size of its embedding."""
    model = json.loads((folder / "tokenizer.json").read_text())
    special = {token["content"]: token["id"] for token in model["added_tokens"]}
    ids = model["model"]["vocab"] | special
    tokens = sorted(ids, key=ids.__getitem__)
    tokens += [f"<unused{index}>" for index in range(len(tokens), 512)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    merges = model["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)


def add_tensor(writer: Any, name: str, tensor: torch.Tensor, kind: Any) -> torch.Tensor:
    """Write a tensor, and return what it stands for. Rows of queries and keys are in another order there."""
    module = name.removeprefix("model.").removesuffix(".weight")
    outer = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    if module in outer:
        place = outer[module]
    else:
        _, number, rest = module.split(".", 2)
        place = f"blk.{number}.{NAMES[rest]}"
        if rest in HEADS:
            heads = tensor.view(HEADS[rest], 2, -1, tensor.shape[1])
            tensor = heads.transpose(1, 2).reshape(tensor.shape)
    if tensor.dim() == 1:
        writer.add_tensor(f"{place}.weight", tensor.numpy())
        return tensor
    stored = quantize(tensor, kind, place)
    writer.add_tensor(f"{place}.weight", stored, raw_dtype=kind)
    real = torch.from_numpy(gguf.quants.dequantize(stored, kind).copy())
    if kind.name not in TYPES:
        real = real.bfloat16().float()
    if not place.startswith("blk") or rest not in HEADS:
        return real
    return real.view(HEADS[rest], -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()


@pytest.mark.parametrize(
    ("kind", "tied"),
    [("F16", False), ("BF16", True), ("Q8_0", False), ("Q8_0", True), ("Q4_1", False), ("Q4_K_M", False)],
)
def test_logits(tmp_path: Path, kind: str, tied: bool) -> None:
    file, dense = write(tmp_path, kind, tie_word_embeddings=tied)
    folder = find_model(Source(str(file), cache=tmp_path / "cache"))
    find_architecture(folder, read_config_json(folder))
    assert find_model(Source(str(file), cache=tmp_path / "cache")) == folder
    text, size = [*PROMPT, 0], len(PROMPT)
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    one = whole(make_driver(folder, Device(1), dtype="float32"), text, size)
    two = on_threads(folder, 2, lambda driver: [whole(driver, text, size)], range(1, 9))[0]
    for each in (one, two):
        torch.testing.assert_close(each, wanted[-1:], rtol=1e-3, atol=1e-3)
    if kind.startswith("Q") and "nested" in open_device(1).keeps:
        model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
        small = IN_Q6_K if kind == "Q4_K_M" else ()
        large = [name for name in LAYERS if not name.endswith(small)]
        round_inputs(model, lambda size: torch.arange(size) // 32, *large)
        round_inputs(model, lambda size: torch.arange(size) // 16, *small)
        (wanted,) = transformers_logprobs(dense, model, [PROMPT])
    error = (whole(make_driver(folder, open_device(1), dtype="float32"), text, size) - wanted[-1:]).abs()
    assert error.median() < 5e-4  # a number between two integers may be rounded to the other one
    assert error.max() < 0.05
    text = "Deep learning is a part of machine learning"
    assert Tokenizer.from_folder(folder).encode(text) == Tokenizer.from_folder(dense).encode(text)


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_type": "llama3", **LLAMA_3},
        {"rope_type": "linear"},
        {"rope_type": "yarn", "original_max_position_embeddings": 64},
    ],
    ids=["llama3", "linear", "yarn"],
)
def test_a_file_tells_the_scaling_of_rope(tmp_path: Path, settings: dict[str, Any]) -> None:
    settings = {"rope_theta": 10000.0, "factor": 8.0, **settings}
    file, dense = write(tmp_path, "F16", rope_parameters=settings)
    folder = find_model(Source(str(file), cache=tmp_path / "cache"))
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    got = whole(make_driver(folder, Device(1), dtype="float32"), [*PROMPT, 0], len(PROMPT))
    torch.testing.assert_close(got, wanted[-1:], rtol=1e-3, atol=1e-3)
    assert {**read_config_json(folder)["rope_parameters"], **settings} == read_config_json(folder)[
        "rope_parameters"
    ]


def test_a_part_of_a_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model-00001-of-00002.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(HubError, match=r"it is a part of a model: join .* llama-gguf-split --merge"):
        find_model(Source(str(file), cache=tmp_path))
