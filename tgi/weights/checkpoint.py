"""The tensors of a checkpoint folder by name, over any number of *.safetensors files.

Only the rank's part is read from disk. Tensors that no layer has asked for are reported in the end: within a
layer that the model has they mean that the checkpoint was made for another model.
"""

import re
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path

import torch

from tgi.model_files import FilesError, has_weights, weight_files

from .tensor_file import FileError, TensorFile, copy, list_names, open_file, view

_HARMLESS = re.compile(
    r"\.(inv_freq|cos_cached|sin_cached|masked_bias|(attn|attention)\.bias|output_scale"
    r"|self_attn\.(k_proj\.|v_proj\.)?(q|k|v|kv|prob_output)_scale)$"
)
"""Names of buffers in old checkpoints that models compute themselves, and of scales for values that are kept
in 8 bits elsewhere."""
_PLAIN = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_LAYER = re.compile(r".*?\.\d+\.")
"""Beginning of the names of a layer's tensors."""


class CheckpointError(Exception):
    """The checkpoint is broken or of another model; the message is one line that names the file."""


class Checkpoint:
    """The tensors of one folder, whose files stay open.

    After each tensor `on_read(done, total)` gets the bytes of the checkpoint dealt with so far; a tensor of
    which a part was read counts whole. Raises CheckpointError for a folder without weights or with a broken
    file.
    """

    def __init__(
        self, folder: Path, on_read: Callable[[int, int], None] = lambda _done, _total: None
    ) -> None:
        self.folder = folder
        self._on_read = on_read
        self._files: dict[str, TensorFile] = {}
        try:
            paths = weight_files(folder)
        except FilesError as error:
            raise CheckpointError(str(error)) from error
        files = {path: _open(path) for path in paths}
        owners = {name: files[path] for path, indexed in paths.items() for name in indexed or ()}
        for path, file in files.items():
            # An index decides which of several files has a tensor; it need not name each.
            owned = ((name, owners.get(name, file)) for name in file.tensors)
            names = [name for name, owner in owned if owner is file or name not in owner.tensors]
            if twice := [name for name in names if name in self._files]:
                other = self._files[twice[0]].path.name
                raise CheckpointError(
                    f"{path} and {other} both have {list_names(twice)}, and no index decides"
                )
            self._files.update(dict.fromkeys(names, file))
        self.total_bytes = sum(file.tensors[name].bytes for name, file in self._files.items())
        self._unread = dict.fromkeys(name for name in self._files if not _HARMLESS.search(name))
        self._done_bytes = 0

    @staticmethod
    def is_complete(folder: Path) -> bool:
        """Whether the folder has files, all those that its index names."""
        return has_weights(folder)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def unread(self) -> list[str]:
        """Names of the tensors that have been neither read nor dismissed, in the order of the files."""
        return list(self._unread)

    def read(
        self,
        name: str,
        shape: Sequence[int],
        dim: int = 0,
        part: slice | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return a tensor in the dtype it is stored in, or only the indices `part` of the dimension `dim`.

        `shape` is that of the whole tensor. `out` receives the numbers in its own dtype and on its device.
        Raises CheckpointError for a tensor that is missing, has another shape, or cannot be read.
        """
        fault = self.fault(name, shape)
        if fault is not None:
            raise CheckpointError(fault)
        file, lengths = self._files[name], list(shape)
        indices = range(shape[dim])[part] if part is not None else range(0)
        if part is not None:
            lengths[dim] = len(indices)
        try:
            if out is None:
                out = torch.empty(lengths, dtype=file.tensors[name].dtype)
            copy(file, name, out, dim, indices.start)
        except FileError as error:
            raise CheckpointError(f"{file.path}: {name!r} cannot be read: {error}") from error
        self.dismiss(name)
        return out

    def dismiss(self, name: str) -> None:
        """Take a tensor out of the unread ones: the model knows it and does not need it."""
        if name in self._unread:
            del self._unread[name]
            self._done_bytes += self._files[name].tensors[name].bytes
            self._on_read(self._done_bytes, self.total_bytes)

    @cached_property
    def _modules(self) -> dict[str, list[str]]:
        """Names of tensors by those of their modules."""
        modules: dict[str, list[str]] = {}
        for name in self._files:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
        return modules

    def skip(self, module: str) -> list[str]:
        """Dismiss the tensors of a module that other ranks read, and return their names."""
        names = self._modules.get(module, [])
        for name in names:
            self.dismiss(name)
        return names

    def equal(self, name: str, other: str) -> bool:
        """Return whether two tensors are the same numbers in the same dtype."""
        a, b = (self._files[each].tensors[each] for each in (name, other))
        if a.dtype is None or (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        mine, theirs = (view(self._files[each], each).view(torch.uint8) for each in (name, other))
        return torch.equal(mine, theirs)

    def is_zero(self, name: str) -> bool:
        """Return whether all numbers of a tensor are 0."""
        return not view(self._files[name], name).any()

    def is_plain(self, name: str) -> bool:
        """Return whether a tensor, if it is there, has numbers of 16 bits or more."""
        return name not in self._files or self._files[name].tensors[name].dtype in _PLAIN

    def bytes_of(self, name: str) -> bytes:
        """Return the bytes of a tensor of any shape."""
        return view(self._files[name], name).view(torch.uint8).numpy().tobytes()

    def strange(self, asked: Collection[str] | None = None) -> list[str]:
        """Return the unread tensors that belong to a module or a layer of which the model reads others.

        They would change the numbers. `asked` are the names that the model reads; None: those that were.
        """
        unread = [name for name in self._unread if asked is None or name not in asked]
        known = self._files.keys() - unread if asked is None else asked
        modules = {name.rpartition(".")[0] for name in known}
        layers = {layer[0] for name in known if (layer := _LAYER.match(name))}
        return [
            name
            for name in unread
            if name.rpartition(".")[0] in modules or ((layer := _LAYER.match(name)) and layer[0] in layers)
        ]

    def fault(self, name: str, shape: Sequence[int]) -> str | None:
        """Return the reason why a tensor of that shape cannot be read; None: it can."""
        if name not in self._files:
            return self.missing([name])
        file = self._files[name]
        stored, expected = list(file.tensors[name].shape), list(shape)
        if stored != expected:
            return f"{file.path}: {name!r} has shape {stored}, config.json says {expected}"
        return None

    def missing(self, names: Sequence[str]) -> str:
        """Return the message about tensors that the checkpoint lacks."""
        return f"{self.folder} has no tensor {list_names(names)}, which this model needs"

    def superfluous(self, names: Sequence[str]) -> str:
        """Return the message about tensors that no layer reads."""
        return f"{self.folder} has tensors that no layer of this model reads: {list_names(names)}"


def _open(path: Path) -> TensorFile:
    try:
        return open_file(path)
    except (FileError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
