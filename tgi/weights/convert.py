"""Makes what a checkpoint lacks: *.safetensors of *.bin, tokenizer.json of a slow tokenizer; all, of GGUF.

Takes the memory of a whole file; `tgi.hub` runs it in a child process. Pickles are read in torch's restricted
mode: no code of a checkpoint is run.
"""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from tgi.model_files import INDEX, own_files


class ConversionError(Exception):
    """A file cannot be made; the message is one line that names it and gives the reason."""


def convert(folder: Path, target: Path) -> None:
    """Make the files that `target` lacks from those of `folder`. Raises ConversionError."""
    wanted = "tokenizer.json"
    try:
        if not (target / "tokenizer.json").is_file():
            convert_tokenizer(folder, target)
        wanted = "*.safetensors"
        if not list(target.glob("*.safetensors")):
            convert_weights(folder, target)
    except Exception as error:  # torch and transformers raise all kinds of errors for old checkpoints
        raise ConversionError(f"{wanted}: {_reason(error)}") from error


def convert_gguf(file: Path, target: Path) -> None:
    """Write a model and its tokenizer to `target`, from a file of llama.cpp. Raises ConversionError."""
    try:
        if re.search(r"-\d{5}-of-\d{5}$", file.stem):
            raise ValueError("it is a part of a model: join the parts with llama-gguf-split --merge")
        try:
            from .gguf_file import write_checkpoint
        except ImportError as error:
            raise ValueError("reading it needs more packages: pip install 'tgi-server[gguf]'") from error

        write_checkpoint(file, target)
    except Exception as error:  # transformers raises all kinds of errors for files of other programs
        raise ConversionError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return the message of an error in one line."""
    return " ".join(str(error).split()) or repr(error)


def convert_weights(folder: Path, target: Path) -> None:
    """Write one .safetensors file to `target` for each .bin file of `folder`, and their index."""
    files = [path for path in own_files(folder, ".bin") if path.match("pytorch_model*")]
    files = files or own_files(folder, ".bin")
    places: dict[str, str] = {}
    total = 0
    for number, path in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = _independent(_load(path))
        save_file(tensors, target / name, {"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
        (target / INDEX).write_text(index)


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a file of torch.save: a zip file, or, from before torch 1.6, a stream."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    content = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    if not isinstance(content, dict) or not all(isinstance(each, torch.Tensor) for each in content.values()):
        raise ValueError(f"{path.name} does not hold the tensors of a model")
    return content


def convert_tokenizer(folder: Path, target: Path) -> None:
    """Write tokenizer.json to `target`, converted by transformers, and names of BOS and EOS if missing."""
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ValueError("making it needs transformers: pip install 'tgi-server[transformers]'") from error

    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"a {type(tokenizer).__name__} has no fast form")
    backend.save(str(target / "tokenizer.json"))
    path = target / "tokenizer_config.json"
    settings = json.loads(path.read_bytes()) if path.is_file() else {}
    ends = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token") if name not in settings}
    if any(ends.values()):
        path.unlink(missing_ok=True)  # a link to the original
        path.write_text(json.dumps(settings | ends))


def _independent(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that share no memory: safetensors has no tied ones."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return apart
