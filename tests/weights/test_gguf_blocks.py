"""Blocks of llama.cpp's types, against what its own library makes of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.weights.quantized import KeepingDevice, read
from tgi.device.cpu import open_device
from tgi.weights import TensorPart
from tgi.weights.formats import IntegerWeight
from tgi.weights.formats.gguf import TYPES

gguf: Any = pytest.importorskip("gguf")
OUT, SIZE = 96, 512


def random_octets(out: int, size: int, kind: str, seed: int = 0) -> Any:
    """Return random blocks [out, blocks, bytes]."""
    each, rng = TYPES[kind], np.random.default_rng(seed)
    return rng.integers(0, 256, (out, size // each.features, each.bytes), dtype=np.uint8)


def blocks(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random blocks [OUT, bytes of a row] and the numbers that they stand for."""
    octets, rng = random_octets(OUT, SIZE, kind), np.random.default_rng(0)
    for place in FLOATS[kind]:
        octets[..., place : place + 2] = (
            rng.normal(0, 0.1, octets.shape[:2]).astype("<f2")[..., None].view("u1")
        )
    if kind == "MXFP4":  # exponents of its scales
        octets[..., 0] = rng.integers(118, 126, octets.shape[:2])
    rows = octets.reshape(OUT, -1)
    real = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
    return torch.from_numpy(rows), torch.from_numpy(real.copy())


FLOATS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
"""Places of numbers of 16 bits in each block."""


@pytest.mark.parametrize("kind", TYPES)
def test_numbers_are_those_of_the_library(kind: str) -> None:
    each = TYPES[kind]
    assert (each.features, each.bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rows, real = blocks(kind)
    weight = each.weight(rows)
    assert torch.equal(weight.dense(), real)
    assert int(weight.numbers.max()) < 2**weight.bits


@pytest.mark.parametrize("kind", TYPES)
def test_the_kernels_have_the_same_numbers(kind: str) -> None:
    rows, real = blocks(kind)
    device = open_device(1)
    if "nested" not in device.keeps:
        pytest.skip("the kernels are not built here")
    weight = device.prepare_linear(TYPES[kind].weight(rows))
    assert torch.equal(weight.take(torch.tensor([5, 95, 0])), real[[5, 95, 0]])
    assert not weight.take(torch.tensor([-1, 96])).any()
    x = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(0))
    wanted = TYPES[kind].weight(rows).multiply(device, x)
    torch.testing.assert_close(
        device.multiply(x, weight), wanted, rtol=1e-4, atol=1e-4 * float(real.abs().max())
    )


@pytest.mark.parametrize(
    ("kind", "start", "stop", "kept"),
    [
        ("Q4_K", 256, 512, True),
        ("Q4_K", 96, 416, True),
        ("Q4_K", 144, 416, False),
        ("Q2_K", 144, 512, True),
        ("Q3_K", 0, 384, True),
        ("Q6_K", 128, 512, True),
        ("Q6_K", 8, 512, False),
        ("Q4_1", 32, 64, True),
        ("Q8_0", 32, 416, True),
        ("IQ4_XS", 64, 128, True),
    ],
)
def test_columns(tmp_path: Path, kind: str, start: int, stop: int, kept: bool) -> None:
    """A part of a block stays a part of one if it has whole groups."""
    rows, real = blocks(kind)
    part = TensorPart("x.weight", [OUT, SIZE], 1, slice(start, stop))
    settings = {"quant_method": "gguf"}
    weight = read(tmp_path, {kind: rows}, settings, KeepingDevice(1), part)
    torch.testing.assert_close(weight.dense(), real[:, start:stop], rtol=0, atol=0)
    assert isinstance(weight, IntegerWeight) == kept
    device = open_device(1)
    if kept and "nested" in device.keeps:
        packed = device.prepare_linear(read(tmp_path, {kind: rows}, settings, device, part))
        assert torch.equal(packed.take(torch.arange(OUT)), real[:, start:stop])


@pytest.mark.parametrize(("kind", "cut"), [("Q4_K", slice(0, 64)), ("MXFP4", slice(1, 97, 2))])
def test_experts(tmp_path: Path, kind: str, cut: slice) -> None:
    """Of several experts, whose rows may take turns, each is read for itself."""
    rows, real = blocks(kind)
    stacked = rows.view(2, OUT // 2, -1)
    part = TensorPart("x.weight", [OUT // 2, SIZE], 0, cut, transposed=True, index=1, count=2)
    weight = read(tmp_path, {kind: stacked}, {"quant_method": "gguf"}, KeepingDevice(1), part)
    assert isinstance(weight, IntegerWeight)
    torch.testing.assert_close(weight.dense(), real[OUT // 2 :][cut], rtol=0, atol=0)


def test_the_least_scale_of_mxfp4() -> None:
    rows = torch.arange(3 * 17, dtype=torch.uint8).view(3, 17)
    rows[:, 0] = torch.tensor([0, 1, 2])
    real = gguf.quants.dequantize(rows.numpy(), gguf.GGMLQuantizationType.MXFP4)
    assert torch.equal(TYPES["MXFP4"].weight(rows).dense(), torch.from_numpy(real))
