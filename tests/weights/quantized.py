"""Checkpoints with quantized weights for tests: packing by hand, and what the numbers stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.layers import Build
from tgi.plugins import JsonReader
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import random_prompt, transformers_logprobs, whole
from tgi.weights import Checkpoint, Shard, TensorPart
from tgi.weights.formats import read_format

PROMPT = random_prompt(512, 25, 0)
Tensors = dict[str, torch.Tensor]
CUTS = [(0, None), (0, slice(8, 56)), (1, slice(48, 96)), (1, slice(0, 40))]
"""Parts of a weight [64, 96]: all, a rank's rows, and columns of two ranks."""


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


def make_quantized(
    folder: Path,
    quantize: Callable[[torch.Tensor], Any],
    config: dict[str, Any],
    make: Callable[[Path], Path] = make_llama,
    layers: str = "_proj.",
) -> Path:
    """A model whose layers are quantized, by a part of their names.

    The folder of the same model with dense weights is returned.
    """
    dense = make(folder / "dense")
    make(folder)
    stored, known = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored[name] = known[name] = tensor
        if layers in name and name.endswith("weight"):
            tensors, known[name] = quantize(tensor)
            del stored[name]
            stored |= {
                name.removesuffix("weight") + kind: each.contiguous() for kind, each in tensors.items()
            }
    save_file(stored, folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in known.items()}, dense / "model.safetensors")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    return dense


class KeepingDevice(Device):
    """Multiplies integers as they are, as the CPU's kernels do."""

    keeps = frozenset(f"int{bits}" for bits in range(2, 9)) | {"nested"}


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


def rounding_inputs(dense: Path, groups: Callable[[int], torch.Tensor], layers: str = "_proj") -> nn.Module:
    """Transformers' model of a checkpoint whose layers round their inputs to 8 bits, group after group.

    `groups` maps a number of input features to their groups.
    """
    model: nn.Module = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    round_inputs(model, groups, layers)
    return model


def round_inputs(model: nn.Module, groups: Callable[[int], torch.Tensor], *ends: str) -> None:
    """Let the layers whose names end so round their inputs."""

    def hook(_layer: nn.Module, inputs: tuple[torch.Tensor]) -> torch.Tensor:
        (x,) = inputs
        indices, rounded = groups(x.shape[-1]), torch.zeros_like(x)
        for group in indices.unique():
            part = x[..., indices == group].double()
            scale = part.abs().amax(-1, keepdim=True) / 127
            rounded[..., indices == group] = ((part / scale).round() * scale).float()
        return rounded

    for name, layer in model.named_modules():
        if name.endswith(ends):
            layer.register_forward_pre_hook(hook)


def check_logits(
    folder: Path,
    dense: Path,
    bits: int | None,
    groups: Callable[[int], torch.Tensor],
    kernels: bool = True,
    head: bool = False,
) -> None:
    """Compare a model with transformers', where weights are made dense, on one rank or two; and on the CPU.

    There, which is left out without `kernels`, weights of so many bits may be taken as they are, and inputs
    rounded in `groups`; those of the `head` alone, or of other layers.
    """
    text, size = [*PROMPT, 0], len(PROMPT)
    (wanted,) = transformers_logprobs(dense, None, [PROMPT])
    one = whole(make_driver(folder, Device(1)), text, size)
    two = on_threads(folder, 2, lambda driver: [whole(driver, text, size)], range(1, 9))[0]
    for each in (one, two):
        assert (each - wanted[-1:]).abs().max() < 1e-3
    if not kernels:
        return
    if f"int{bits}" in open_device(1).keeps:
        model = rounding_inputs(dense, groups, "lm_head" if head else "_proj")
        (wanted,) = transformers_logprobs(dense, model, [PROMPT])
    error = (whole(make_driver(folder, open_device(1)), text, size) - wanted[-1:]).abs()
    assert error.median() < 5e-4  # a number between two integers may be rounded to the other one
    assert error.max() < 0.05
