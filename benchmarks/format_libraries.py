"""Checkpoints that the libraries themselves write, served here and compared with what the libraries compute.

    pip install bitsandbytes torchao llmcompressor gptqmodel auto-round nvidia-modelopt autoawq
    PYTHONPATH=. python benchmarks/format_libraries.py [bitsandbytes] [torchao] …

A small random Llama is quantized in every scheme that works without a card. The model here, with weights made
dense, is compared with transformers' model of the library's own numbers: as they are rounded to 16 bits by
some libraries, differences up to 0.2 are theirs. What is refused is printed with the reason.
"""

import os

os.environ |= {"TORCHDYNAMO_DISABLE": "1", "GPTQMODEL_CPU_WORKERS": "4"}  # nothing to compile for one step

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.plugins import ConfigError
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt, transformers_logprobs, whole

Tensors = dict[str, torch.Tensor]
Make = Callable[[Path, Path], Tensors]
"""Writes a checkpoint of the dense one in the first folder, and returns the numbers that it stands for."""
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
PROMPT = random_prompt(512, 25, 0)
TEXTS = torch.randint(4, 512, (8, 64), generator=torch.Generator().manual_seed(0))


def weights(model: nn.Module, dense: Callable[[nn.Module], torch.Tensor | None]) -> Tensors:
    """Return all weights, those of layers for which `dense` gives none as they are."""
    found = {}
    for name, module in model.named_modules():
        real = dense(module)
        real = getattr(module, "weight", None) if real is None else real
        if isinstance(real, torch.Tensor):
            found[f"{name}.weight"] = real.detach().float().contiguous().clone()
    return found


def open_model(folder: Path, **options: Any) -> Any:
    """Return transformers' model."""
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


def bitsandbytes() -> Iterator[tuple[str, Make]]:
    """Yield what transformers makes with it."""
    import bitsandbytes.functional as functional
    from transformers import BitsAndBytesConfig

    def dense(module: Any) -> torch.Tensor | None:
        kind = type(module).__name__
        if kind == "Linear4bit":
            module.weight.quant_state.dtype = torch.float32
            return functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return module.weight.CB * (module.weight.SCB[:, None] / 127) if kind == "Linear8bitLt" else None

    def make(settings: dict[str, Any], base: Path, folder: Path) -> Tensors:
        model = open_model(base, quantization_config=BitsAndBytesConfig(**settings))
        model.save_pretrained(folder)
        return weights(model, dense)

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            four = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested}
            yield f"{kind}{', nested' * nested}", partial(make, {"load_in_4bit": True, **four})
    yield "int8", partial(make, {"load_in_8bit": True})


def torchao() -> Iterator[tuple[str, Make]]:
    """Yield what transformers makes with it."""
    import torchao.quantization as kinds
    from transformers import TorchAoConfig

    def dense(module: Any) -> torch.Tensor | None:
        return module.weight.dequantize() if hasattr(getattr(module, "weight", None), "qdata") else None

    def make(config: Any, base: Path, folder: Path) -> Tensors:
        model = open_model(base, quantization_config=TorchAoConfig(config))
        model.save_pretrained(folder)
        return weights(model, dense)

    group, four = kinds.PerGroup(64), {"weight_dtype": torch.int4}
    activations = kinds.Int8DynamicActivationIntxWeightConfig
    for name, config in {
        "Int8WeightOnly": kinds.Int8WeightOnlyConfig(),
        "Int8WeightOnly, groups": kinds.Int8WeightOnlyConfig(granularity=group),
        "Int8DynamicActivationInt8Weight": kinds.Int8DynamicActivationInt8WeightConfig(),
        "IntxWeightOnly": kinds.IntxWeightOnlyConfig(granularity=group, **four),
        "Int8DynamicActivationIntxWeight": activations(weight_granularity=group, **four),
        "Float8WeightOnly": kinds.Float8WeightOnlyConfig(),
        "Float8WeightOnly, tensor": kinds.Float8WeightOnlyConfig(granularity=kinds.PerTensor()),
    }.items():
        yield name, partial(make, config)


