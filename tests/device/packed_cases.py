"""Weights of each kind that GPUs keep packed, and checkpoints of them, with what they are compared with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig

from tests.test_fp8 import STATIC, assert_near, make_fp8
from tests.test_fp8_blocks import CONFIGS as BLOCKS
from tests.test_fp8_blocks import quantize
from tests.test_rounding import ByHand, round_by_hand
from tests.weights.quantized import PROMPT, make_quantized
from tests.weights.test_compressed_tensors import INTEGERS
from tests.weights.test_compressed_tensors import integers as compressed
from tests.weights.test_packed_formats import CASES, gptq, gptq_config
from tests.weights.test_torchao import KINDS as TORCHAO
from tgi.device.base import Device
from tgi.device.cuda.cuda_operations import CudaOperations
from tgi.device.cuda.packed_weight import PackedExperts, PackedWeight
from tgi.device.experts import Experts
from tgi.testing.checkpoints import make_checkpoint
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt, transformers_logprobs, whole
from tgi.weights.formats import IntegerWeight, LinearWeight
from tgi.weights.formats.fp8 import FP8, Fp8Weight, Scale
from tgi.weights.formats.fp8_blocks import BLOCK, Fp8BlockWeight

Make = Callable[[int, int, int], LinearWeight]
"""From numbers of output and input features, and a seed."""


def integers(bits: int, group: int, *, zeros: bool = False, order: bool = False) -> Make:
    """Integers of any values; `group` 0: one scale for a row."""

    def make(out: int, size: int, seed: int) -> LinearWeight:
        drawn, count = torch.Generator().manual_seed(seed), -(-size // (group or size))
        return IntegerWeight(
            torch.randint(2**bits, (out, size), dtype=torch.uint8, generator=drawn),
            torch.rand(out, count, generator=drawn) / 2**bits,
            torch.randint(2**bits, (out, count), dtype=torch.uint8, generator=drawn) if zeros else None,
            bits,
            group or size,
            torch.randperm(size, generator=drawn) if order else None,
        )

    return make


def floats(scale: float | None = None) -> Make:
    """Of fp8 by rows, with a fixed scale of inputs or one for each row of them."""

    def make(out: int, size: int, seed: int) -> LinearWeight:
        drawn = torch.Generator().manual_seed(seed)
        numbers = (torch.randn(out, size, generator=drawn) * 9).to(FP8)
        numbers[:, :2] = torch.tensor([448.0, 2.0**-9]).to(FP8)  # the greatest and the least number
        scales = torch.rand(out, generator=drawn) / 9
        return Fp8Weight(numbers, scales, None if scale is None else Scale.of(torch.tensor(scale)))

    return make


def blocks(offset: int = 0) -> Make:
    """Of fp8 in blocks, of the first of which a rank lacks columns."""

    def make(out: int, size: int, seed: int) -> LinearWeight:
        drawn = torch.Generator().manual_seed(seed)
        numbers = torch.randn(out, size, generator=drawn).to(FP8)
        return Fp8BlockWeight(numbers, torch.rand(out, -(-(offset + size) // BLOCK), generator=drawn), offset)

    return make


KINDS: Mapping[str, tuple[Make, int]] = {
    "4 bits, groups of 128": (integers(4, 128), 384),
    "4 bits, groups of 64, zeros": (integers(4, 64, zeros=True), 200),
    "4 bits, groups of 32, any order": (integers(4, 32, zeros=True, order=True), 96),
    "4 bits, groups of 8": (integers(4, 8), 72),
    "4 bits, groups of 24, zeros": (integers(4, 24, zeros=True), 120),
    "4 bits, by row": (integers(4, 0), 30),
    "8 bits, groups of 128": (integers(8, 128), 300),
    "8 bits, groups of 40, zeros": (integers(8, 40, zeros=True), 160),
    "8 bits, by row": (integers(8, 0), 200),
    "fp8": (floats(), 200),
    "fp8, a scale of inputs": (floats(0.004), 96),
    "fp8, blocks": (blocks(), 300),
    "fp8, blocks from their middle": (blocks(64), 300),
    "fp8, blocks from any place": (blocks(24), 200),
}
"""Each with a number of input features."""
EXPERTS = [name for name in KINDS if "order" not in name and "inputs" not in name]
"""Those that experts may have; inputs of theirs have no fixed scale."""


def _normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps


def check_product(device: CudaOperations, name: str, rows: int, dtype: torch.dtype) -> None:
    """Compare a product with that of the plain weight; inputs of integers and blocks are not rounded."""
    (make, size), out, place = KINDS[name], 70, device.torch_device
    weight = make(out, size, 0)
    x, bias, residual = (_normal(*shape, seed=1).to(dtype) for shape in ((rows, size), (out,), (rows, out)))
    if isinstance(weight, Fp8Weight):
        wanted = weight.multiply(Device(), x.float(), bias.float(), residual.float())
    else:
        wanted = x.double() @ weight.dense().double().T + bias + residual
    prepared = device.prepare_linear(weight)
    assert isinstance(prepared, PackedWeight)
    got = device.multiply(x.to(place), prepared, bias.to(place), residual.to(place)).cpu()
    assert got.dtype == dtype
    error = (got.double() - wanted).abs().max() / wanted.abs().max()
    assert error < _tolerance(dtype)


def check_experts(device: CudaOperations, name: str, tokens: int, dtype: torch.dtype) -> None:
    """Compare the sums of a rank's three of five experts with those of each expert's own products."""
    (make, hidden), inner, place = KINDS[name], 48, device.torch_device
    experts = Experts(
        up=[device.prepare_linear(make(2 * inner, hidden, seed)) for seed in range(3)],
        down=[device.prepare_linear(make(hidden, inner, seed)) for seed in range(3)],
        up_bias=_normal(3, 2 * inner, seed=2).to(place, dtype),
        down_bias=_normal(3, hidden, seed=3).to(place, dtype),
        first=1,
        kind="silu",
    )
    x = _normal(tokens, hidden, seed=4).to(place, dtype) / hidden
    weights, chosen = _normal(tokens, 5, seed=5).abs().to(place, dtype).topk(2)
    wanted = Device.experts(device, x, weights, chosen, experts)
    prepared = device.prepare_experts(experts)
    assert isinstance(prepared, PackedExperts)
    got = device.experts(x, weights, chosen.int(), prepared)
    assert got.dtype == dtype
    assert (got - wanted).abs().max() < 4 * _tolerance(dtype) * wanted.abs().max()


MIXTRAL = MixtralConfig(
    vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=2, sliding_window=None,
)  # fmt: skip


def _of_integers(quantize: Any, config: dict[str, Any], *layers: str, **settings: Any) -> Any:
    return lambda folder: make_quantized(folder, quantize, config, *layers, **settings)


def _compressed(kind: str) -> Any:
    return _of_integers(lambda weight: compressed(weight, INTEGERS[kind]), INTEGERS[kind])


CHECKPOINTS: Mapping[str, Callable[[Path], Path]] = {
    **{kind: _of_integers(*CASES[kind]) for kind in ("gptq", "gptq-8", "gptq-ordered", "gptq-v2", "awq")},
    **{kind: _compressed(kind) for kind in ("W4A16", "W4A16 asymmetric", "W8A16", "W8A16 grouped")},
    "torchao": _of_integers(TORCHAO["int4, zeros"][1], TORCHAO["int4, zeros"][0]),
    "experts": _of_integers(
        gptq, gptq_config(), lambda folder: make_checkpoint(folder, MIXTRAL), layers=".experts."
    ),
    "ordered experts": _of_integers(
        lambda weight: gptq(weight, order=True),
        gptq_config(order=True),
        lambda folder: make_checkpoint(folder, MIXTRAL),
        layers=".experts.",
    ),
}
"""Functions that write a checkpoint and return the folder of the same model with dense weights."""


def logits(
    device: CudaOperations, folder: Path, prompt: Sequence[int] = PROMPT, **settings: Any
) -> torch.Tensor:
    """Log-probabilities after a prompt."""
    return whole(make_driver(folder, device, **settings), [*prompt, 0], len(prompt))


def check_checkpoint(device: CudaOperations, kind: str, folder: Path) -> None:
    """Compare integers with the dense model: inputs are not rounded."""
    (wanted,) = transformers_logprobs(CHECKPOINTS[kind](folder), None, [PROMPT])
    assert (logits(device, folder) - wanted[-1:]).abs().max() < 1e-3


def check_fp8(device: CudaOperations, folder: Path) -> None:
    """Compare with layers whose inputs and weights are rounded."""
    reference = make_fp8(folder, STATIC)
    (wanted,) = transformers_logprobs(folder, reference, [PROMPT])
    assert_near(logits(device, folder), wanted[-1:])


def check_blocks(device: CudaOperations, name: str, folder: Path) -> None:
    """Compare with the model of the real numbers."""
    reference = quantize(make_checkpoint(folder, BLOCKS[name]))
    prompt = random_prompt(BLOCKS[name].vocab_size, 25, 0)
    (wanted,) = transformers_logprobs(folder, reference, [prompt])
    assert (logits(device, folder, prompt) - wanted[-1:]).abs().max() < 1e-3


def check_rounding(device: CudaOperations, quantize: str, folder: Path) -> None:
    """Compare with layers whose weights, and of fp8 the inputs, are rounded."""
    make_llama(folder)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear):
            rounded = round_by_hand(name, layer, quantize)
            if isinstance(rounded, ByHand):
                layer.weight = nn.Parameter(rounded.weight.float())
            else:
                model.set_submodule(name, rounded)
    (wanted,) = transformers_logprobs(folder, model, [PROMPT])
    assert_near(logits(device, folder, quantize=quantize), wanted[-1:])
