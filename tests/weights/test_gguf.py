"""Files of llama.cpp, written by its own library, against what that library says they stand for."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tgi.hub import HubError, Source, find_model
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt, transformers_logprobs, whole
from tgi.text.tokenizer import Tokenizer
from tgi.worker.runner import open_device

gguf: Any = pytest.importorskip("gguf")
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
"""llama.cpp's names of modules."""
HEADS = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}
PROMPT = random_prompt(512, 25, 0)


def write(folder: Path, kind: str) -> tuple[Path, Path]:
    """A Llama as a file of llama.cpp, and a checkpoint of the numbers that it stands for."""
    dense = make_llama(folder / "dense")
    config, file = json.loads((dense / "config.json").read_text()), folder / f"model-{kind}.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    add_tokenizer(writer, dense)
    tensors = load_file(dense / "model.safetensors")
    for name, tensor in tensors.items():
        tensors[name] = add_tensor(writer, name, tensor, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(tensors, dense / "model.safetensors")
    return file, dense


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
        return tensor.bfloat16().float()
    stored = gguf.quants.quantize(tensor.numpy(), kind)
    writer.add_tensor(f"{place}.weight", stored, raw_dtype=kind)
    real = torch.from_numpy(gguf.quants.dequantize(stored, kind).copy()).bfloat16().float()
    if not place.startswith("blk") or rest not in HEADS:
        return real
    return real.view(HEADS[rest], -1, 2, tensor.shape[1]).transpose(1, 2).reshape(tensor.shape).contiguous()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0"])
def test_logits(tmp_path: Path, kind: str) -> None:
    file, dense = write(tmp_path, kind)
    folder = find_model(Source(str(file), cache=tmp_path / "cache"))
    assert find_model(Source(str(file), cache=tmp_path / "cache")) == folder
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    driver = make_driver(folder, open_device("cpu", 1), dtype="float32")
    got = whole(driver, [*PROMPT, 0], len(PROMPT))
    torch.testing.assert_close(got, wanted[-1:], rtol=1e-3, atol=1e-3)
    text = "Deep learning is a part of machine learning"
    assert Tokenizer.from_folder(folder).encode(text) == Tokenizer.from_folder(dense).encode(text)


def test_a_part_of_a_model_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model-00001-of-00002.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(HubError, match=r"it is a part of a model: join .* llama-gguf-split --merge"):
        find_model(Source(str(file), cache=tmp_path))
