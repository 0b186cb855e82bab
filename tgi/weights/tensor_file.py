"""A *.safetensors file: its header, and copies of parts of its tensors.

The file is mapped once, and the pages that have been copied are given back to the system piece by piece: a
process never holds more than a piece beside the copy. The format: the length of the header in 8 bytes,
little-endian; the header, a JSON object; the numbers.
"""

import json
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

DTYPES: dict[str, torch.dtype | None] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": getattr(torch, "float8_e8m0fnu", None),  # torch 2.6 does not have it
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER = 100 << 20
"""Maximum bytes of a header, the limit of the safetensors library itself."""
PIECE = 32 << 20
"""Bytes of the file that are copied at once."""
NAMED = 5
"""Maximum number of tensors that a message names."""
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
"""A file may be larger than the memory."""


class FileError(Exception):
    """The file is broken; the message is one line without its name."""


@attrs.frozen(eq=False)
class TensorFile:
    """An open file."""

    path: Path
    mapped: mmap.mmap
    tensors: "dict[str, StoredTensor]"


@attrs.frozen
class StoredTensor:
    """A tensor in a file."""

    dtype: torch.dtype | None
    """Dtype of the numbers; None: one that torch does not have."""
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte in the file."""
    bytes: int
    """Size in the file."""


def open_file(path: Path) -> TensorFile:
    """Read the header and map the rest. Raises FileError and OSError."""
    with path.open("rb") as file:
        total = path.stat().st_size
        start = file.read(8)
        if start == b"version ":
            raise FileError("it is a pointer of Git LFS, in place of which `git lfs pull` puts the file")
        size = int.from_bytes(start, "little")
        if total < 8 or not 0 < size <= min(MAX_HEADER, total - 8):
            raise FileError("its header is cut off")
        header = _header(file.read(size))
        mapped = mmap.mmap(
            file.fileno(), 0, flags=mmap.MAP_PRIVATE | _NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
    tensors = {
        name: _stored(name, entry, size + 8) for name, entry in header.items() if name != "__metadata__"
    }
    lost = [name for name, tensor in tensors.items() if tensor.begin + tensor.bytes > total]
    if lost:
        raise FileError(f"it ends within or before {list_names(lost)}")
    return TensorFile(path, mapped, tensors)


def copy(file: TensorFile, name: str, out: torch.Tensor, dim: int = 0, first: int = 0) -> None:
    """Copy a part of a tensor to `out`, in the dtype and on the device of that.

    The part begins at index `first` of dimension `dim`, in which it has the length of `out`; all other
    dimensions are whole.
    """
    source = view(file, name)
    if not out.numel():
        return
    if not out.dim():
        out.copy_(source)
        return
    if dim:
        source, first = source.narrow(dim, first, out.shape[dim]), 0
    stored = file.tensors[name]
    row = stored.bytes // stored.shape[0]
    count = max(1, PIECE // max(1, row))
    for begin in range(0, len(out), count):
        piece = out[begin : begin + count]
        piece.copy_(source[first + begin : first + begin + len(piece)])
        release(file, stored.begin + (first + begin) * row, len(piece) * row)


def view(file: TensorFile, name: str) -> torch.Tensor:
    """Return the tensor in the mapped file. Raises FileError for a dtype that torch does not have."""
    stored = file.tensors[name]
    if stored.dtype is None:
        raise FileError("its dtype is not known")
    count = math.prod(stored.shape)
    if not count:
        return torch.empty(stored.shape, dtype=stored.dtype)
    flat = torch.frombuffer(file.mapped, dtype=stored.dtype, count=count, offset=stored.begin)
    return flat.view(stored.shape)


def release(file: TensorFile, begin: int, size: int) -> None:
    """Let the system take back the memory of these bytes; it reads them again when they are needed."""
    start = begin - begin % mmap.PAGESIZE
    file.mapped.madvise(mmap.MADV_DONTNEED, start, begin + size - start)


def list_names(names: Sequence[str]) -> str:
    """Return the first names, quoted, and the number of the others."""
    more = len(names) - NAMED
    return ", ".join(map(repr, names[:NAMED])) + (f" and {more} more" if more > 0 else "")


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError as error:
        raise FileError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise FileError("its header is no object")
    return header


def _stored(name: str, entry: Any, start: int) -> StoredTensor:
    try:
        dtype, shape = DTYPES.get(entry["dtype"]), tuple(map(int, entry["shape"]))
        begin, end = map(int, entry["data_offsets"])
    except (TypeError, KeyError, ValueError) as error:
        raise FileError(f"its header says nothing that makes sense of {name!r}") from error
    size = end - begin
    wrong = dtype is not None and size != math.prod(shape) * dtype.itemsize
    if begin < 0 or size < 0 or min(shape, default=0) < 0 or wrong:
        raise FileError(f"its header contradicts itself about {name!r}")
    return StoredTensor(dtype, shape, start + begin, size)
