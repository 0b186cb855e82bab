"""`--quantize` int8, int4 and fp8: dense checkpoints rounded at loading, against layers rounded by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from tests.compiling import open_compiling
from tgi.config import ROUNDINGS, Options
from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.layers.loading import describe
from tgi.planning.setup import find_device, read_setup
from tgi.plugins import ConfigError, JsonReader
from tgi.protocol import Describe
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import random_prompt, transformers_logprobs, whole
from tgi.weights.formats import Rounding, read_format
from tgi.weights.formats.integers import round_weight

PROMPT = random_prompt(512, 25, 0)
PROMPTS = [random_prompt(512, 25, seed) for seed in range(8)]


class ByHand(nn.Module):
    """A linear layer whose weights and inputs are rounded, group after group, in the plainest way."""

    def __init__(self, weight: torch.Tensor, bits: int, group: int) -> None:
        super().__init__()
        self.group = group
        pieces = []
        for part in weight.double().split(group, 1):
            if bits == 8:
                scale = part.abs().amax(1, keepdim=True) / 127
                pieces.append((part / scale).round() * scale)
            else:
                low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
                scale = (high - low) / 15
                zero = (-low / scale).round()
                pieces.append(((part / scale).round().add(zero).clamp(0, 15) - zero) * scale)
        self.weight = torch.cat(pieces, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pieces = []
        for part in x.double().split(self.group, -1):
            scale = part.abs().amax(-1, keepdim=True) / 127
            pieces.append((part / scale).round() * scale)
        return (torch.cat(pieces, -1) @ self.weight.T).to(x.dtype)


class Fp8ByHand(nn.Module):
    """A linear layer whose rows of weights and of inputs are rounded to e4m3, the greatest number to 448."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = self.rounded(weight)

    @staticmethod
    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 448
        return (x / scale).to(torch.float8_e4m3fn).double() * scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.rounded(x) @ self.weight.T).to(x.dtype)


def round_by_hand(name: str, layer: nn.Linear, quantize: str) -> nn.Module:
    """The rounded form of a layer of that name."""
    head = name.endswith("lm_head")
    if quantize == "fp8":
        return layer if head else Fp8ByHand(layer.weight.detach())
    bits = 8 if quantize == "int8" or head else 4
    return ByHand(layer.weight.detach(), bits, 64 if bits == 4 else layer.in_features)


