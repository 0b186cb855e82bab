"""Each kind of "quantization_config" that tools write is read, or refused with the setting in the way."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.weights.quantized import PROMPT, KeepingDevice, check_logits, groups_of, make_quantized
from tests.weights.test_compressed_tensors import config as compressed_tensors
from tests.weights.test_compressed_tensors import fp8, integers
from tests.weights.test_packed_formats import AWQ, awq, gptq, gptq_config
from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.plugins import ConfigError, JsonReader
from tgi.plugins.lookup import read_config_json
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import transformers_logprobs, whole
from tgi.weights.formats import read_format

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
INTS: dict[str, Any] = {
    "actorder": None, "block_structure": None, "dynamic": False, "group_size": 128, "num_bits": 4,
    "observer": "minmax", "observer_kwargs": {}, "strategy": "group", "symmetric": True, "type": "int",
}  # fmt: skip
FLOATS = INTS | {"type": "float", "num_bits": 8, "group_size": None, "strategy": "tensor"}
TOKENS = FLOATS | {"dynamic": True, "strategy": "token"}
CHANNELS = {"strategy": "channel", "group_size": None}


def compressed(packing: str, weights: dict[str, Any], inputs: Any = None, **more: Any) -> dict[str, Any]:
    """The section as llm-compressor writes it."""
    group = {
        "targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None,
    }  # fmt: skip
    return {
        "quant_method": "compressed-tensors", "format": packing, "config_groups": {"group_0": group},
        "quantization_status": "compressed", "global_compression_ratio": None, "ignore": ["lm_head"],
        "kv_cache_scheme": None, "sparsity_config": {}, "transform_config": {}, **more,
    }  # fmt: skip


ROUND: dict[str, Any] = {
    "quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int",
}  # fmt: skip
OLD_ROUND = {"quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"}
MIXED: dict[str, Any] = {
    "group_0": {"targets": ["Linear"], "weights": INTS, "format": "pack-quantized"},
    "group_1": {
        "targets": ["re:.*down_proj"], "weights": FLOATS | CHANNELS, "input_activations": TOKENS,
        "format": "float-quantized",
    },
}  # fmt: skip
MXFP6 = {"targets": ["re:.*q_proj"], "weights": FLOATS, "format": "mxfp6-pack-quantized"}
READ: dict[str, tuple[dict[str, Any], str]] = {
    "GPTQModel": (GPTQ | {"checkpoint_format": "gptq", "pack_dtype": "int32", "lm_head": False}, "Gptq"),
    "GPTQModel, v2": (GPTQ | {"format": "gptq_v2"}, "Gptq"),
    "transformers' GPTQ": (GPTQ | {"use_exllama": True, "exllama_config": {"version": 1}}, "Gptq"),
    "GPTQModel, symmetric AWQ": (AWQ | {"zero_point": False}, "Awq"),
    "GPTQModel, fp8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "weight_scale_semantics": "inverse"},
        "WideFp8",
    ),
    "GPTQModel, AWQ": ({"quant_method": "awq", "bits": 4, "group_size": 128, "format": "gemm"}, "Awq"),
    "AutoRound": (ROUND | {"packing_format": "auto_round:auto_gptq"}, "Gptq"),
    "AutoRound, AWQ": (ROUND | {"packing_format": "auto_round:auto_awq"}, "Awq"),
    "AutoRound, 2024": (ROUND | OLD_ROUND, "Gptq"),
    "W4A16": (compressed("pack-quantized", INTS), "CompressedIntegers"),
    "W4A16, zeros": (compressed("pack-quantized", INTS | {"symmetric": False}), "CompressedIntegers"),
    "W8A8": (compressed("int-quantized", INTS | CHANNELS | {"num_bits": 8}, TOKENS), "CompressedIntegers"),
    "fp8": (compressed("float-quantized", FLOATS, FLOATS, kv_cache_scheme=FLOATS), "Fp8"),
    "fp8, dynamic": (compressed("float-quantized", FLOATS | CHANNELS, TOKENS), "WideFp8"),
    "cache only": (compressed("dense", INTS, kv_cache_scheme=FLOATS) | {"config_groups": {}}, "CacheOnly"),
    "ModelOpt": ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "Fp8"),
    "blocks": ({"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}, "Fp8Blocks"),
    "NVFP4": (compressed("nvfp4-pack-quantized", FLOATS), "MicroFloats"),
    "integers and floats": (
        compressed("mixed-precision", INTS, config_groups=MIXED), "CompressedMixed"
    ),
    "GPTQModel, head": (GPTQ | {"lm_head": True}, "Gptq"),
    "MXFP4": (compressed("mxfp4-pack-quantized", FLOATS), "MicroFloats"),
    "NVFP4, ModelOpt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "MicroFloats"),
    "FBGEMM": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "WideFp8"),
}  # fmt: skip
SPARSE, NO_GROUPS = {"format": "sparse-24-bitmask"}, {"config_groups": {}}
ROTATED = {"transform_config": {"config_groups": {"R1": {}}}}
BY_HEAD = {"kv_cache_scheme": FLOATS | {"strategy": "attn_head"}}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8"}
NVFP4 = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4"}
TORCHAO = {
    "quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Marlin": (GPTQ | {"checkpoint_format": "marlin"}, "'checkpoint_format' is 'marlin'"),
    "BitBLAS": (GPTQ | {"checkpoint_format": "bitblas"}, "'checkpoint_format' is 'bitblas'"),
    "EoRA": (GPTQ | {"adapter": {"name": "lora"}}, "'adapter' is set"),
    "packed in bytes": (GPTQ | {"pack_dtype": "int8"}, "'pack_dtype' is 'int8'"),
    "AWQ, gemv_fast": (AWQ | {"version": "gemv_fast"}, "'version' is 'gemv_fast'"),
    "AWQ, llm-awq": (AWQ | {"version": "llm-awq"}, "'version' is 'llm-awq'"),
    "AutoRound, own": (ROUND | {"packing_format": "auto_round:fp8"}, "'packing_format' is 'fp8'"),
    "AutoRound, floats": (ROUND | {"data_type": "mx_fp"}, "'data_type' is 'mx_fp'"),
    "MXFP6": (compressed("mxfp6-pack-quantized", FLOATS), "'format' is 'mxfp6-pack-quantized'"),
    "2:4": (compressed("dense", INTS, sparsity_config=SPARSE) | NO_GROUPS, "'format' of 'sparsity_config'"),
    "marlin-24": (compressed("marlin-24", INTS), "'format' is 'marlin-24'"),
    "rotations": (compressed("pack-quantized", INTS, **ROTATED), "'transform_config'"),
    "a group of MXFP6": (
        compressed("mixed-precision", INTS) | {"config_groups": MIXED | {"group_2": MXFP6}},
        "'format' is 'mxfp6-pack-quantized'",
    ),
    "heads of the cache": (compressed("float-quantized", FLOATS, FLOATS, **BY_HEAD), "'kv_cache_scheme' is"),
    "ModelOpt, W4A8": ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "'quant_algo' is 'W4A8_AWQ'"),
    "ModelOpt, NVFP4 cache": (MODELOPT | NVFP4, "'kv_cache_quant_algo' is 'NVFP4'"),
    "ModelOpt, cache": (MODELOPT | {"kv_cache_quant_algo": "NVFP4"}, "'kv_cache_quant_algo' is 'NVFP4'"),
    "torchao, Int4": (TORCHAO, "'quant_type' is 'Int4WeightOnlyConfig'"),
    "torchao, by module": (
        {"quant_method": "torchao", "quant_type": {"a": 1, "b": 2}}, "'quant_type' is 'a, b'"
    ),
    "GPTQModel, nf4": (
        {"quant_method": "bitsandbytes", "checkpoint_format": "nf4"}, "'checkpoint_format' is 'nf4'"
    ),
    "torchao, embeddings": (TORCHAO | {"include_input_output_embeddings": True}, "'include_input_output_emb"),
    "QQQ": ({"quant_method": "qqq", "bits": 4}, "'quant_method' is 'qqq'"),
    "no method": ({"bits": 4}, "'quant_method' is 'none'"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_variants_that_are_read(name: str) -> None:
    config, kind = READ[name]
    assert type(read_format(JsonReader({"quantization_config": config}))).__name__ == kind


@pytest.mark.parametrize("name", REFUSED)
def test_variants_that_are_refused_by_name(name: str) -> None:
    config, fault = REFUSED[name]
    with pytest.raises(ConfigError, match="'quantization_config': ") as caught:
        read_format(JsonReader({"quantization_config": config}))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    "config", [{}, {"extra_config": {"model.layers.0.mlp.down_proj": {"bits": 16, "data_type": "float"}}}]
)
def test_logits_of_auto_round(tmp_path: Path, config: dict[str, Any]) -> None:
    settings = ROUND | {"group_size": 32} | config
    dense = make_quantized(tmp_path, gptq, settings | {"packing_format": "auto_round:auto_gptq"})
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if "g_idx" not in n}, tmp_path / "model.safetensors")
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    got = whole(make_driver(tmp_path, Device(1)), [*PROMPT, 0], len(PROMPT))
    torch.testing.assert_close(got, wanted[-1:], rtol=1e-3, atol=1e-3)


def test_layers_of_auto_round_with_other_bits() -> None:
    up = "model.layers.1.mlp.up_proj"
    extra = {r".*layers\.0\.self_attn.*": {"bits": 8}, up: {"bits": 8, "group_size": 64}}
    form: Any = read_format(JsonReader({"quantization_config": ROUND | {"extra_config": extra}}))
    names = ("model.layers.0.self_attn.q_proj", up, "model.layers.1.mlp.down_proj")
    found = [form._settings(name) for name in names]
    assert [(layer.bits, layer.group) for layer in found] == [(8, 128), (8, 64), (4, 128)]


AWQ_FILE = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
OLDER: dict[str, tuple[str, dict[str, Any], Any]] = {
    "AutoGPTQ": ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}, gptq),
    "AutoAWQ": ("quant_config.json", AWQ_FILE, awq),
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_settings_in_files_of_their_own(tmp_path: Path, name: str) -> None:
    file, settings, quantize = OLDER[name]
    dense = make_quantized(tmp_path, partial(quantize, group=32), {})
    (tmp_path / file).write_text(json.dumps(settings))
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    got = whole(make_driver(tmp_path, Device(1)), [*PROMPT, 0], len(PROMPT))
    torch.testing.assert_close(got, wanted[-1:], rtol=1e-3, atol=1e-3)


def test_settings_of_modelopt_and_of_older_llm_compressor(tmp_path: Path) -> None:
    make_llama(tmp_path)
    config, path = read_config_json(tmp_path), tmp_path / "config.json"
    settings = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(
        json.dumps({"producer": {"name": "modelopt"}, "quantization": settings})
    )
    assert type(read_format(JsonReader(read_config_json(tmp_path)))).__name__ == "Fp8"
    path.write_text(json.dumps(config | {"compression_config": compressed("pack-quantized", INTS)}))
    assert type(read_format(JsonReader(read_config_json(tmp_path)))).__name__ == "CompressedIntegers"


def test_integers_and_floats_in_one_checkpoint(tmp_path: Path) -> None:
    """The layers that are joined here are of two kinds, or of one."""
    groups: dict[str, Any] = {
        "ints": {**MIXED["group_0"], "weights": INTS | {"group_size": 32}},
        "floats": {**MIXED["group_1"], "targets": ["re:.*(down|k)_proj"]},
    }
    config = compressed("mixed-precision", INTS, config_groups=groups)
    dense, stored, known = make_llama(tmp_path / "dense"), {}, {}
    make_llama(tmp_path)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        stored[name] = known[name] = tensor
        if "_proj." in name:
            floats = "down" in name or "k_proj" in name
            tensors, known[name] = (
                fp8(tensor, 1, 9999, "weight_scale")
                if floats
                else integers(tensor, compressed_tensors("pack-quantized"))
            )
            del stored[name]
            stored |= {name.removesuffix("weight") + kind: each for kind, each in tensors.items()}
    save_file(stored, tmp_path / "model.safetensors")
    save_file(known, dense / "model.safetensors")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    check_logits(tmp_path, dense, None, groups_of, kernels=False)
    kernels, plain = (
        whole(make_driver(tmp_path, device), [*PROMPT, 0], len(PROMPT))
        for device in (open_device(1), KeepingDevice(1))
    )
    assert (kernels - plain).abs().median() < 5e-4


@pytest.mark.parametrize("order", [False, True], ids=["neighbours", "desc_act"])
def test_a_quantized_head(tmp_path: Path, order: bool) -> None:
    """GPTQModel's "lm_head", whose vocabulary two ranks divide."""
    config = gptq_config(order=order) | {"lm_head": True}
    dense = make_quantized(tmp_path, partial(gptq, order=order), config, layers="lm_head.")
    check_logits(tmp_path, dense, 4, lambda features: groups_of(features, 32, order), head=True)
