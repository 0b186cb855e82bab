"""GPTQ and AWQ: weights against the numbers that were packed, and logits against transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.layers import Build
from tgi.plugins import ConfigError, JsonReader
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import random_prompt, transformers_logprobs, whole
from tgi.weights import Checkpoint, Shard, TensorPart
from tgi.weights.formats import IntegerWeight, read_format

PROMPT = random_prompt(512, 25, 0)
Tensors = dict[str, torch.Tensor]


def pack(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack the columns of a matrix into words of 32 bits, number after number, bit after bit."""
    rows = []
    for row in numbers.tolist():
        stream = sum(number << (place * bits) for place, number in enumerate(row))
        count = -(-len(row) * bits // 32)
        words = [(stream >> (32 * place)) & 0xFFFFFFFF for place in range(count)]
        rows.append([word - (1 << 32) if word >> 31 else word for word in words])
    return torch.tensor(rows, dtype=torch.int32)


def pack_planes(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack 32 columns after the other: their lowest 8, 4 or 2 bits, then likewise the others."""
    words = []
    for block in numbers.split(32, 1):
        begin = 0
        for width in (8, 4, 2, 1):
            if bits - begin >= width:
                words.append(pack((block >> begin) % 2**width, width))
                begin += width
    return torch.cat(words, 1)


def rounded(
    weight: torch.Tensor, bits: int, groups: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers [out, in], scales and zeros [out, groups] of a weight, and the matrix that they stand for."""
    numbers = torch.zeros_like(weight, dtype=torch.int32)
    scales, zeros, matrix = [], [], torch.zeros_like(weight)
    for group in range(int(groups.max()) + 1):
        part = weight[:, groups == group]
        low, high = part.amin(1).clamp_max(0), part.amax(1).clamp_min(0)
        if symmetric:
            high = torch.maximum(high, -low)
            low = -high
        scale = ((high - low) / (2**bits - 1)).clamp_min(1e-5).half().float()
        zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low / scale).round()
        zero = zero.clamp(1, 2**bits - 1)
        stored = ((part / scale[:, None]).round() + zero[:, None]).clamp(0, 2**bits - 1)
        numbers[:, groups == group] = stored.int()
        matrix[:, groups == group] = (stored - zero[:, None]) * scale[:, None]
        scales.append(scale)
        zeros.append(zero.int())
    return numbers, torch.stack(scales, 1), torch.stack(zeros, 1), matrix


def groups_of(size: int, group: int, order: bool = False) -> torch.Tensor:
    """Groups [size] of input features, in any order or of neighbours."""
    groups = torch.arange(size) // (size if group < 0 else group)
    return groups[torch.randperm(size, generator=torch.Generator().manual_seed(size))] if order else groups


def gptq(
    weight: torch.Tensor,
    bits: int = 4,
    group: int = 32,
    order: bool = False,
    symmetric: bool = True,
    version: str = "gptq",
) -> tuple[Tensors, torch.Tensor]:
    """GPTQ's tensors of a weight, and the matrix that they stand for."""
    into = pack_planes if version == "gptq_p" else pack
    groups = groups_of(weight.shape[1], group, order)
    numbers, scales, zeros, matrix = rounded(weight, bits, groups, symmetric)
    return {
        "qweight": into(numbers, bits).T.contiguous(),
        "qzeros": into((zeros.T - int(version == "gptq")) % 2**bits, bits),
        "scales": scales.T.contiguous().half(),
        "g_idx": groups.int(),
    }, matrix


def awq(weight: torch.Tensor, group: int = 32) -> tuple[Tensors, torch.Tensor]:
    """AWQ's tensors: of eight neighbours a word has first 0, 2, 4, 6, and then 1, 3, 5, 7."""
    groups = groups_of(weight.shape[1], group)
    numbers, scales, zeros, matrix = rounded(weight, 4, groups, symmetric=False)

    def interleaved(columns: torch.Tensor) -> torch.Tensor:
        return columns.unflatten(1, (-1, 8))[..., [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1)

    return {
        "qweight": pack(interleaved(numbers.T), 4),
        "qzeros": pack(interleaved(zeros.T), 4),
        "scales": scales.T.contiguous().half(),
    }, matrix


def make_quantized(
    folder: Path, quantize: Callable[[torch.Tensor], Any], config: dict[str, Any], **llama: Any
) -> Path:
    """A Llama whose layers are quantized; the folder of the same model with dense weights is returned."""
    dense = make_llama(folder / "dense", **llama)
    make_llama(folder, **llama)
    stored, known = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored[name] = known[name] = tensor
        if "_proj." in name and name.endswith("weight"):
            tensors, known[name] = quantize(tensor)
            del stored[name]
            stored |= {name.removesuffix("weight") + kind: each for kind, each in tensors.items()}
    save_file(stored, folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in known.items()}, dense / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return dense


def gptq_config(
    bits: int = 4, group: int = 32, order: bool = False, symmetric: bool = True, version: str = "gptq"
) -> dict[str, Any]:
    return {
        "quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": order, "sym": symmetric,
        "checkpoint_format": version,
    }  # fmt: skip


AWQ: dict[str, Any] = {
    "quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
    "modules_to_not_convert": None,
}  # fmt: skip


class KeepingDevice(Device):
    """Multiplies integers as they are, as the CPU's kernels do."""

    integers = frozenset(range(2, 9))


def read(folder: Path, tensors: Tensors, config: dict[str, Any], device: Device, *parts: TensorPart) -> Any:
    save_file(
        {f"x.{name}": tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    form = read_format(JsonReader({"quantization_config": config}))
    build = Build(Checkpoint(folder), Shard(), device, torch.float32, form)
    assert form.missing(build, parts[0]) is None
    weight = form.read(build, *parts)
    assert not build.weights.unread
    return weight


CUTS = [(0, None), (0, slice(8, 56)), (1, slice(48, 96)), (1, slice(0, 40))]


@pytest.mark.parametrize("version", ["gptq", "gptq_v2", "gptq_p"])
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group", [32, 40, -1])
@pytest.mark.parametrize("order", [False, True])
def test_gptq_weights_are_those_that_were_packed(
    tmp_path: Path, version: str, bits: int, group: int, order: bool
) -> None:
    """The weight, a rank's rows of it, and a rank's columns, of which one rank's begin within a group."""
    options = (bits, group, order, version == "gptq", version)
    tensors, matrix = gptq(torch.randn(64, 96, generator=torch.Generator().manual_seed(bits)), *options)
    for dim, cut in CUTS:
        for device in (Device, KeepingDevice):
            part = TensorPart("x.weight", (64, 96), dim, cut)
            got = read(tmp_path, tensors, gptq_config(*options), device(), part)
            assert torch.allclose(got.dense(), matrix[(slice(None),) * dim + (cut or slice(None),)])
            irregular = order and group > 0 and dim == 1
            assert isinstance(got, IntegerWeight) == (device is KeepingDevice and not irregular)


@pytest.mark.parametrize("device", [Device, KeepingDevice])
@pytest.mark.parametrize(
    "cut", [(0, None), (0, slice(12, 56)), (1, slice(48, 96)), (1, slice(0, 40))], ids=str
)
def test_awq_weights_are_those_that_were_packed(
    tmp_path: Path, device: type[Device], cut: tuple[int, slice | None]
) -> None:
    tensors, matrix = awq(torch.randn(64, 96, generator=torch.Generator().manual_seed(0)))
    got = read(tmp_path, tensors, AWQ, device(), TensorPart("x.weight", (64, 96), *cut))
    wanted = matrix if cut[1] is None else matrix[cut[1]] if cut[0] == 0 else matrix[:, cut[1]]
    assert torch.allclose(got.dense(), wanted, rtol=1e-6, atol=1e-7)
    assert isinstance(got, IntegerWeight) == (device is KeepingDevice)


def rounding_inputs(dense: Path, groups: Callable[[int], torch.Tensor]) -> nn.Module:
    """Transformers' model of a checkpoint whose layers round their inputs to 8 bits, group after group.

    `groups` maps a number of input features to their groups.
    """
    model: nn.Module = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)

    def round_inputs(_layer: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        (x,) = inputs
        indices, rounded = groups(x.shape[-1]), torch.zeros_like(x)
        for group in indices.unique():
            part = x[..., indices == group].double()
            scale = part.abs().amax(-1, keepdim=True) / 127
            rounded[..., indices == group] = ((part / scale).round() * scale).float()
        return rounded

    for name, layer in model.named_modules():
        if name.endswith("_proj"):
            layer.register_forward_pre_hook(round_inputs)
    return model


CASES = {
    "gptq": (gptq, gptq_config()),
    "gptq-8": (lambda weight: gptq(weight, 8), gptq_config(8)),
    "gptq-3": (lambda weight: gptq(weight, 3, 64), gptq_config(3, 64)),
    "gptq-ordered": (lambda weight: gptq(weight, order=True), gptq_config(order=True)),
    "gptq-v2": (
        lambda weight: gptq(weight, symmetric=False, version="gptq_v2"),
        gptq_config(symmetric=False, version="gptq_v2"),
    ),
    "awq": (awq, AWQ),
}


@pytest.mark.parametrize("kind", CASES)
def test_logits_are_those_of_the_dense_model(tmp_path: Path, kind: str) -> None:
    """Where weights are made dense, on one rank or two; the CPU's kernels round inputs to 8 bits, too."""
    quantize, config = CASES[kind]
    dense = make_quantized(tmp_path, quantize, config)
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    text, size = [*PROMPT, 0], len(PROMPT)
    one = whole(make_driver(tmp_path, Device(1)), text, size)
    two = on_threads(tmp_path, 2, lambda driver: [whole(driver, text, size)], range(1, 9))[0]
    for each in (one, two):
        assert (each - wanted[-1:]).abs().max() < 1e-3
    if config["bits"] in open_device(1).integers:
        group, order = config["group_size"], config.get("desc_act", False)
        reference = rounding_inputs(dense, lambda features: groups_of(features, group, order))
        (wanted,) = transformers_logprobs(dense, reference, [PROMPT])
    error = (whole(make_driver(tmp_path, open_device(1)), text, size) - wanted[-1:]).abs()
    assert error.median() < 1e-4
    assert error.max() < 0.05


def test_a_bias_of_zeros_that_the_model_does_not_have_is_left_out(tmp_path: Path) -> None:
    """AutoGPTQ's tools have written one for every layer."""
    tensors, matrix = gptq(torch.randn(64, 96))
    tensors["bias"] = torch.zeros(64)
    got = read(tmp_path, tensors, gptq_config(), Device(), TensorPart("x.weight", (64, 96)))
    assert torch.allclose(got.dense(), matrix)


def test_layers_may_have_settings_of_their_own(tmp_path: Path) -> None:
    config = gptq_config() | {"dynamic": {"-:lm_head": {}, "+:x": {"bits": 8, "group_size": 48}}}
    tensors, matrix = gptq(torch.randn(64, 96), 8, 48)
    got = read(tmp_path, tensors, config, Device(), TensorPart("x.weight", (64, 96)))
    assert torch.allclose(got.dense(), matrix)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        (gptq_config(9), "'bits' is 9"),
        (gptq_config() | {"checkpoint_format": "marlin"}, "'checkpoint_format' is 'marlin'"),
        (gptq_config() | {"is_marlin_format": True}, "'is_marlin_format' is set"),
        (gptq_config() | {"lm_head": True}, "'lm_head' is set"),
        (gptq_config() | {"pack_dtype": "int16"}, "'pack_dtype' is 'int16'"),
        (AWQ | {"version": "gemv"}, "'version' is 'gemv'"),
        (AWQ | {"bits": 3}, "'bits' is 3"),
        (AWQ | {"zero_point": False}, "'zero_point' is False"),
    ],
)
def test_other_variants_are_refused(config: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        read_format(JsonReader({"quantization_config": config}))
