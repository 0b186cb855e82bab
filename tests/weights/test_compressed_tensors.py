"""compressed-tensors and fp8: weights against numbers by hand, and logits against transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.compiling import open_compiling
from tests.weights.quantized import (
    CUTS,
    PROMPT,
    KeepingDevice,
    Tensors,
    check_logits,
    groups_of,
    make_quantized,
    pack,
    read,
    rounded,
)
from tgi.device.base import Device
from tgi.plugins import ConfigError, JsonReader
from tgi.testing.driver import make_driver
from tgi.testing.runs import transformers_logprobs, whole
from tgi.weights import TensorPart
from tgi.weights.formats import IntegerWeight, read_format

FP8 = torch.float8_e4m3fn
DYNAMIC = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True, "symmetric": True}
STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False, "symmetric": True}


def config(packing: str, inputs: Any = None, **weights: Any) -> dict[str, Any]:
    """A "quantization_config" of compressed-tensors with one group."""
    defaults = {
        "type": "int",
        "num_bits": 4,
        "strategy": "group",
        "group_size": 32,
        "symmetric": True,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": defaults | weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors", "format": packing, "config_groups": {"group_0": group},
        "ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed",
    }  # fmt: skip


def integers(weight: torch.Tensor, settings: dict[str, Any]) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a weight in one of the integer formats, and the matrix that they stand for."""
    group = settings["config_groups"]["group_0"]
    weights, size = group["weights"], weight.shape[1]
    bits, strategy, symmetric = weights["num_bits"], weights["strategy"], weights["symmetric"]
    ordered = weights.get("actorder") == "group"
    groups = groups_of(size, weights["group_size"] if strategy == "group" else -1, ordered)
    source = weight.reshape(1, -1) if strategy == "tensor" else weight
    if strategy == "tensor":
        groups = torch.zeros(weight.numel(), dtype=torch.long)
    numbers, scales, zeros, matrix = rounded(source, bits, groups, symmetric)
    numbers, matrix, middle = numbers.view(weight.shape), matrix.view(weight.shape), 2 ** (bits - 1)
    tensors = {"weight_scale": scales.reshape(1) if strategy == "tensor" else scales}
    if settings["format"] == "pack-quantized":
        tensors |= {"weight_packed": pack(numbers, bits), "weight_shape": torch.tensor(weight.shape)}
        if not symmetric:
            tensors["weight_zero_point"] = pack(zeros.T, bits).T
    else:
        tensors["weight"] = (numbers - middle).to(torch.int8)
        if not symmetric:
            tensors["weight_zero_point"] = (zeros - middle).to(torch.int8).view(tensors["weight_scale"].shape)
    if ordered:
        tensors["weight_g_idx"] = groups.int()
    if group["input_activations"] == STATIC:
        tensors["input_scale"] = torch.ones(1)
    return tensors, matrix


INTEGERS = {
    "W4A16": config("pack-quantized"),
    "W4A16 asymmetric": config("pack-quantized", symmetric=False),
    "W4A16 ordered": config("pack-quantized", actorder="group"),
    "W4A16 channel": config("pack-quantized", strategy="channel", group_size=None),
    "W3A16": config("pack-quantized", num_bits=3),
    "W8A16": config("pack-quantized", num_bits=8, strategy="channel", group_size=None),
    "W8A16 grouped": config("pack-quantized", num_bits=8, symmetric=False),
    "W8A8": config("int-quantized", DYNAMIC, num_bits=8, strategy="channel", group_size=None),
    "W8A8 static": config("int-quantized", STATIC, num_bits=8, strategy="channel", group_size=None),
    "W8A8 tensor": config("int-quantized", STATIC, num_bits=8, strategy="tensor", group_size=None),
    "W8A8 asymmetric": config(
        "int-quantized", DYNAMIC, num_bits=8, strategy="channel", group_size=None, symmetric=False
    ),
    "W4A8": config("int-quantized", DYNAMIC),
}


