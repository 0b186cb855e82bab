"""Descriptions of models against their checkpoints, and against what a rank that loads them keeps."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tgi.device.base import Device
from tgi.layers import build
from tgi.layers.loading import describe, load_model
from tgi.plugins import ConfigError
from tgi.protocol import Describe, Described
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama, make_mistral
from tgi.weights import Checkpoint, CheckpointError, Shard, TensorPart
from tgi.weights.formats import Dense, Rounding
from tgi.weights.formats.int4 import Int4
from tgi.weights.formats.int8 import Int8
from tgi.worker.runner import Runner, open_device

LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
}
LLAMA_31_70B = LLAMA_31_8B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}


def described(folder: Path, **changes: Any) -> Described:
    config = json.loads((folder / "config.json").read_text())
    command: dict[str, Any] = {"architecture": config["architectures"][0], "ranks": 1, "dtype": "float32"}
    return describe(Describe(folder=str(folder), **command | changes))


def described_config(
    folder: Path, config: dict[str, Any], ranks: int = 1, keeps: tuple[str, ...] = ()
) -> Described:
    (folder / "config.json").write_text(json.dumps(config))
    return described(folder, ranks=ranks, dtype="bfloat16", check=False, keeps=list(keeps))


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": True, "mlp_bias": True}, {"num_key_value_heads": 1, "head_dim": 24}],
    ids=str,
)
def test_tensors_are_those_of_the_checkpoint(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make_llama(tmp_path, **changes)
    tensors = load_file(folder / "model.safetensors")
    found = described(folder).tensors
    assert {each.name: (each.shape, each.bytes) for each in found} == {
        name: (list(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()
    }


def test_a_tied_head_is_kept_apart_from_the_embedding(tmp_path: Path) -> None:
    names = [each.name for each in described(make_llama(tmp_path, tie_word_embeddings=True)).tensors]
    assert names.count("model.embed_tokens.weight") == 2


@pytest.mark.parametrize(
    ("dtype", "stages", "quantize", "times"),
    [("bfloat16", 1, "", 1), ("float16", 1, "", 2), ("float32", 2, "", 2), ("float32", 1, "int8", 2)],
)
def test_a_device_may_read_an_embedding_from_a_dense_head_of_the_same_rank(
    tmp_path: Path, dtype: str, stages: int, quantize: str, times: int
) -> None:
    folder = make_llama(tmp_path, tie_word_embeddings=True)
    found = described(folder, dtype=dtype, stages=stages, quantize=quantize, keeps=["tied"])
    assert [each.name for each in found.tensors].count("model.embed_tokens.weight") == times


@pytest.mark.parametrize(("ranks", "kv_heads"), [(1, 2), (2, 2), (4, 2), (4, 4)])
def test_a_rank_keeps_what_is_described(tmp_path: Path, ranks: int, kv_heads: int) -> None:
    folder = make_llama(tmp_path, num_key_value_heads=kv_heads, attention_bias=True)
    found = described(folder, ranks=ranks)
    runner = Runner.load(load_command(folder), Shard(0, ranks), Device(1))
    assert isinstance(runner.model, torch.nn.Module)
    kept = [value for layer in runner.model.modules() for value in vars(layer).values()]
    matrices = [value.matrix for value in kept if hasattr(value, "matrix")]
    tensors = [value for value in kept if isinstance(value, torch.Tensor)] + matrices
    constants = 2 * 4  # two numbers that depend on the rank
    different = {id(tensor): tensor.nbytes for tensor in tensors}
    assert found.weight_bytes == sum(different.values()) - constants
    (group,) = found.groups
    assert (group.token_bytes * 16,) == runner.loaded.block_bytes
    assert [group] == runner.groups
    assert group.all_kv_heads == kv_heads


@pytest.mark.parametrize(
    ("config", "parameters"), [(LLAMA_31_8B, 8_030_261_248), (LLAMA_31_70B, 70_553_706_496)]
)
def test_models_of_known_size_by_config_json_alone(
    tmp_path: Path, config: dict[str, Any], parameters: int
) -> None:
    """Llama-3.1-8B and 70B; Meta says 8.03 and 70.6 billion."""
    assert described_config(tmp_path, config).weight_bytes == 2 * parameters


def test_llama_70b_on_eight_and_sixteen_cards(tmp_path: Path) -> None:
    """Everything is divided but the norms, and each of 16 cards has one of 8 key/value heads."""
    norms, keys = 161 * 8192, 80 * 2 * 8 * 128 * 8192
    eight, sixteen = (described_config(tmp_path, LLAMA_31_70B, ranks) for ranks in (8, 16))
    zeros = 8192  # the embedding of other ranks' tokens
    assert eight.weight_bytes // 2 == (70_553_706_496 - norms) // 8 + norms + zeros
    assert sixteen.weight_bytes // 2 == (70_553_706_496 - norms - keys) // 16 + keys // 8 + norms + zeros
    assert (eight.heads, sixteen.heads) == (8, 4)
    assert eight.groups[0].token_bytes == sixteen.groups[0].token_bytes == 40 << 10


@pytest.mark.parametrize("ranks", [1, 8])
def test_fp8_layers_take_a_byte_for_each_number(tmp_path: Path, ranks: int) -> None:
    """The embedding, the head and the norms stay in bfloat16; each layer has scales besides.

    So it is where numbers are multiplied as they are stored; elsewhere layers are made dense.
    """
    whole = described_config(tmp_path, LLAMA_31_70B, ranks).weight_bytes // 2
    wide = (2 * 128256 // ranks + (ranks > 1)) * 8192 + 161 * 8192
    assert described_config(tmp_path, LLAMA_31_70B | FP8, ranks).weight_bytes >= 2 * whole
    found = described_config(tmp_path, LLAMA_31_70B | FP8, ranks, ("fp8",))
    scales = sum(each.bytes for each in found.tensors if each.name.endswith("_scale"))
    assert found.weight_bytes == whole + wide + scales
    assert scales == 80 * (7 * 2 + 2) * 4
    stored = {each.name: each.format for each in found.tensors}
    assert stored["model.layers.79.mlp.down_proj.weight"] == "fp8"
    assert stored["lm_head.weight"] == stored["model.norm.weight"] == "dense"


def test_possible_numbers_of_ranks(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, num_attention_heads=6, num_key_value_heads=3)
    assert described(folder, ranks=6).possible_ranks == [1, 3, 6]
    with pytest.raises(
        ConfigError,
        match=r"a model with 6 heads and 3 key/value heads cannot be divided over 2 ranks; "
        r"--num-shard can be 1, 3, 6$",
    ):
        described(folder, ranks=2)
    folder = make_llama(tmp_path, intermediate_size=77)
    with pytest.raises(ConfigError, match=r"--num-shard can be 1$"):
        described(folder, ranks=2)


def test_layers_of_one_window_and_shape_are_one_group(tmp_path: Path) -> None:
    (group,) = described(make_mistral(tmp_path)).groups
    assert (group.window, group.layers) == (24, [0, 1])


def test_keys_and_values_in_another_dtype(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    whole, small = described(folder), described(folder, kv_cache_dtype="fp8_e4m3fn")
    assert small.groups[0].token_bytes * 4 == whole.groups[0].token_bytes
    assert small.weight_bytes == whole.weight_bytes


def test_faults_of_the_files_are_found_if_asked_for(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    assert described(folder, check=False).weight_bytes == described(folder, dummy=True).weight_bytes
    with pytest.raises(CheckpointError, match=r"no tensor 'model.norm.weight'"):
        described(folder)
    (folder / "model.safetensors").write_bytes(b"\1")
    for check in (True, False):
        with pytest.raises(CheckpointError, match=r"model.safetensors is not a complete safetensors file"):
            described(folder, check=check)
    (folder / "model.safetensors").unlink()
    assert described(folder, check=False).weight_bytes
    with pytest.raises(CheckpointError, match=r"has no \*.safetensors file"):
        described(folder)


def test_overrides_replace_keys_of_config_json(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    with pytest.raises(ConfigError, match="'axial' is not supported"):
        described(folder, overrides={"rope_scaling": {"type": "axial"}})


def test_a_model_that_looks_at_numbers_while_it_is_built_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_config: Any, build: Any) -> None:
        build.read(TensorPart("model.norm.weight", (64,))).max().item()

    monkeypatch.setattr("tgi.layers.LlamaDecoder", look)
    folder = make_llama(tmp_path)
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM .* looks at numbers while it is built"):
        described(folder)
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM .* looks at numbers while it is built"):
        load_model(load_command(folder), Shard(), Device(1), lambda *_: None)


@pytest.mark.parametrize("stored", [Dense(), Int8(), Int4()], ids=lambda stored: stored.name)
@pytest.mark.parametrize("piece", [1, 1 << 13, 1 << 30])
def test_a_weight_that_is_read_in_pieces_has_the_rows_of_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: Dense, piece: int
) -> None:
    """What is rounded piece by piece is equal to what is rounded whole by the definition."""
    if "tied" not in (device := open_device("cpu", 1)).keeps:
        pytest.skip("tgi-cpu-kernels is not used here")
    monkeypatch.setattr(build, "_PIECE", piece)
    folder = make_llama(tmp_path, num_key_value_heads=1, head_dim=24)
    attention, tensors = "model.layers.0.self_attn", load_file(folder / "model.safetensors")
    names = [f"{attention}.{each}_proj.weight" for each in "qkv"]
    whole = torch.cat([tensors[name] for name in names])
    expected = stored.round(whole).dense() if isinstance(stored, Rounding) else whole
    reading = build.Build(Checkpoint(folder), Shard(), device, torch.float32, stored)
    weight = reading.linear(*(TensorPart(name, tensors[name].shape) for name in names))
    assert torch.equal(weight.take(torch.arange(len(expected))), expected)
    assert [(info.name, info.format) for info in reading.tensors] == [(name, stored.name) for name in names]
    taken = stored.bytes(*whole.shape) if isinstance(stored, Rounding) else whole.nbytes
    assert sum(info.bytes for info in reading.tensors) == taken
