"""Loss of the demo model on words that it has not seen, with its layers in each format of weights.

    apt-get install wordnet-base
    PYTHONPATH=.:demo python benchmarks/format_loss.py             # all formats
    PYTHONPATH=.:demo python benchmarks/format_loss.py GGUF NVFP4  # those whose names have a word
    PYTHONPATH=.:demo python benchmarks/format_loss.py GGUF --ggml llama.cpp/build/bin/libggml-base.so

Weights are rounded to the nearest, as `--quantize` does and as a GPTQ or AWQ without calibration would, and
inputs as the format's definition in plain torch rounds them. `demo/train.py` held the words out. llama.cpp's
Python library makes neither its K types nor IQ4, which need its library in C.
"""

import argparse
import ctypes
import functools
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dictionary
import gguf
import torch
from dictionary import BOS, exchange, read_glossary, read_wordnet
from torch import nn
from train import encode, mean_loss
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.weights.quantized import KeepingDevice, read
from tests.weights.test_bitsandbytes import EIGHT, FOUR, eight_bits, four_bits
from tests.weights.test_compressed_tensors import FP8_KINDS, config, integers
from tests.weights.test_micro_floats import KINDS as MICRO_KINDS
from tests.weights.test_packed_formats import AWQ, awq, gptq, gptq_config
from tests.weights.test_torchao import KINDS as TORCHAO_KINDS
from tgi.config import ROUNDINGS
from tgi.device.base import Device
from tgi.plugins import JsonReader
from tgi.weights import TensorPart
from tgi.weights.formats import LinearWeight, Rounding, read_format
from tgi.weights.formats.gguf import TYPES

DEMO = Path(__file__).parents[1] / "tgi/demo"
Make = Callable[[torch.Tensor], LinearWeight]


class KeepingAll(KeepingDevice):
    """Multiplies everything as it is stored."""

    keeps = KeepingDevice.keeps | {"fp8"}


