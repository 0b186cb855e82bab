"""Kernels for CPUs: linear layers, paged attention, norms and gates of torch tensors.

A row's result depends on that row's inputs alone, bit for bit: not on the number of rows, on how a prompt is
divided into chunks, or on the number of threads. The tests define each function in plain torch.

    kernels = load()            # raises Unavailable if the library is not built for this processor
    packed = kernels.pack(weight)
    y = kernels.linear(x, packed, out_features, bias, residual)
"""

import ctypes
import os
from pathlib import Path

from .build import digest, library, supported
from .interface import BLOCK, MAX_HEAD_SIZE, MAX_QUANTIZED_FEATURES, UNIT
from .kernels import Kernels
from .packed_ints import PackedInts

__all__ = [
    "BLOCK",
    "MAX_HEAD_SIZE",
    "MAX_QUANTIZED_FEATURES",
    "UNIT",
    "Kernels",
    "PackedInts",
    "Unavailable",
    "load",
    "open_library",
]


class Unavailable(Exception):
    """The kernels cannot be used here; the message says why and what to do."""


def load(name: str | None = None) -> Kernels:
    """Return the kernels for the best instruction set of this processor that is built, or for `name`.

    Without a name, that in the variable TGI_CPU_KERNELS counts. A library is tried first: if it fails, the
    next one is taken, and `Kernels.remark` says so. The kernels run in the calling thread until
    `Kernels.use_threads` is called. Raises Unavailable.
    """
    name = name or os.environ.get("TGI_CPU_KERNELS")
    names = [name] if name else supported()
    built = [candidate for candidate in names if library(candidate).exists()]
    if not built:
        build = "python -m tgi_cpu_kernels.build" + (" --all" if name else "")
        raise Unavailable(f"tgi-cpu-kernels is not built{f' for {name}' if name else ''}: run `{build}`")
    failures: list[str] = []
    for candidate in built:
        try:
            return open_library(library(candidate), candidate, "; ".join(failures))
        except Unavailable as error:
            failures.append(str(error))
    raise Unavailable("; ".join(failures))


def open_library(path: Path, name: str, remark: str = "") -> Kernels:
    """Return the kernels of a file that was built for an instruction set. Raises Unavailable."""
    try:
        functions = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"{path} cannot be loaded: {error}") from error
    if digest() and _sources(functions) != digest():
        raise Unavailable(f"{path} is not built from these sources: run `python -m tgi_cpu_kernels.build`")
    kernels = Kernels(functions, name, remark)
    if reason := functions.tgi_check():
        raise Unavailable(f"the kernels for {name} are not used: {reason.decode()}")
    return kernels


def _sources(functions: ctypes.CDLL) -> bytes:
    """Return the digest of the sources that a library was built from; b"" if it has none."""
    try:
        return (ctypes.c_char * 17).in_dll(functions, "tgi_sources").value
    except ValueError:
        return b""
