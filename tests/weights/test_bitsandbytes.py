"""Weights as bitsandbytes stores them, decoded by hand."""

import json
from functools import partial
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
from tgi.device.cpu import open_device
from tgi.plugins import ConfigError, JsonReader
from tgi.weights import TensorPart
from tgi.weights.formats import IntegerWeight, read_format

BLOCK, NESTED = 64, 256
NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip
"""The numbers of the codes (Dettmers et al. 2023, appendix E)."""
FP4 = [each / 12 for each in (0, 1 / 16, 8, 12, 4, 6, 2, 3, 0, -1 / 16, -8, -12, -4, -6, -2, -3)]
"""The same, of the library's floats with a sign, two bits of exponent and one of mantissa."""
MAPS = {"nf4": NF4, "fp4": FP4}
FOUR: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_use_double_quant": True,
}  # fmt: skip
EIGHT = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}


def four_bits(weight: torch.Tensor, nested: bool, kind: str = "nf4") -> tuple[Tensors, torch.Tensor]:
    """The tensors of a weight, and the matrix that they stand for."""
    blocks, table = weight.reshape(-1, BLOCK), torch.tensor(MAPS[kind])
    factors = blocks.abs().amax(1)
    state: dict[str, Any] = {"quant_type": kind, "blocksize": BLOCK, "shape": list(weight.shape)}
    tensors: Tensors = {"weight.absmax": factors}
    if nested:
        linear, offset = torch.linspace(-1, 1, NESTED), float(factors.mean())
        rest = factors - offset
        greatest = torch.stack([piece.abs().max() for piece in rest.split(NESTED)])
        each = greatest.repeat_interleave(NESTED)[: len(rest)]
        codes = (rest[:, None] / each[:, None] - linear).abs().argmin(1)
        factors = linear[codes] * each + offset
        tensors["weight.absmax"] = codes.to(torch.uint8)
        tensors |= {"weight.nested_absmax": greatest, "weight.nested_quant_map": linear}
        state |= {"nested_blocksize": NESTED, "nested_offset": offset}
    chosen = (blocks[..., None] / factors[:, None, None] - table).abs().argmin(-1)
    flat = chosen.flatten()
    tensors["weight"] = (16 * flat[::2] + flat[1::2]).to(torch.uint8)[:, None]
    tensors["weight.quant_map"] = table
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    return tensors, (table[chosen] * factors[:, None]).view_as(weight)


def eight_bits(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    greatest = weight.abs().amax(1)
    numbers = (weight / greatest[:, None] * 127).round()
    layout = torch.zeros((), dtype=torch.uint8)
    tensors = {"weight": numbers.to(torch.int8), "SCB": greatest, "weight_format": layout}
    return tensors, numbers * greatest[:, None] / 127


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nested", "integers"])
def test_parts_of_a_weight(tmp_path: Path, kind: str) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    if kind == "integers":
        tensors, matrix = eight_bits(weight)
    else:
        tensors, matrix = four_bits(weight, kind == "nested", "fp4" if kind == "fp4" else "nf4")
    settings = EIGHT if kind == "integers" else FOUR | {"bnb_4bit_quant_type": kind.replace("nested", "nf4")}
    for dim, cut in CUTS:
        for device in (Device(), KeepingDevice()):
            got = read(tmp_path, tensors, settings, device, TensorPart("x.weight", (64, 96), dim, cut))
            wanted = matrix[(slice(None),) * dim + (cut or slice(None),)]
            torch.testing.assert_close(got.dense(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nested"])
@pytest.mark.parametrize(
    "cut", [(0, None), (0, slice(8, 56)), (1, slice(64, 128)), (1, slice(32, 96))], ids=str
)
def test_codes_are_kept_where_rows_have_whole_blocks(
    tmp_path: Path, kind: str, cut: tuple[int, slice | None]
) -> None:
    """Their table is rounded: that changes less than a twelfth of what the format itself does."""
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    tensors, matrix = four_bits(weight, kind == "nested", "fp4" if kind == "fp4" else "nf4")
    part = TensorPart("x.weight", (64, 128), *cut)
    got = read(tmp_path, tensors, FOUR, KeepingDevice(), part)
    assert isinstance(got, IntegerWeight)
    mine = (slice(None),) * cut[0] + (cut[1] or slice(None),)
    greatest = weight.view(-1, BLOCK).abs().amax(1, keepdim=True).expand(-1, BLOCK).reshape(64, 128)
    error, own = ((each / greatest)[mine] for each in (matrix, weight - matrix))
    error = got.dense() / greatest[mine] - error
    assert error.abs().max() < 0.004
    assert error.square().mean().sqrt() < own.square().mean().sqrt() / 12
    x, device = (
        torch.randn(5, len(got.dense()[0]), generator=torch.Generator().manual_seed(1)),
        open_device(1),
    )
    product = device.multiply(x, device.prepare_linear(got))
    torch.testing.assert_close(product, got.multiply(Device(), x), rtol=1e-4, atol=1e-3)


def test_logits_of_four_bits(tmp_path: Path) -> None:
    dense = make_quantized(tmp_path, partial(four_bits, nested=True), FOUR)
    check_logits(tmp_path, dense, None, groups_of, kernels=False)


def test_logits_of_integers(tmp_path: Path) -> None:
    dense = make_quantized(tmp_path, eight_bits, EIGHT)
    check_logits(tmp_path, dense, 8, lambda size: groups_of(size, size))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"bnb_4bit_quant_storage": "bfloat16"}, "'bnb_4bit_quant_storage' is 'bfloat16'"),
        ({"bnb_4bit_quant_type": "af4"}, "'bnb_4bit_quant_type' is 'af4'"),
        ({"load_in_4bit": False}, "'load_in_8bit' is False"),
    ],
    ids=str,
)
def test_other_settings_are_refused(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_format(JsonReader({"quantization_config": FOUR | changes}))
