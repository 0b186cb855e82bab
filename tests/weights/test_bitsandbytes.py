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
from tgi.plugins import ConfigError, JsonReader
from tgi.weights import TensorPart
from tgi.weights.formats import read_format

BLOCK, NESTED = 64, 256
NF4 = [
    -1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
]  # fmt: skip
"""The numbers of the codes (Dettmers et al. 2023, appendix E)."""
FOUR: dict[str, Any] = {
    "quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8", "bnb_4bit_use_double_quant": True,
}  # fmt: skip
EIGHT = {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": True}


def four_bits(weight: torch.Tensor, nested: bool) -> tuple[Tensors, torch.Tensor]:
    """The tensors of a weight, and the matrix that they stand for."""
    blocks = weight.flatten().split(BLOCK)
    factors = [float(block.abs().max()) for block in blocks]
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(weight.shape)}
    tensors: Tensors = {}
    if nested:
        table, offset = torch.linspace(-1, 1, NESTED), sum(factors) / len(factors)
        rest = torch.tensor(factors) - offset
        greatest = torch.stack([piece.abs().max() for piece in rest.split(NESTED)])
        codes = [
            int((number / greatest[place // NESTED] - table).abs().argmin())
            for place, number in enumerate(rest)
        ]
        factors = [
            float(table[code] * greatest[place // NESTED]) + offset for place, code in enumerate(codes)
        ]
        tensors["weight.absmax"] = torch.tensor(codes, dtype=torch.uint8)
        tensors |= {"weight.nested_absmax": greatest, "weight.nested_quant_map": table}
        state |= {"nested_blocksize": NESTED, "nested_offset": offset}
    else:
        tensors["weight.absmax"] = torch.tensor(factors)
    octets, numbers, map_ = [], [], torch.tensor(NF4)
    for block, factor in zip(blocks, factors, strict=True):
        codes = [int((number / factor - map_).abs().argmin()) for number in block]
        octets += [16 * high + low for high, low in zip(codes[::2], codes[1::2], strict=True)]
        numbers += [NF4[code] * factor for code in codes]
    tensors["weight"] = torch.tensor(octets, dtype=torch.uint8)[:, None]
    tensors["weight.quant_map"] = map_
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    return tensors, torch.tensor(numbers).view_as(weight)


def eight_bits(weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
    greatest = weight.abs().amax(1)
    numbers = (weight / greatest[:, None] * 127).round()
    layout = torch.zeros((), dtype=torch.uint8)
    tensors = {"weight": numbers.to(torch.int8), "SCB": greatest, "weight_format": layout}
    return tensors, numbers * greatest[:, None] / 127


@pytest.mark.parametrize("kind", ["nf4", "nested", "integers"])
def test_parts_of_a_weight(tmp_path: Path, kind: str) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    if kind == "integers":
        tensors, matrix = eight_bits(weight)
    else:
        tensors, matrix = four_bits(weight, nested=kind == "nested")
    settings = EIGHT if kind == "integers" else FOUR
    for dim, cut in CUTS:
        for device in (Device(), KeepingDevice()):
            got = read(tmp_path, tensors, settings, device, TensorPart("x.weight", (64, 96), dim, cut))
            wanted = matrix[(slice(None),) * dim + (cut or slice(None),)]
            torch.testing.assert_close(got.dense(), wanted, rtol=1e-6, atol=1e-6)


def test_logits_of_four_bits(tmp_path: Path) -> None:
    check_logits(tmp_path, make_quantized(tmp_path, partial(four_bits, nested=True), FOUR), None, groups_of)


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
