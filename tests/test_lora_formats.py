"""LoRA adapters of models with quantized weights, against PEFT around layers that are rounded by hand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.compiling import open_compiling
from tests.peft_adapters import make_adapter, peft_logits
from tests.test_rounding import round_by_hand
from tests.weights.quantized import make_quantized
from tests.weights.test_packed_formats import gptq, gptq_config
from tgi.device.base import Device
from tgi.protocol import LoraSlots
from tgi.testing.driver import Driver, make_driver
from tgi.testing.models import make_llama
from tgi.testing.rank_threads import on_threads
from tgi.testing.runs import random_prompt
from tgi.worker.runner import open_device

GROUP = 32
PROMPT = random_prompt(320, 25, 0)
make = partial(make_llama, vocab_size=320)


class RoundedInputs(nn.Module):
    """A layer whose inputs are rounded, group after group, to multiples of 1/127 of the greatest."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        groups = x.unflatten(-1, (-1, GROUP))
        scale = groups.abs().amax(-1, keepdim=True) / 127
        return ((groups / scale).round() * scale).flatten(-2) @ self.weight.T


def rounded_inputs(name: str, layer: nn.Linear) -> nn.Module:
    return layer if name.endswith("lm_head") else RoundedInputs(layer)


def run(driver: Driver, adapters: list[Path]) -> list[torch.Tensor]:
    """Logits of the prompt in rows with each adapter, and with none, and of another token after it."""
    for slot, folder in enumerate(adapters):
        assert driver.load_lora(slot, folder) == ""
    lanes = range(len(adapters) + 1)
    for lane in lanes:
        driver.start(lane, lora=lane if lane < len(adapters) else -1)
        driver.prefill({lane: PROMPT[:-1]})
    answers = driver.prefill(dict.fromkeys(lanes, PROMPT[-1:]))
    return [answers[lane].logits for lane in lanes]


def check(
    got: list[torch.Tensor], model: Path, adapters: list[Path], change: Callable[[str, nn.Linear], nn.Module]
) -> None:
    """An input halfway between two integers may go to the other one: most logits are equal, none is far."""
    for logits, adapter in zip(got, [*adapters, None], strict=True):
        (wanted,) = peft_logits(model, adapter, [PROMPT], change)
        (exact,) = peft_logits(model, adapter, [PROMPT])
        error = (logits - wanted).abs()
        assert error.mean() < 0.1 * (exact - wanted).abs().mean()
        assert error.max() < 0.02 * wanted.abs().max()


def make_adapters(folder: Path, model: Path) -> list[Path]:
    kinds: list[dict[str, object]] = [{"r": 3}, {"r": 8, "target_modules": ["q_proj", "down_proj"]}]
    return [make_adapter(folder / f"a{seed}", model, seed, **kind) for seed, kind in enumerate(kinds)]


SLOTS = LoraSlots(2, 8)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("device", [open_device, lambda *_: Device(1)], ids=["cpu", "plain"])
def test_rounded_weights(tmp_path: Path, quantize: str, device: Callable[[str, int], Device]) -> None:
    model = make(tmp_path / "model")
    adapters = make_adapters(tmp_path, model)
    got = run(make_driver(model, device("cpu", 1), quantize=quantize, loras=SLOTS), adapters)
    check(got, model, adapters, lambda name, layer: round_by_hand(name, layer, quantize))


def test_rounded_weights_on_two_ranks(tmp_path: Path) -> None:
    """Each rank rounds its own part of the inputs, and is off by no more than one rank alone."""
    model = make(tmp_path / "model")
    adapters = make_adapters(tmp_path, model)
    one = run(make_driver(model, open_device("cpu", 1), quantize="int8", loras=SLOTS), adapters)
    two = on_threads(model, 2, partial(run, adapters=adapters), range(1, 99), quantize="int8", loras=SLOTS)
    for alone, divided, adapter in zip(one, two, [*adapters, None], strict=True):
        (exact,) = peft_logits(model, adapter, [PROMPT])
        assert (divided - exact).abs().mean() < 1.5 * (alone - exact).abs().mean()


@pytest.mark.parametrize("order", [False, True], ids=["neighbours", "desc_act"])
def test_gptq(tmp_path: Path, order: bool) -> None:
    quantize = partial(gptq, group=GROUP, order=order)
    dense = make_quantized(tmp_path / "model", quantize, gptq_config(group=GROUP, order=order), make)
    adapters = make_adapters(tmp_path, dense)
    got = run(make_driver(tmp_path / "model", Device(1), loras=SLOTS), adapters)
    two = on_threads(tmp_path / "model", 2, partial(run, adapters=adapters), range(1, 99), loras=SLOTS)
    for logits, divided, adapter in zip(got, two, [*adapters, None], strict=True):
        (wanted,) = peft_logits(dense, adapter, [PROMPT])
        torch.testing.assert_close(logits, wanted, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(divided, wanted, rtol=1e-3, atol=1e-3)
    cpu = open_device("cpu", 1)
    if not order and "int4" in cpu.keeps:
        got = run(make_driver(tmp_path / "model", cpu, loras=SLOTS), adapters)
        check(got, dense, adapters, rounded_inputs)


@pytest.mark.parametrize("card", ["gaudi3-lazy", "gaudi3-compile"])
@pytest.mark.parametrize("quantize", ["fp8", "int4"])
def test_on_a_card(tmp_path: Path, quantize: str, card: str) -> None:
    """It rounds as `test_rounding` says; an adapter adds no error of its own."""
    model = make(tmp_path / "model")
    adapters = make_adapters(tmp_path, model)
    with open_compiling(card) as device:
        got = run(make_driver(model, device, quantize=quantize, loras=SLOTS, dtype="float32"), adapters)
    for logits, adapter in zip(got, [*adapters, None], strict=True):
        (wanted,) = peft_logits(
            model, adapter, [PROMPT], lambda name, layer: round_by_hand(name, layer, quantize)
        )
        (exact,) = peft_logits(model, adapter, [PROMPT])
        off = (wanted - exact).abs().mean()
        assert (logits - wanted).abs().mean() < (1 if quantize == "int4" else 0.1) * off
