"""Weights as torchao stores them, rounded by hand. `benchmarks/format_libraries.py` tries torchao's own."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.weights.quantized import (
    CUTS,
    KeepingDevice,
    Tensors,
    check_logits,
    groups_of,
    make_quantized,
    read,
    rounded,
)
from tgi.device.base import Device
from tgi.weights import TensorPart

ROW, TENSOR = {"_type": "PerRow", "_data": {"dim": -1}}, {"_type": "PerTensor", "_data": {}}
GROUP = {"_type": "PerGroup", "_data": {"group_size": 32}}
FP8 = torch.float8_e4m3fn


def config(kind: str, **settings: Any) -> dict[str, Any]:
    chosen = {"_type": kind, "_version": 2, "_data": settings}
    return {"quant_method": "torchao", "quant_type": {"default": chosen}, "modules_to_not_convert": None}


def integers(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> tuple[Tensors, torch.Tensor]:
    numbers, scales, zeros, matrix = rounded(weight, bits, groups_of(weight.shape[1], group), symmetric)
    middle = 2 ** (bits - 1)
    tensors = {"qdata": numbers - middle, "scale": scales, "zero_point": zeros - middle}
    return {
        f"_weight_{name}": tensor if name == "scale" else tensor.to(torch.int8)
        for name, tensor in tensors.items()
    }, matrix


def floats(weight: torch.Tensor, whole: bool) -> tuple[Tensors, torch.Tensor]:
    greatest = weight.abs().amax(1, keepdim=True)
    scales = (greatest.max()[None, None] if whole else greatest) / 448
    numbers = (weight / scales).to(FP8)
    return {"_weight_qdata": numbers, "_weight_scale": scales}, numbers.float() * scales


INT4, ZEROS = {"_type": "torch.dtype", "_data": "int4"}, {"_type": "MappingType", "_data": "ASYMMETRIC"}
KINDS: dict[str, Any] = {
    "int8": (config("Int8WeightOnlyConfig", granularity=ROW), lambda w: integers(w, 8, -1, True)),
    "int8, groups": (config("Int8WeightOnlyConfig", granularity=GROUP), lambda w: integers(w, 8, 32, True)),
    "int8, inputs too": (
        config("Int8DynamicActivationInt8WeightConfig", granularity=[ROW, ROW]),
        lambda w: integers(w, 8, -1, True),
    ),
    "int4, zeros": (
        config("IntxWeightOnlyConfig", granularity=GROUP, weight_dtype=INT4, mapping_type=ZEROS),
        lambda w: integers(w, 4, 32, False),
    ),
    "int4, inputs too": (
        config("Int8DynamicActivationIntxWeightConfig", weight_granularity=GROUP, weight_dtype=INT4),
        lambda w: integers(w, 4, 32, True),
    ),
    "fp8": (config("Float8WeightOnlyConfig", granularity=ROW), lambda w: floats(w, False)),
    "fp8, one scale": (
        config("Float8DynamicActivationFloat8WeightConfig", granularity=[TENSOR, TENSOR]),
        lambda w: floats(w, True),
    ),
}


class KeepingFloats(KeepingDevice):
    """Multiplies fp8 as well."""

    keeps = KeepingDevice.keeps | {"fp8"}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_weight(tmp_path: Path, kind: str) -> None:
    settings, quantize = KINDS[kind]
    tensors, matrix = quantize(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))
    for dim, cut in CUTS:
        for device in (Device(), KeepingFloats()):
            part = TensorPart("x.weight", (64, 96), dim, cut)
            wanted = matrix[(slice(None),) * dim + (cut or slice(None),)]
            got = read(tmp_path, tensors, settings, device, part).dense()
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "bits", "group"), [("int8", 8, -1), ("int4, zeros", 4, 32), ("fp8", None, -1)]
)
def test_logits(tmp_path: Path, kind: str, bits: int | None, group: int) -> None:
    settings, quantize = KINDS[kind]
    check_logits(tmp_path, make_quantized(tmp_path, quantize, settings), bits, lambda n: groups_of(n, group))
