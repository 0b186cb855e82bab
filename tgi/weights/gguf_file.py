"""Turns a file of llama.cpp into a checkpoint whose linear layers keep its blocks, tensor by tensor.

transformers knows the config, the tokenizer and the names of tensors; what it leaves out of a file's RoPE is
read here, and for models with experts in `gguf_experts`. Models that no adapter knows become dense, all at
once.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedTokenizerFast,
)

from tgi.model_files import INDEX
from tgi.plugins import architectures, load_plugins

from .formats.gguf import TYPES
from .gguf_experts import Family, find_family, layer_tensors, read_config, stored, tensor_names
from .gguf_model import GgufModel, rope_parameters

_SHARD = 1 << 30
"""Bytes of tensors that are in memory, and in each file."""


def write_checkpoint(file: Path, target: Path) -> None:
    """Write config.json, tokenizer and tensors. Raises all kinds of errors."""
    place: dict[str, Any] = {"gguf_file": file.name}
    given = GgufModel(GGUFReader(file))
    family = find_family(given)
    if family is None:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, **place)
        config = AutoConfig.from_pretrained(file.parent, **place)
        config.rope_parameters = rope_parameters(given, config.rope_parameters)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(file.parent, **place)
        config = read_config(given, family)
    tokenizer.save_pretrained(target)
    config.dtype = torch.bfloat16
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    known = type(model).__name__ in architectures(load_plugins())
    if known and (family is not None or not given["expert_count"]):
        if types := _write_tensors(given, family, model, target):
            config.quantization_config = {"quant_method": "gguf", "types": types}
    else:
        model = _make_dense(file, config)
        model.save_pretrained(target)
    config.architectures = [type(model).__name__]
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    described = target / "config.json"
    settings = json.loads(described.read_bytes())
    settings.pop("_model_name_or_path", None)  # any name that the file gives itself
    described.write_text(json.dumps(settings, indent=2))


def _make_dense(file: Path, config: Any) -> Any:
    """Return transformers' model in bfloat16. Raises ValueError if it does not find all numbers."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        file.parent,
        config=config,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        output_loading_info=True,
    )
    model, found = loaded
    if lacking := sorted(found["missing_keys"]):
        raise ValueError(
            f"transformers finds no numbers in it for {lacking[0]!r} of a {type(model).__name__}"
        )
    model.hf_quantizer = None  # else it refuses to be written
    return model


def _write_tensors(given: GgufModel, family: Family | None, model: Any, target: Path) -> list[str]:
    """Write the tensors, and return the types of the blocks among them, most bytes first."""
    shard: dict[str, torch.Tensor] = {}
    places: dict[str, str] = {}
    bytes_of: dict[str, int] = {}

    def write() -> None:
        name = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, target / name, {"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, tensor in _tensors(given, family, model):
        kind = name.rpartition(".")[2]
        if kind in TYPES:
            bytes_of[kind] = bytes_of.get(kind, 0) + tensor.nbytes
        shard[name] = tensor
        if sum(each.nbytes for each in shard.values()) > _SHARD:
            write()
    write()
    (target / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}, indent=2))
    return sorted(bytes_of, key=bytes_of.__getitem__, reverse=True)


def _tensors(given: GgufModel, family: Family | None, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and numbers of a checkpoint: blocks of linear layers, and what else the model has."""
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    kind: Any = TENSOR_PROCESSORS.get(given.architecture, TensorProcessor)
    processor, embedding = kind(model.config.to_dict()), model.get_input_embeddings()
    if family is None:
        names = get_gguf_hf_weights_map(model, processor)
    else:
        names = tensor_names(given, model.state_dict(), family)
        for layer in range(given["block_count"]):
            yield from layer_tensors(given, family, layer)
    linear = {
        name for name, each in model.named_modules() if isinstance(each, nn.Linear) or each is embedding
    }
    for tensor in given.tensors.values():
        if tensor.name not in names or len(tensor.shape) > 2:
            continue
        name = names[tensor.name]
        module = name.removesuffix(".weight")
        if module in linear and tensor.tensor_type.name in TYPES:
            rows = _order(processor, tensor)
            if rows is not None:
                end, blocks = stored(tensor.data[rows], tensor.tensor_type)
                yield f"{module}.{end}", blocks
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