@pytest.mark.parametrize("kind", INTEGERS)
def test_integers_are_those_that_were_stored(tmp_path: Path, kind: str) -> None:
    settings = INTEGERS[kind]
    tensors, matrix = integers(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)), settings)
    for dim, cut in CUTS:
        for device in (Device, KeepingDevice):
            got = read(tmp_path, tensors, settings, device(), TensorPart("x.weight", (64, 96), dim, cut))
            assert torch.allclose(got.dense(), matrix[(slice(None),) * dim + (cut or slice(None),)])
            irregular = "ordered" in kind and dim == 1
            assert isinstance(got, IntegerWeight) == (device is KeepingDevice and not irregular)


@pytest.mark.parametrize("kind", ["W4A16", "W4A16 asymmetric", "W4A16 ordered", "W3A16", "W8A16", "W8A8"])
def test_logits_of_integers(tmp_path: Path, kind: str) -> None:
    settings = INTEGERS[kind]
    dense = make_quantized(tmp_path, lambda weight: integers(weight, settings), settings)
    weights = settings["config_groups"]["group_0"]["weights"]
    group, order = weights["group_size"] or -1, weights.get("actorder") == "group"
    check_logits(tmp_path, dense, weights["num_bits"], lambda features: groups_of(features, group, order))


def fp8(
    weight: torch.Tensor, height: int, width: int, name: str, shape: Any = None
) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a weight in e4m3 with a scale for each block, and the matrix that they stand for."""
    out, size = weight.shape
    height, width = min(height, out), min(width, size)
    numbers, matrix = torch.zeros(out, size, dtype=FP8), torch.zeros(out, size)
    scales = torch.zeros(-(-out // height), -(-size // width))
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            part = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
            scales[row, column] = scale = weight[part].abs().amax() / 448
            numbers[part] = (weight[part] / scale).to(FP8)
            matrix[part] = numbers[part].float() * scale
    return {"weight": numbers, name: scales if shape is None else scales.reshape(shape)}, matrix


GPTQMODEL = {"quant_method": "fp8", "format": "float8_e4m3fn", "weight_scale_semantics": "inverse"}
FLOAT = {"type": "float", "num_bits": 8, "group_size": None}
CHANNELS = config("float-quantized", DYNAMIC | {"type": "float"}, strategy="channel", **FLOAT)
TENSOR = config("float-quantized", DYNAMIC | {"type": "float"}, strategy="tensor", **FLOAT)
BLOCKS = config("float-quantized", None, strategy="block", block_structure=[16, 32], **FLOAT)
FP8_KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "channels": (CHANNELS, lambda weight: fp8(weight, 1, 9999, "weight_scale")),
    "tensor": (TENSOR, lambda weight: fp8(weight, 9999, 9999, "weight_scale", [1])),
    "blocks": (BLOCKS, lambda weight: fp8(weight, 16, 32, "weight_scale")),
    "DeepSeek": (
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [32, 32]},
        lambda weight: fp8(weight, 32, 32, "weight_scale_inv"),
    ),
    "ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"},
        lambda weight: fp8(weight, 1, 9999, "weight_scale", [64]),
    ),
    "AutoFP8": (
        {"quant_method": "fp8", "activation_scheme": "dynamic"},
        lambda weight: fp8(weight, 9999, 9999, "weight_scale", []),
    ),
    "FBGEMM": (
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]},
        lambda weight: fp8(weight, 1, 9999, "weight_scale"),
    ),
}


@pytest.mark.parametrize("kind", FP8_KINDS)
def test_fp8_weights_are_made_dense(tmp_path: Path, kind: str) -> None:
    settings, quantize = FP8_KINDS[kind]
    tensors, matrix = quantize(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))
    for dim, cut in CUTS:
        got = read(tmp_path, tensors, settings, Device(), TensorPart("x.weight", (64, 96), dim, cut))
        assert torch.equal(got.dense(), matrix[(slice(None),) * dim + (cut or slice(None),)])


@pytest.mark.parametrize(
    ("settings", "height", "width", "shape"),
    [
        ({"weight_scale_method": "row"}, 1, 9999, [64]),
        ({"weight_scale_method": "tensor"}, 9999, 9999, []),
        ({"weight_scale_method": "block", "weight_block_size": [32, 32]}, 32, 32, None),
    ],
)
def test_scales_that_are_factors_from_real_to_stored(
    tmp_path: Path, settings: dict[str, Any], height: int, width: int, shape: Any
) -> None:
    """GPTQModel writes such ones under the name that DeepSeek gave to factors from stored to real."""
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    tensors, matrix = fp8(weight, height, width, "weight_scale_inv", shape)
    tensors["weight_scale_inv"] = 1 / tensors["weight_scale_inv"]
    got = read(tmp_path, tensors, GPTQMODEL | settings, Device(), TensorPart("x.weight", (64, 96)))
    torch.testing.assert_close(got.dense(), matrix, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["channels", "DeepSeek"])
def test_logits_of_fp8(tmp_path: Path, kind: str) -> None:
    settings, quantize = FP8_KINDS[kind]
    check_logits(tmp_path, make_quantized(tmp_path, quantize, settings), None, groups_of)


@pytest.mark.parametrize("kind", ["channels", "tensor", "FBGEMM"])
@pytest.mark.parametrize("card", ["gaudi2-lazy", "gaudi3-compile"])
def test_a_card_keeps_fp8_and_rounds_each_row_of_inputs(tmp_path: Path, kind: str, card: str) -> None:
    settings, quantize = FP8_KINDS[kind]
    dense = make_quantized(tmp_path, quantize, settings)
    with open_compiling(card) as device:
        got = whole(make_driver(tmp_path, device), [*PROMPT, 0], len(PROMPT))
        limit = device.fp8_limit
    model: nn.Module = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)

    def round_inputs(_layer: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        scale = inputs[0].abs().amax(-1, keepdim=True) / limit
        return (inputs[0] / scale).to(FP8).float() * scale

    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            layer.register_forward_pre_hook(round_inputs)
    (wanted,) = transformers_logprobs(dense, model, [PROMPT])
    (exact,) = transformers_logprobs(dense, None, [PROMPT])
    error = (got - wanted[-1:]).abs()
    assert error.median() < 5e-4  # a number between two of e4m3 may be rounded to the other one
    assert error.max() < 0.05
    assert (exact[-1] - wanted[-1]).abs().median() > 10 * error.median()


def test_layers_of_several_groups(tmp_path: Path) -> None:
    """Those of a module's name count before those of patterns, and patterns before kinds of layers."""
    eight = config("pack-quantized", num_bits=8)["config_groups"]["group_0"]
    both = config("pack-quantized")
    both["config_groups"]["group_1"] = eight | {"targets": ["re:.*x$"]}
    tensors, matrix = integers(torch.randn(64, 96), config("pack-quantized", num_bits=8))
    got = read(tmp_path, tensors, both, Device(), TensorPart("x.weight", (64, 96)))
    assert torch.allclose(got.dense(), matrix)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        (config("marlin-24"), "'format' is 'marlin-24'"),
        (config("pack-quantized", num_bits=1), "'weights' of 'group_0' is"),
        (config("pack-quantized", strategy="tensor_group"), "'weights' of 'group_0' is"),
        (
            config("pack-quantized") | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "'sparsity_config' is",
        ),
        (config("pack-quantized") | {"transform_config": {"config_groups": {}}}, "'transform_config' is set"),
        (config("pack-quantized") | {"kv_cache_scheme": DYNAMIC}, "'kv_cache_scheme' is"),
        (config("pack-quantized") | {"config_groups": {}}, "'config_groups' is empty"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "'quant_algo' is 'W4A8_AWQ'"),
        ({"quant_method": "fp8", "fmt": "e5m2", "activation_scheme": "dynamic"}, "'fmt' is 'e5m2'"),
    ],
)
def test_other_variants_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_format(JsonReader({"quantization_config": settings}))
