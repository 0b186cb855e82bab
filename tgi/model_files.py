"""Tells which files of a model's folder hold its weights. Imports no torch."""

import fnmatch
import json
from pathlib import Path

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
FOREIGN = (
    "adapter_*",
    "*lora*",
    "consolidated*",
    "optimizer*",
    "scheduler*",
    "sampler*",
    "scaler*",
    "random_states*",
    "training_args*",
    "ggml-*",
)
"""Patterns of names of files that lie beside a model and are not it: adapters, other formats, training."""


class FilesError(Exception):
    """The weight files are missing or contradict each other; the message is one line that names one."""


def weight_files(folder: Path) -> dict[Path, frozenset[str] | None]:
    """Return the model's *.safetensors, each with the names of its tensors; None: all that it has.

    As transformers does, model.safetensors goes before an index, which may be left over from another model,
    unless it is one of the index's own files. Raises FilesError.
    """
    index = folder / INDEX
    whole = folder / WHOLE
    if index.exists():
        try:
            places = _read_index(index)
        except FilesError:
            if not whole.exists():
                raise
            places = {}
        if not whole.exists() or WHOLE in places:
            for name in places:
                if not (folder / name).exists():
                    raise FilesError(f"{folder / name} is missing; {index.name} names it")
            return {folder / name: frozenset(places[name]) for name in sorted(places)}
    if whole.exists():
        return {whole: None}
    files = own_files(folder, ".safetensors")
    if not files:
        raise FilesError(f"{folder} has no *.safetensors file")
    return dict.fromkeys(files)


def own_files(folder: Path, suffix: str) -> list[Path]:
    """Return the files with that suffix that may be the model's."""
    paths = sorted(folder.glob(f"*{suffix}"))
    return [path for path in paths if not is_foreign(path.name)]


def is_foreign(name: str) -> bool:
    """Whether a file of that name is not a model's."""
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in FOREIGN)


def has_weights(folder: Path) -> bool:
    """Whether the folder has files, all those that its index names."""
    try:
        return bool(weight_files(folder))
    except FilesError:
        return False


def _read_index(index: Path) -> dict[str, list[str]]:
    """Return the tensors of each file of an index. Raises FilesError."""
    places: dict[str, list[str]] = {}
    try:
        for tensor, name in json.loads(index.read_bytes())["weight_map"].items():
            if not isinstance(name, str):
                raise TypeError(name)
            places.setdefault(name, []).append(tensor)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise FilesError(f"{index} is not an index of safetensors files: {error!r}") from error
    return places