class Stored(nn.Module):
    """A linear layer whose weight is in a format."""

    def __init__(self, device: Device, weight: LinearWeight) -> None:
        super().__init__()
        self.device, self.weight = device, device.prepare_linear(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.device.multiply(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


def checkpoint(device: Device, quantize: Callable[[torch.Tensor], Any], settings: dict[str, Any]) -> Make:
    """Return a function that stores a weight as a checkpoint has it, and reads it."""

    def make(matrix: torch.Tensor) -> LinearWeight:
        with tempfile.TemporaryDirectory() as folder:
            tensors, _ = quantize(matrix)
            part = TensorPart("x.weight", list(matrix.shape))
            weight: LinearWeight = read(Path(folder), tensors, settings, device, part)
            return weight

    return make


def formats(device: Device, ggml: Path | None) -> Iterator[tuple[str, Make, Make | None]]:
    """Yield each format's name, and the functions that make the weights of layers and of the head."""
    for name in ROUNDINGS:
        rounding = read_format(JsonReader({}), name)
        assert isinstance(rounding, Rounding)
        head = rounding.head
        yield f"`--quantize {name}`", rounding.round, head.round if isinstance(head, Rounding) else None
    for bits in (2, 3, 4, 8):
        for group in (32, 128):
            quantize = functools.partial(gptq, bits=bits, group=group)
            make = checkpoint(device, quantize, gptq_config(bits, group))
            yield f"GPTQ, {bits} bits, groups of {group}", make, None
    settings = AWQ | {"group_size": 128}
    make = checkpoint(device, functools.partial(awq, group=128), settings)
    yield "AWQ, 4 bits, groups of 128", make, None
    settings = config("int-quantized", num_bits=8, strategy="channel")
    make = checkpoint(device, functools.partial(integers, settings=settings), settings)
    yield "compressed-tensors, W8A8, integers", make, None
    for name, (settings, quantize) in FP8_KINDS.items():
        yield f"fp8, {name}", checkpoint(device, quantize, settings), None
    for name in ("NVFP4", "MXFP4", "MXFP8"):
        settings, quantize = MICRO_KINDS[name]
        yield name, checkpoint(device, quantize, settings), None
    for name in ("int8", "int8, groups", "int4, zeros", "fp8"):
        settings, quantize = TORCHAO_KINDS[name]
        yield f"torchao, {name}", checkpoint(device, quantize, settings), None
    yield "bitsandbytes, 8 bits", checkpoint(device, eight_bits, EIGHT), None
    for name in ("nf4", "fp4"):
        for nested in (False, True):
            quantize = functools.partial(four_bits, nested=nested, kind=name)
            make = checkpoint(device, quantize, FOUR | {"bnb_4bit_quant_type": name})
            yield f"bitsandbytes, {name}{', nested' * nested}", make, None
    for name in TYPES if ggml else ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "MXFP4"):
        make = functools.partial(llama_cpp, ggml, name)
        yield f"GGUF, {name}", make, make


def llama_cpp(ggml: Path | None, name: str, matrix: torch.Tensor) -> LinearWeight:
    """Round a weight as llama.cpp does, by its library in C or by the one in Python."""
    kind, type_ = TYPES[name], gguf.GGMLQuantizationType[name]
    if ggml is None:
        return kind.weight(torch.from_numpy(gguf.quants.quantize(matrix.numpy(), type_)))
    blocks = torch.empty(len(matrix), matrix.shape[1] // kind.features * kind.bytes, dtype=torch.uint8)
    quantize = ctypes.CDLL(str(ggml)).ggml_quantize_chunk
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    matrix = matrix.contiguous()
    quantize(type_, matrix.data_ptr(), blocks.data_ptr(), 0, *matrix.shape, None)
    return kind.weight(blocks)


def held_out(wordnet: Path, count: int) -> list[tuple[str, str]]:
    """Return questions about words that the model was not trained on, and their answers."""
    rng = random.Random(1)
    entries = list(read_wordnet(wordnet))
    synsets = sorted({entry.synset for entry in entries})
    held = set(rng.sample(synsets, len(synsets) // 50))
    known = [entry for entry in entries if entry.synset not in held]
    known += read_glossary(Path(dictionary.__file__).with_name("glossary.tsv"))
    words = {entry.word.lower() for entry in known}
    unknown = [entry for entry in entries if entry.synset in held and entry.word.lower() not in words]
    return [exchange(entry, rng) for entry in rng.sample(unknown, count)]


def loss(
    device: Device, samples: list[tuple[list[int], int]], make: Make | None = None, head: Make | None = None
) -> float:
    """Return the mean loss of the answers' tokens."""
    model = LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    for name, layer in list(model.named_modules()):
        rounded = head if name == "lm_head" else make
        if isinstance(layer, nn.Linear) and rounded is not None:
            model.set_submodule(name, Stored(device, rounded(layer.weight.detach())))
    return mean_loss(model, samples)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[""], help="words of formats' names; default: all")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"))
    parser.add_argument("--ggml", type=Path, help="libggml-base.so of llama.cpp")
    parser.add_argument("--words", type=int, default=400)
    args = parser.parse_args()
    device = KeepingAll(1)
    asked = [(BOS + text, "\n" + said) for text, said in held_out(args.wordnet, args.words)]
    samples = encode(PreTrainedTokenizerFast.from_pretrained(DEMO), asked)
    dense = loss(device, samples)
    print("| format | loss | more than dense |\n| --- | --- | --- |")
    print(f"| dense | {dense:.4f} | |", flush=True)
    chosen = (each for each in formats(device, args.ggml) if any(word in each[0] for word in args.names))
    for name, make, head in chosen:
        value = loss(device, samples, make, head)
        print(f"| {name} | {value:.4f} | {value / dense - 1:.2%} |", flush=True)


if __name__ == "__main__":
    main()
