"""Turns a file of llama.cpp into a checkpoint whose linear layers keep its blocks, tensor by tensor.

transformers knows the config, the tokenizer and the names of tensors; what it leaves out of a file's RoPE is
read here. Models that no adapter knows, and those with experts, become dense, all at once.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from tgi.model_files import INDEX
from tgi.plugins import architectures, load_plugins

from .formats.gguf import TYPES

_SHARD = 1 << 30
"""Bytes of tensors that are in memory, and in each file."""
_LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Settings that all models with Llama 3's RoPE have in common, and a file does not tell."""


def write_checkpoint(file: Path, target: Path) -> None:
    """Write config.json, tokenizer and tensors. Raises all kinds of errors."""
    place: dict[str, Any] = {"gguf_file": file.name}
    AutoTokenizer.from_pretrained(file.parent, **place).save_pretrained(target)
    reader, config = GGUFReader(file), AutoConfig.from_pretrained(file.parent, **place)
    config.rope_parameters = rope_parameters(reader, config)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    known, experts = type(model).__name__ in architectures(load_plugins()), _has_experts(reader)
    if known and not experts:
        if types := _write_tensors(reader, model, target):
            config.quantization_config = {"quant_method": "gguf", "types": types}
    else:
        dense = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
        model = AutoModelForCausalLM.from_pretrained(file.parent, config=config, **place, **dense)
        model.hf_quantizer = None  # else it refuses to be written
        model.save_pretrained(target)
    config.architectures = [type(model).__name__]
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    described = target / "config.json"
    settings = json.loads(described.read_bytes())
    settings.pop("_model_name_or_path", None)  # any name that the file gives itself
    described.write_text(json.dumps(settings, indent=2))


def rope_parameters(reader: Any, config: Any) -> Any:
    """Return the config's RoPE with the scaling that a file tells. Raises ValueError for an unknown one."""
    tensors = {
        tensor.name: dequantize(tensor.data, tensor.tensor_type)
        for tensor in reader.tensors
        if "rope_f" in tensor.name
    }
    architecture = reader.get_field("general.architecture").contents()

    def field(name: str) -> Any:
        found = reader.get_field(f"{architecture}.rope.scaling.{name}")
        return None if found is None else found.contents()

    original = field("original_context_length")
    changes: dict[str, Any] = {}
    if (factors := tensors.get("rope_freqs.weight")) is not None:
        changes = {"rope_type": "llama3", "factor": float(round(factors.max())), **_LLAMA_3}
        expected = _llama_3(len(factors), config.rope_parameters["rope_theta"], changes)
        if not np.allclose(factors, expected, rtol=1e-4):
            raise ValueError("its RoPE has other factors (rope_freqs.weight) than Llama 3's")
    elif "rope_factors_long.weight" in tensors:
        raise ValueError("its RoPE is LongRoPE, which is not read: serve the model that it was made of")
    elif (kind := field("type")) not in (None, "none"):
        changes = {"rope_type": kind, "factor": field("factor")}
        if original is not None:
            changes["original_max_position_embeddings"] = original
    given = config.rope_parameters
    if "full_attention" in given:
        return {**given, "full_attention": {**given["full_attention"], **changes}}
    return {**given, **changes}


def _llama_3(count: int, theta: float, settings: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return by what Llama 3 divides each frequency."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    lengths = 2 * math.pi * theta ** (np.arange(count) / count)
    smooth = (settings["original_max_position_embeddings"] / lengths - low) / (high - low)
    smooth = smooth.clip(0, 1)
    result: np.ndarray[Any, Any] = 1 / ((1 - smooth) / settings["factor"] + smooth)
    return result


def _has_experts(reader: Any) -> bool:
    return any(len(tensor.shape) > 2 for tensor in reader.tensors)


def _write_tensors(reader: Any, model: Any, target: Path) -> list[str]:
    """Write the tensors, and return the types of the blocks among them, most bytes first."""
    shard: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    bytes_of: dict[str, int] = {}

    def write() -> None:
        name = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, target / name, {"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in _tensors(reader, model):
        kind = name.rpartition(".")[2]
        if kind in TYPES:
            bytes_of[kind] = bytes_of.get(kind, 0) + tensor.nbytes
        shard[name] = tensor
        if sum(each.nbytes for each in shard.values()) > _SHARD:
            write()
    write()
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2))
    return sorted(bytes_of, key=bytes_of.__getitem__, reverse=True)


def _tensors(reader: Any, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and numbers of a checkpoint: blocks of linear layers, and what else the model has."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    architecture = reader.get_field("general.architecture").contents()
    kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
    processor = kind(model.config.to_dict())
    names, embedding = get_gguf_hf_weights_map(model, processor), model.get_input_embeddings()
    linear = {
        name for name, each in model.named_modules() if isinstance(each, nn.Linear) or each is embedding
    }
    for tensor in reader.tensors:
        if tensor.name not in names:
            continue
        name = names[tensor.name]
        module = name.removesuffix(".weight")
        if module in linear and tensor.tensor_type.name in TYPES:
            rows = _order(processor, tensor)
            if rows is not None:
                yield f"{module}.{tensor.tensor_type.name}", torch.from_numpy(np.array(tensor.data[rows]))
                continue
        numbers = processor.process(dequantize(tensor.data, tensor.tensor_type), tensor.name).weights
        dtype = torch.float32 if numbers.ndim == 1 else torch.bfloat16
        yield name, torch.from_numpy(np.array(numbers)).to(dtype)


def _order(processor: Any, tensor: Any) -> Any:
    """Return the file's rows in the order that transformers has; None if it changes more than that.

    Its function is asked with the numbers of rows in place of weights.
    """
    columns, count = (int(size) for size in tensor.shape)
    rows = np.broadcast_to(np.arange(count)[:, None], (count, columns))
    given = processor.process(rows, tensor.name).weights
    if given is rows:
        return slice(None)
    whole = given.shape == rows.shape and (given == given[:, :1]).all()
    return given[:, 0] if whole and set(given[:, 0]) == set(range(count)) else None
