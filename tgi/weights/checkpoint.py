"""The tensors of a checkpoint folder by name, over any number of *.safetensors files.

Only what a rank needs is read from disk. What nobody has read in the end is reported, for a tensor that no
layer asked for means that the model is not the one that the checkpoint was made for.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .tensor_file import FileError, TensorFile, copy, open_file, some_of

_HARMLESS = (".rotary_emb.inv_freq",)
"""Ends of names of buffers that old checkpoints carry and that everybody computes anew."""


class CheckpointError(Exception):
    """The checkpoint is broken or not of this model; the message is one line that names the file."""


class Checkpoint:
    """The tensors of one folder, whose files stay open.

    `on_read(done, total)` is called after each tensor with the bytes of the checkpoint dealt with so far; a
    tensor counts whole, whatever part of it was read. Raises CheckpointError for a folder without weights or
    with a broken file.
    """

    def __init__(
        self, folder: Path, on_read: Callable[[int, int], None] = lambda _done, _total: None
    ) -> None:
        self.folder = folder
        self._on_read = on_read
        self._files: dict[str, TensorFile] = {}
        for path in _paths(folder):
            try:
                file = open_file(path)
            except (FileError, OSError) as error:
                raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
            self._files.update(dict.fromkeys(file.tensors, file))
        self.total_bytes = sum(file.tensors[name].bytes for name, file in self._files.items())
        self._unread = dict.fromkeys(name for name in self._files if not name.endswith(_HARMLESS))
        self._done_bytes = 0

    @staticmethod
    def is_complete(folder: Path) -> bool:
        """Whether the folder has files, all those that its index names."""
        try:
            return bool(_paths(folder))
        except CheckpointError:
            return False

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def unread(self) -> list[str]:
        """Names that nobody has read or dismissed, in the order of the files."""
        return list(self._unread)

    def read(
        self,
        name: str,
        shape: Sequence[int],
        dim: int = 0,
        part: slice | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The tensor, in the dtype that it is stored in; with `part` only that of the dimension `dim`.

        `shape` is that of the whole tensor. With `out` it is written there, whatever the dtype and the device
        of that are. Raises CheckpointError where it is missing, of another shape, or unreadable.
        """
        fault = self.fault(name, shape)
        if fault is not None:
            raise CheckpointError(fault)
        file, lengths = self._files[name], list(shape)
        some = range(shape[dim])[part] if part is not None else range(0)
        if part is not None:
            lengths[dim] = len(some)
        try:
            if out is None:
                out = torch.empty(lengths, dtype=file.tensors[name].dtype)
            copy(file, name, out, dim, some.start)
        except FileError as error:
            raise CheckpointError(f"{file.path}: {name!r} cannot be read: {error}") from error
        self.dismiss(name)
        return out

    def dismiss(self, name: str) -> None:
        """Say that a tensor is known and not needed, so that it does not count as unread."""
        if name in self._unread:
            del self._unread[name]
            self._done_bytes += self._files[name].tensors[name].bytes
            self._on_read(self._done_bytes, self.total_bytes)

    def fault(self, name: str, shape: Sequence[int]) -> str | None:
        """Why a tensor of that shape cannot be read; None: it can."""
        if name not in self._files:
            return self.missing([name])
        file = self._files[name]
        found, wanted = list(file.tensors[name].shape), list(shape)
        if found != wanted:
            return f"{file.path}: {name!r} has shape {found}, config.json says {wanted}"
        return None

    def missing(self, names: Sequence[str]) -> str:
        """What to say of tensors that there are not."""
        return f"{self.folder} has no tensor {some_of(names)}, which this model needs"

    def superfluous(self, names: Sequence[str]) -> str:
        """What to say of tensors that nobody reads."""
        return f"{self.folder} has tensors that no layer of this model reads: {some_of(names)}"


def _paths(folder: Path) -> list[Path]:
    """The files that the index names, or without an index all of them."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            raise CheckpointError(f"{folder} has no *.safetensors file")
        return found
    try:
        files = sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of safetensors files: {error!r}") from error
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{file} is missing; {index.name} names it")
    return files
