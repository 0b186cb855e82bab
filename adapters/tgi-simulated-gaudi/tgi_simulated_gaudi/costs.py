"""Time of an operation by the roofline: matrix engine, memory on the card (HBM), memory on the die (SRAM).

Reads and writes of tensors that outlive the graph go through HBM, as do results too large for the SRAM; other
intermediate results stay on the die.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .operations import FP8, INDEXING, Operation
from .profile import Profile

Tensors = Sequence[torch.Tensor]


def seconds(
    profile: Profile,
    info: Operation,
    arguments: Tensors,
    results: Tensors,
    on_die: Callable[[torch.Tensor], bool],
) -> float:
    """Return the seconds of an operation on plain tensors; `on_die` says which are intermediate results."""
    card = profile.generation
    peak = card.fp8_flops if arguments and arguments[0].dtype in FP8 else card.bf16_flops
    hbm = sram = 0
    for tensor, size in _traffic(info, arguments, results):
        if size <= card.sram_bytes and on_die(tensor):
            sram += size
        else:
            hbm += size
    flops = matmul_flops(info.name, arguments, results)
    traffic = (hbm / card.hbm_rate + sram / card.sram_rate) * passes(info.name, results)
    return max(flops / peak, traffic) / profile.efficiency


def passes(name: str, results: Tensors) -> int:
    """Return how often an operation goes over its arguments.

    A sort is a `topk` of everything; of the k best, a bitonic network has a stage for each pair of bits of k.
    """
    if name not in ("sort", "topk", "argsort") or not results:
        return 1
    bits = max(results[0].shape[-1] - 1, 1).bit_length()
    return bits * (bits + 1) // 2


def matmul_flops(name: str, arguments: Tensors, results: Tensors) -> int:
    """Return the number of floating-point operations on the matrix engine."""
    if name in ("mm", "bmm", "matmul"):
        return 2 * results[0].numel() * arguments[0].shape[-1]
    if name in ("addmm", "baddbmm", "addmm_", "baddbmm_"):
        return 2 * results[0].numel() * arguments[1].shape[-1]
    if name == "fp8_gemm_v2":
        return 2 * results[0].numel() * math.prod(arguments[0].shape) // max(1, _rows(results[0]))
    if name == "sdpa":
        query, key = arguments[0], arguments[1]
        return 4 * query.numel() * key.shape[-2]
    return 0


def collective_seconds(profile: Profile, size: int, ranks: int, gathers: bool) -> float:
    """Return the seconds of an all-reduce of `size` bytes, or an all-gather of `size` bytes per rank."""
    share = (ranks - 1) / ranks
    moved = size * (ranks - 1) if gathers else 2 * size * share
    return 20e-6 + moved / profile.generation.link_rate / profile.efficiency


def _rows(tensor: torch.Tensor) -> int:
    return math.prod(tensor.shape[:-1])


def _traffic(info: Operation, arguments: Tensors, results: Tensors) -> list[tuple[torch.Tensor, int]]:
    """Return the tensors that are read or written, with the bytes; a lookup reads only its results."""
    read: list[tuple[torch.Tensor, int]] = [(t, _bytes(t)) for t in arguments]
    if info.name in INDEXING and arguments:
        moved = sum(size for _, size in read[1:]) if info.mutates else sum(_bytes(t) for t in results)
        read[0] = (arguments[0], moved)
        return read if info.mutates else [*read, *((t, _bytes(t)) for t in results)]
    return [*read, *((t, _bytes(t)) for t in results)]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def tensors(values: Any) -> list[torch.Tensor]:
    """Return the tensors among arguments or results, also in lists."""
    leaves: list[torch.Tensor] = []
    for value in values if isinstance(values, (list, tuple)) else [values]:
        if isinstance(value, torch.Tensor):
            leaves.append(value)
        elif isinstance(value, (list, tuple)):
            leaves += tensors(value)
    return leaves
