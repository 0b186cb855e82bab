"""Makes what an old checkpoint lacks: *.safetensors of *.bin, tokenizer.json of a slow tokenizer.

Takes the memory of a whole file; `tgi.hub` runs it in a child process. Pickles are read in torch's restricted
mode: no code of a checkpoint is run.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

_INDEX = "model.safetensors.index.json"
_OTHER_PICKLES = ("training_args.bin", "optimizer.bin", "scheduler.bin")


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
    except Exception as error:  # whatever an old checkpoint makes torch or transformers raise
        reason = " ".join(str(error).split()) or repr(error)
        raise ConversionError(f"{wanted}: {reason}") from error


def convert_weights(folder: Path, target: Path) -> None:
    """Write one .safetensors file to `target` for each .bin file of `folder`, and their index."""
    files = sorted(path for path in folder.glob("*.bin") if path.name not in _OTHER_PICKLES)
    places: dict[str, str] = {}
    total = 0
    for number, path in enumerate(files, 1):
        name = "model.safetensors" if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        tensors = _independent(torch.load(path, map_location="cpu", mmap=True, weights_only=True))
        save_file(tensors, target / name, {"format": "pt"})
        places.update(dict.fromkeys(tensors, name))
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(files) > 1:
        index = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
        (target / _INDEX).write_text(index)


def convert_tokenizer(folder: Path, target: Path) -> None:
    """Write tokenizer.json to `target`, converted by transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"a {type(tokenizer).__name__} has no fast form")
    backend.save(str(target / "tokenizer.json"))


def _independent(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that share no memory: safetensors has no tied ones."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        shared = tensor.untyped_storage().data_ptr() in seen
        seen.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor.clone().contiguous() if shared else tensor.contiguous()
    return apart
