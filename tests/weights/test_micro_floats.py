"""NVFP4, MXFP4 and MXFP8 by the tables of the formats' definitions."""

import subprocess
import sys
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
)
from tgi.device.base import Device
from tgi.weights import TensorPart
from tgi.weights.formats import IntegerWeight

FOUR = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
"""Numbers of e2m1 without their sign (OCP Microscaling Formats 1.0, table 5)."""
FP8 = torch.float8_e4m3fn


def compressed(packing: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {"type": "float", "num_bits": 4}}
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": {"group_0": group}}


def four_bits(groups: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers [out, n, group] rounded to multiples [out, n] of those of e2m1: bytes, and the result."""
    signed = torch.tensor([*FOUR, *(-number for number in FOUR)])
    codes = (groups[..., None] / scales[..., None, None] - signed).abs().argmin(-1)
    flat = codes.flatten(1)
    return (flat[:, ::2] + 16 * flat[:, 1::2]).to(torch.uint8), (signed[codes] * scales[..., None]).flatten(1)


def nvidia(weight: torch.Tensor, model_optimizer: bool) -> tuple[Tensors, torch.Tensor]:
    groups = weight.view(len(weight), -1, 16)
    greatest = groups.abs().amax(-1)
    whole = 448 * 6 / greatest.max()
    stored = (greatest / 6 * whole).to(FP8)
    octets, matrix = four_bits(groups, stored.float() / whole)
    if model_optimizer:
        tensors = {"weight": octets, "weight_scale_2": 1 / whole, "input_scale": torch.ones(())}
    else:
        tensors = {"weight_packed": octets, "weight_global_scale": whole[None]}
    return {**tensors, "weight_scale": stored}, matrix


def microscaled(weight: torch.Tensor, bits: int) -> tuple[Tensors, torch.Tensor]:
    groups = weight.view(len(weight), -1, 32)
    exponents = groups.abs().amax(-1).log2().floor() - (2 if bits == 4 else 8)
    scales, stored = 2.0**exponents, (exponents + 127).to(torch.uint8)
    if bits == 4:
        octets, matrix = four_bits(groups, scales)
        return {"weight_packed": octets, "weight_scale": stored}, matrix
    numbers = (groups / scales[..., None]).clamp(-448, 448).to(FP8)
    matrix = (numbers.float() * scales[..., None]).flatten(1)
    return {"weight": numbers.flatten(1), "weight_scale": stored}, matrix


KINDS: dict[str, Any] = {
    "NVFP4": (compressed("nvfp4-pack-quantized"), lambda weight: nvidia(weight, False)),
    "ModelOpt": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"},
        lambda weight: nvidia(weight, True),
    ),
    "MXFP4": (compressed("mxfp4-pack-quantized"), lambda weight: microscaled(weight, 4)),
    "MXFP8": (compressed("mxfp8-quantized"), lambda weight: microscaled(weight, 8)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_weight(tmp_path: Path, kind: str) -> None:
    settings, quantize = KINDS[kind]
    tensors, matrix = quantize(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))
    for dim, cut in CUTS:
        for device in (Device, KeepingDevice):
            got = read(tmp_path, tensors, settings, device(), TensorPart("x.weight", (64, 96), dim, cut))
            wanted = matrix[(slice(None),) * dim + (cut or slice(None),)]
            torch.testing.assert_close(got.dense(), wanted, rtol=1e-6, atol=0)
            assert isinstance(got, IntegerWeight) == (device is KeepingDevice and kind != "MXFP8")


@pytest.mark.parametrize("kind", ["NVFP4", "ModelOpt", "MXFP4"])
def test_logits(tmp_path: Path, kind: str) -> None:
    settings, quantize = KINDS[kind]
    group = 32 if kind == "MXFP4" else 16
    check_logits(
        tmp_path, make_quantized(tmp_path, quantize, settings), 4, lambda size: groups_of(size, group)
    )


def test_torch_2_6_has_no_dtype_for_powers_of_2() -> None:
    program = "import torch; vars(torch).pop('float8_e8m0fnu', None); import tgi.worker.runner"
    subprocess.run([sys.executable, "-c", program + ", tgi_cpu_kernels.decoder"], check=True)