def by_hand(folder: Path, quantize: str) -> nn.Module:
    """Transformers' model of a checkpoint, with its linear layers rounded."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            model.set_submodule(name, round_by_hand(name, layer, quantize))
    return model


@pytest.mark.parametrize("quantize", ROUNDINGS)
@pytest.mark.parametrize("device", [open_device, Device], ids=["cpu", "plain"])
def test_logits_are_those_of_rounded_layers(tmp_path: Path, quantize: str, device: Any) -> None:
    """All are equal but for two of eight prompts: an input between two integers may go to either."""
    make_llama(tmp_path)
    wanted = transformers_logprobs(tmp_path, by_hand(tmp_path, quantize), PROMPTS)
    exact = transformers_logprobs(tmp_path, None, PROMPTS)
    driver = make_driver(tmp_path, device(1), quantize=quantize)
    got = [whole(driver, [*prompt, 0], len(prompt)) for prompt in PROMPTS]
    errors = [(a - b[-1:]).abs().max() for a, b in zip(got, wanted, strict=True)]
    assert sorted(errors)[-3] < 1e-4
    for a, b in zip(exact, wanted, strict=True):
        assert (a[-1] - b[-1]).abs().median() > 0.01


@pytest.mark.parametrize("quantize", ["fp8", "int4"])
@pytest.mark.parametrize("card", ["gaudi2-lazy", "gaudi3-compile"])
def test_on_a_card(tmp_path: Path, quantize: str, card: str) -> None:
    """It rounds weights, and of fp8 the inputs; a card with another range rounds them a little otherwise."""
    make_llama(tmp_path)
    with open_compiling(card) as device:
        assert quantize in device.spec.roundings
        got = whole(make_driver(tmp_path, device, quantize=quantize), [*PROMPT, 0], len(PROMPT))
    (wanted,) = transformers_logprobs(tmp_path, by_hand(tmp_path, quantize), [PROMPT])
    (exact,) = transformers_logprobs(tmp_path, None, [PROMPT])
    off = (wanted[-1:] - exact[-1:]).abs().mean()
    assert (got - wanted[-1:]).abs().mean() < (
        1 if device.fp8_limit == 240 or quantize == "int4" else 0.1
    ) * off
    assert 0.5 * off < (got - exact[-1:]).abs().mean() < 1.5 * off


def test_on_two_ranks(tmp_path: Path) -> None:
    """Each rank rounds its own part of the inputs, and is off by no more than one rank alone."""
    make_llama(tmp_path)
    (exact,) = transformers_logprobs(tmp_path, None, [PROMPT])
    text, size = [*PROMPT, 0], len(PROMPT)
    one = whole(make_driver(tmp_path, open_device(1), quantize="int8"), text, size)
    two = on_threads(tmp_path, 2, lambda driver: [whole(driver, text, size)], range(1, 9), quantize="int8")[0]
    assert 0 < (two - exact[-1:]).abs().mean() < 1.3 * (one - exact[-1:]).abs().mean()


@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, False), (4, True)])
@pytest.mark.parametrize("size", [64, 100, 7])
def test_weights_are_off_by_half_a_step_at_most(bits: int, symmetric: bool, size: int) -> None:
    matrix = torch.randn(40, size, generator=torch.Generator().manual_seed(size))
    matrix[3] = 0
    matrix[4] = matrix[4].abs() + 1
    rounded = round_weight(matrix, bits, 64, symmetric=symmetric)
    step = rounded.scales.repeat_interleave(64, 1)[:, :size]
    assert ((rounded.dense() - matrix).abs() <= step * (0.5 if symmetric else 1) + 1e-6).all()
    assert (rounded.dense()[3] == 0).all()


@pytest.mark.parametrize(
    ("quantize", "share"), [("int8", 1 + 4 / 64), ("int4", 1 / 2 + 5 / 64), ("fp8", 1 + 4 / 64)]
)
def test_the_plan_counts_what_the_weights_take(tmp_path: Path, quantize: str, share: float) -> None:
    make_llama(tmp_path, hidden_size=64, intermediate_size=64)
    command = Describe(
        folder=str(tmp_path), architecture="LlamaForCausalLM", ranks=1, dtype="float32", quantize=quantize
    )
    for tensor in describe(command).tensors:
        numbers = tensor.part[0] * tensor.part[-1]
        if "_proj" in tensor.name:
            assert (tensor.format, tensor.bytes) == (quantize, numbers * share)
        elif tensor.name == "lm_head.weight":
            int8 = ("int8", numbers + 4 * tensor.part[0])
            assert (tensor.format, tensor.bytes) == (("dense", 4 * numbers) if quantize == "fp8" else int8)
        else:
            assert tensor.format == "dense"


def test_the_options_name_every_rounding() -> None:
    config = JsonReader({})
    assert {read_format(config, name).name for name in ROUNDINGS} == set(ROUNDINGS)
    with pytest.raises(ConfigError, match=r"^--quantize gptq: .* can be rounded to fp8 or int4 or int8$"):
        read_format(config, "gptq")
    assert {kind.name for kind in Rounding.kinds()} == set(ROUNDINGS)


def test_a_quantized_checkpoint_keeps_its_format() -> None:
    config = JsonReader({"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}})
    assert read_format(config, "fp8").name == read_format(config).name == "fp8"
    with pytest.raises(ConfigError, match=r"^--quantize int8: the checkpoint is quantized already, to fp8$"):
        read_format(config, "int8")


def test_a_device_that_cannot_round_is_named(tmp_path: Path) -> None:
    make_llama(tmp_path)
    setup = read_setup(tmp_path, Options(quantize="int8", device="hpu"), find_device("hpu"), {})
    with pytest.raises(ConfigError, match=r"^--quantize int8 is not supported .* hpu; fp8 or int4 is$"):
        setup.describe_command()
