"""The tensors of a checkpoint folder by name, over any number of *.safetensors files.

Only what a rank needs is read from disk. What nobody has read in the end is reported, for a tensor that no
layer asked for means that the model is not the one that the checkpoint was made for.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open

_HARMLESS = (".rotary_emb.inv_freq",)
"""Ends of names of buffers that old checkpoints carry and that everybody computes anew."""


class CheckpointError(Exception):
    """The checkpoint is broken or not of this model; the message is one line that names the file."""


@attrs.frozen
class _Stored:
    file: Path
    shape: tuple[int, ...]
    bytes: int


class Checkpoint:
    """The tensors of one folder.

    `on_read(done, total)` is called after each tensor with the bytes of the checkpoint dealt with so far; a
    tensor counts whole, whatever part of it was read. Raises CheckpointError for a folder without weights or
    with a broken file.
    """

    def __init__(
        self, folder: Path, on_read: Callable[[int, int], None] = lambda _done, _total: None
    ) -> None:
        self._folder = folder
        self._on_read = on_read
        self._stored: dict[str, _Stored] = {}
        for file in _files(folder):
            self._scan(file)
        self.total_bytes = sum(stored.bytes for stored in self._stored.values())
        self._unread = dict.fromkeys(name for name in self._stored if not name.endswith(_HARMLESS))
        self._done_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    @property
    def unread(self) -> list[str]:
        """Names that nobody has read or dismissed, in the order of the files."""
        return list(self._unread)

    def read(self, name: str, shape: Sequence[int], dim: int = 0, part: slice | None = None) -> torch.Tensor:
        """The tensor, in the dtype that it is stored in; with `part` only that of the dimension `dim`.

        `shape` is that of the whole tensor. Raises CheckpointError where it is missing, of another shape,
        or unreadable.
        """
        stored = self._stored.get(name)
        if stored is None:
            raise CheckpointError(f"{self._folder} has no tensor {name!r}, which this model needs")
        if stored.shape != tuple(shape):
            found, wanted = list(stored.shape), list(shape)
            raise CheckpointError(f"{stored.file}: {name!r} has shape {found}, config.json says {wanted}")
        index = [slice(None)] * len(stored.shape)
        try:
            if part is not None:
                index[dim] = part
            with safe_open(stored.file, "pt") as file:
                tensor: torch.Tensor = file.get_slice(name)[tuple(index)]
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{stored.file}: {name!r} cannot be read: {error}") from error
        if name in self._unread:
            self.dismiss(name)
        return tensor

    def dismiss(self, name: str) -> None:
        """Say that a tensor is known and not needed, so that it does not count as unread."""
        if name in self._unread:
            del self._unread[name]
            self._done_bytes += self._stored[name].bytes
            self._on_read(self._done_bytes, self.total_bytes)

    def _scan(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    view = file.get_slice(name)
                    shape = tuple(view.get_shape())
                    self._stored[name] = _Stored(path, shape, _size(shape, view.get_dtype()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error


def _files(folder: Path) -> list[Path]:
    """The files that the index names, or without an index all of them."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise CheckpointError(f"{folder} has no *.safetensors file")
        return found
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}") from error
    files = [folder / name for name in names]
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} is missing; {index.name} names it")
    return files


def _size(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor; a safetensors dtype ends in its bits ("BF16", "F8_E4M3", "BOOL")."""
    digits = dtype.split("_")[0].lstrip("BFIUC")
    count = 1
    for length in shape:
        count *= length
    return count * int(digits) // 8 if digits.isdigit() else count
