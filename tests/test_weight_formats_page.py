"""docs/weight-formats.md lists what each device keeps of each format, by the formats' own account.

`python -m tests.test_weight_formats_page` writes its table.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tgi.device.base import Device
from tgi.device.cpu import SPEC as CPU
from tgi.device.cuda import SPEC as CUDA
from tgi.device.hpu import SPEC as GAUDI
from tgi.layers import Build
from tgi.plugins import ConfigError, DeviceSpec, JsonReader
from tgi.weights import Outline, Shard, TensorPart
from tgi.weights.formats import EXPANDED, read_format
from tgi.weights.formats.gguf import TYPES

PAGE = Path(__file__).parents[1] / "docs/weight-formats.md"
RATIOS = json.loads((PAGE.parents[1] / "benchmarks/format_speed.json").read_text())
"""Times on a CPU, divided by those of bfloat16; empty before they were measured."""
SIZE = 4096
GPTQ = {"quant_method": "gptq", "group_size": 128, "desc_act": False}
FP8 = {"type": "float", "num_bits": 8}
STATIC = FP8 | {"strategy": "tensor"}
TOKEN = {"dynamic": True, "num_bits": 8}


def compressed(packing: str, weights: dict[str, Any], inputs: Any = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {"quant_method": "compressed-tensors", "format": packing, "config_groups": {"group_0": group}}


def grouped(bits: int) -> dict[str, Any]:
    return {"type": "int", "num_bits": bits, "strategy": "group", "group_size": 128}


def torchao(kind: str, **settings: Any) -> dict[str, Any]:
    return {"quant_method": "torchao", "quant_type": {"default": {"_type": kind, "_data": settings}}}


CHANNELS = {"type": "int", "num_bits": 8, "strategy": "channel"}
ROWS: dict[str, dict[str, Any]] = {
    "GPTQ, 2 bits": GPTQ | {"bits": 2},
    "GPTQ, 3 bits": GPTQ | {"bits": 3},
    "GPTQ, 4 bits": GPTQ | {"bits": 4},
    "GPTQ, 4 bits, `desc_act`": GPTQ | {"bits": 4, "desc_act": True},
    "GPTQ, 4 bits, not symmetric": GPTQ | {"bits": 4, "sym": False},
    "GPTQ, 5 bits (`gptq_p`)": GPTQ | {"bits": 5, "checkpoint_format": "gptq_p"},
    "GPTQ, 8 bits": GPTQ | {"bits": 8},
    "AWQ, 4 bits, `gemm`": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "AWQ, 4 bits, `gemm`, symmetric": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": False,
    },
    "AWQ, 4 bits, `gemv`": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"},
    "compressed-tensors, W4A16": compressed("pack-quantized", grouped(4)),
    "compressed-tensors, W8A16": compressed("pack-quantized", grouped(8)),
    "compressed-tensors, W8A8, integers": compressed("int-quantized", CHANNELS, TOKEN),
    "compressed-tensors, fp8, fixed scales": compressed("float-quantized", STATIC, STATIC),
    "compressed-tensors, fp8 by channel": compressed("float-quantized", FP8 | {"strategy": "channel"}, TOKEN),
    "compressed-tensors, NVFP4": compressed(
        "nvfp4-pack-quantized", {"type": "float", "num_bits": 4, "strategy": "tensor_group"}
    ),
    "compressed-tensors, MXFP4": compressed("mxfp4-pack-quantized", {"type": "float", "num_bits": 4}),
    "compressed-tensors, MXFP8": compressed("mxfp8-quantized", FP8),
    "fp8, fixed scales (AutoFP8)": {"quant_method": "fp8", "activation_scheme": "static"},
    "fp8, inputs by their own scales (AutoFP8)": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8 in blocks of 128 by 128 (DeepSeek, Qwen)": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "fp8 by channel (FBGEMM)": {"quant_method": "fbgemm_fp8"},
    "fp8 (ModelOpt)": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "NVFP4 (ModelOpt)": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "MXFP4 (gpt-oss), experts": {"quant_method": "mxfp4"},
    "torchao, Int8": torchao("Int8WeightOnlyConfig", granularity={"_type": "PerRow"}),
    "torchao, Intx, 4 bits": torchao(
        "IntxWeightOnlyConfig",
        granularity={"_type": "PerGroup", "_data": {"group_size": 64}},
        weight_dtype={"_data": "int4"},
    ),
    "torchao, Float8": torchao("Float8WeightOnlyConfig", granularity={"_type": "PerRow"}),
    "torchao, Int4": torchao("Int4WeightOnlyConfig", group_size=128),
    "bitsandbytes, 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "bitsandbytes, nf4 or fp4": {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
    },
    **{f"GGUF, {each}": {"quant_method": "gguf", "types": [each]} for each in TYPES},
    "HQQ": {"quant_method": "hqq"},
}
"""Variants of formats, and their "quantization_config"."""


def cell(config: dict[str, Any], spec: DeviceSpec) -> str:
    """Say what a device keeps of a weight."""
    try:
        form = read_format(JsonReader({"quantization_config": config}))
    except ConfigError:
        return "refused"
    device = Device()
    device.torch_device = torch.device("meta")
    device.keeps = spec.keeps
    build = Build(Outline(), Shard(), device, torch.bfloat16, form)
    expert = 0 if config["quant_method"] == "mxfp4" else None
    build.linear(TensorPart("x.weight", (SIZE, SIZE), index=expert, count=1))
    bits = sum(tensor.bytes for tensor in build.tensors) * 8 / SIZE**2
    dense = any(tensor.format.endswith(EXPANDED) for tensor in build.tensors)
    return f"dense, {bits:.0f} bits" if dense else f"kept, {bits:.3g} bits"


def columns(name: str) -> str:
    """The times of a decode step of 1 and 16 rows on a CPU, as columns; none before they were measured."""
    if not RATIOS:
        return ""
    return " | ".join(f"{ratio:.2f}" for ratio in RATIOS[name]) + " | " if name in RATIOS else " | | "


def table() -> str:
    measured = "cpu, 1 row | cpu, 16 rows | " if RATIOS else ""
    kinds = [
        f"| {name} | {cell(row, CPU)} | {columns(name)}{cell(row, GAUDI)} | {cell(row, CUDA)} |"
        for name, row in ROWS.items()
    ]
    rounded = [f"| {name} | | {columns(name)} | |" for name in RATIOS if name not in ROWS]
    head = f"| format | cpu | {measured}Gaudi | CUDA |"
    return "\n".join([head, "|" + "---|" * (head.count("|") - 1), *kinds, *rounded])


def page() -> str:
    return re.sub(
        r"(<!-- formats -->\n).*(<!-- end -->)", rf"\1{table()}\n\2", PAGE.read_text(), flags=re.DOTALL
    )


def test_the_page_has_what_the_formats_say() -> None:
    assert PAGE.read_text() == page(), "python -m tests.test_weight_formats_page"


@pytest.mark.parametrize(
    ("quantize", "config"),
    [
        ("gptq", GPTQ | {"bits": 4}),
        ("marlin", GPTQ | {"bits": 4}),
        ("awq", ROWS["AWQ, 4 bits, `gemm`"]),
        ("marlin", ROWS["AWQ, 4 bits, `gemm`"]),
        ("fp8", ROWS["fp8 by channel (FBGEMM)"]),
        ("fp8", ROWS["compressed-tensors, fp8 by channel"]),
        ("compressed-tensors", ROWS["compressed-tensors, fp8 by channel"]),
        ("compressed-tensors", ROWS["compressed-tensors, W4A16"]),
        ("bitsandbytes", ROWS["bitsandbytes, 8 bits"]),
        ("bitsandbytes-nf4", ROWS["bitsandbytes, nf4 or fp4"]),
    ],
)
def test_quantize_may_name_the_format_of_the_checkpoint(quantize: str, config: dict[str, Any]) -> None:
    reader = JsonReader({"quantization_config": config})
    assert read_format(reader, quantize) == read_format(reader)


@pytest.mark.parametrize(
    ("quantize", "instead"),
    [
        ("bitsandbytes", "--quantize int8"),
        ("bitsandbytes-nf4", "--quantize int4"),
        ("bitsandbytes-fp4", "--quantize int4"),
        ("eetq", "--quantize int8"),
        ("exl2", ".* GPTQ or AWQ"),
        ("gptq", "int4 or int8"),
        ("awq", "int4 or int8"),
        ("marlin", "int4 or int8"),
        ("compressed-tensors", "int4 or int8"),
    ],
)
def test_a_dense_checkpoint_is_refused_with_what_to_use_instead(quantize: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--quantize {quantize}.*{instead}"):
        read_format(JsonReader({}), quantize)


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        ("hqq", "a dense .* --quantize int8"),
        ("quanto", "a dense .* --quantize int8"),
        ("exl2", ".* GPTQ or AWQ"),
    ],
)
def test_a_checkpoint_of_another_tool_is_refused_with_what_to_use_instead(method: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"is '{method}', which is not supported: serve {instead}"):
        read_format(JsonReader({"quantization_config": {"quant_method": method}}))


if __name__ == "__main__":
    PAGE.write_text(page())