def llmcompressor() -> Iterator[tuple[str, Make]]:
    """Yield the schemes of compressed-tensors."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    def dense(module: Any) -> torch.Tensor | None:
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            return None
        zeros, whole = (getattr(module, f"weight_{name}", None) for name in ("zero_point", "global_scale"))
        return fake_quantize(module.weight, module.weight_scale, zeros, scheme.weights, global_scale=whole)

    def make(scheme: str, base: Path, folder: Path) -> Tensors:
        model = open_model(base)
        rows = {"input_ids": TEXTS.tolist(), "attention_mask": torch.ones_like(TEXTS).tolist()}
        recipe = QuantizationModifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        oneshot(model=model, recipe=recipe, dataset=Dataset.from_dict(rows), num_calibration_samples=8)
        tensors = weights(model, dense)
        model.save_pretrained(folder, save_compressed=True)
        return tensors

    for scheme in PRESET_SCHEMES:
        yield scheme, partial(make, scheme)


def gptqmodel() -> Iterator[tuple[str, Make]]:
    """Yield GPTQ in all its forms, AWQ, and fp8."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import FP8Config

    def dense(module: Any) -> torch.Tensor | None:
        if hasattr(module, "dequantize_weight"):
            return module.dequantize_weight().T
        if hasattr(module, "qweight"):
            return module(torch.eye(module.in_features, dtype=module.scales.dtype)).T
        return None

    def make(config: Any, base: Path, folder: Path) -> Tensors:
        model = GPTQModel.load(str(base), config(), device="cpu")
        model.quantize([{"input_ids": row, "attention_mask": [1] * 64} for row in TEXTS.tolist()])
        model.save(str(folder))
        return weights(GPTQModel.load(str(folder), device="cpu", backend=BACKEND.TORCH).model, dense)

    settings: dict[str, dict[str, Any]] = {f"gptq, {bits} bits": {"bits": bits} for bits in (2, 3, 4, 8)}
    settings |= {f"gptq_p, {bits} bits": {"bits": bits, "format": "gptq_p"} for bits in (3, 5, 6, 7)}
    settings |= {
        "gptq, desc_act": {"bits": 4, "desc_act": True},
        "gptq, not symmetric": {"bits": 4, "sym": False},
        "gptq_v2": {"bits": 4, "sym": False, "format": "gptq_v2"},
        "awq": {"bits": 4, "quant_method": "awq", "format": "gemm"},
    }
    for name, each in settings.items():
        yield name, partial(make, partial(QuantizeConfig, group_size=32, **each))
    for method, block in (("row", None), ("tensor", None), ("block", [128, 128])):
        fp8 = partial(FP8Config, weight_scale_method=method, weight_block_size=block)
        yield f"fp8, {method}", partial(make, fp8)


def auto_round() -> Iterator[tuple[str, Make]]:
    """Yield its packings, rounded to the nearest."""
    from auto_round import AutoRound
    from transformers import AutoTokenizer

    def make(packing: str, scheme: str, symmetric: bool, base: Path, folder: Path) -> Tensors:
        options = {"iters": 0, "disable_opt_rtn": True, "device_map": "cpu", "group_size": 32}
        tokenizer = AutoTokenizer.from_pretrained(base)
        rounder = AutoRound(open_model(base), tokenizer, scheme=scheme, sym=symmetric, **options)
        tensors = weights(rounder.quantize()[0], lambda _: None)
        rounder.save_quantized(str(folder), format=packing)
        return tensors

    for packing, scheme, symmetric in (
        ("auto_gptq", "W4A16", True), ("auto_round", "W4A16", True), ("auto_round", "W2A16", True),
        ("auto_round", "W3A16", True), ("auto_round", "W8A16", True), ("auto_awq", "W4A16", False),
        ("llm_compressor", "W4A16", True), ("auto_round", "MXFP4", True),
    ):  # fmt: skip
        yield f"{packing}, {scheme}", partial(make, packing, scheme, symmetric)


def modelopt() -> Iterator[tuple[str, Make]]:
    """Yield the configs that work without a card; its export gives layers that are fused one scale."""
    import modelopt.torch.quantization as quantization
    from modelopt.torch.export import export_hf_checkpoint

    def dense(module: Any) -> torch.Tensor | None:
        return module.weight_quantizer(module.weight) if hasattr(module, "weight_quantizer") else None

    def make(config: str, base: Path, folder: Path) -> Tensors:
        model = open_model(base, dtype=torch.bfloat16)
        model = quantization.quantize(model, getattr(quantization, config), lambda each: each(TEXTS))
        tensors = weights(model, dense)
        export_hf_checkpoint(model, export_dir=str(folder))
        return {name: tensor for name, tensor in tensors.items() if "quantizer" not in name}

    for config in ("FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG", "INT8_DEFAULT_CFG", "INT4_AWQ_CFG"):
        yield config.removesuffix("_CFG"), partial(make, config)


LIBRARIES = {
    "bitsandbytes": bitsandbytes, "torchao": torchao, "llmcompressor": llmcompressor, "gptqmodel": gptqmodel,
    "auto-round": auto_round, "nvidia-modelopt": modelopt,
}  # fmt: skip


def compare(base: Path, folder: Path, make: Make) -> str:
    """Return how far the logarithms of probabilities here are from those of the library's numbers."""
    try:
        tensors = make(base, folder)
    except Exception as error:  # what libraries raise where they want a card
        return f"not made: {' '.join(str(error).split())[:100]}"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, folder / name)
    dense = shutil.copytree(base, folder / "dense")
    save_file(tensors, dense / "model.safetensors")
    (wanted,), (exact,) = (transformers_logprobs(each, None, [PROMPT]) for each in (dense, base))
    off = []
    for device in (Device(1), open_device(1)):
        try:
            driver = make_driver(folder, device, dtype="float32")
        except ConfigError as error:
            return f"refused: {error}"
        off.append((whole(driver, [*PROMPT, 0], len(PROMPT)) - wanted[-1:]).abs().max())
    change = (exact[-1:] - wanted[-1:]).abs().max()
    return f"off by {off[0]:.1e}, on a CPU by {off[1]:.1e}; quantization changes {change:.1e}"


def main() -> None:
    """Try the libraries that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("libraries", nargs="*", choices=[*LIBRARIES, []], help="default: all")
    for library in parser.parse_args().libraries or LIBRARIES:
        print(f"{library} {version(library)}", flush=True)
        with tempfile.TemporaryDirectory() as place:
            base = make_llama(Path(place) / "base", **SIZES)
            for number, (name, make) in enumerate(LIBRARIES[library]()):
                print(f"  {name}: {compare(base, Path(place) / str(number), make)}", flush=True)


if __name__ == "__main__":
    main()
