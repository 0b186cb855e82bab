"""Checks of each operation, before and after it runs, and at every replay."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .card import Card
from .operations import ALLOWED, DYNAMIC, FORBIDDEN_DTYPES, INDEXING, RANDOM, WRAPPING, Operation, names
from .recording import storage_of

Guard = tuple[Callable[..., None], tuple[Any, ...]]
_ARITHMETIC = names(
    """
    add add_ sub sub_ rsub mul mul_ neg neg_ sum cumsum cumsum_ prod pow pow_ bitwise_left_shift
    bitwise_left_shift_ __lshift__ scatter_add scatter_add_ index_add index_add_ addcmul addcmul_
    arange full fill_ scalar_tensor full_like new_full floor_divide
    """
)
"""Operations that can make an integer that does not fit into 32 bits."""


def check_kernel(card: Card, info: Operation, args: Sequence[Any]) -> None:
    """Check that the card has a kernel for these plain arguments (S3, S14, S15, S24)."""
    ledger, in_graph = card.ledger, card.recorder is not None
    if info.name in DYNAMIC or _by_mask(info, args):
        ledger.counters["dynamic_shapes"] += 1
        if in_graph:
            ledger.violate("S3", info.label, "the shape of the result depends on data")
        return
    if info.name in RANDOM:
        ledger.counters["random"] += 1
        if in_graph:
            ledger.violate("S24", info.label, "random numbers are drawn while a graph is captured")
    dtypes = ALLOWED.get(info.name)
    problem = None
    if dtypes is None:
        rule, problem = "S15", "the operation has no kernel"
    else:
        dtype = _deciding_dtype(info, args)
        if dtype is not None and dtype not in dtypes:
            rule, problem = "S14", f"the operation has no kernel for {dtype}"
    if problem is not None:
        ledger.counters["cpu_fallback"] += 1
        ledger.counters[f"cpu_fallback {info.label}"] += 1
        if in_graph:
            ledger.violate(rule, info.label, problem)


def check_new(card: Card, tensor: torch.Tensor, label: str) -> None:
    """Check a new tensor on the card (S12, S13)."""
    if tensor.dtype in FORBIDDEN_DTYPES:
        card.ledger.violate("S12", label, f"a tensor of {tensor.dtype} is made")
    elif tensor.layout != torch.strided:
        card.ledger.violate("S12", label, f"a tensor of {tensor.layout} is made")
    elif tensor.dtype == torch.float8_e5m2:
        card.ledger.violate("S13", label, "e5m2 is not supported")
    elif tensor.dtype == torch.float16:
        card.ledger.counters["float16"] += 1


def check_from_host(card: Card, tensor: torch.Tensor, label: str) -> None:
    """Check a tensor that comes from the host (S11, S13)."""
    if tensor.dtype == torch.int64:
        if card.profile.strict_int64:
            card.ledger.violate("S11", label, "an int64 tensor is sent to the device")
        check_int32(card, tensor, label)
    elif tensor.dtype == torch.float8_e4m3fn and tensor.numel():
        limit, largest = card.profile.generation.fp8_limit, float(tensor.float().abs().max())
        if not largest <= limit:
            card.ledger.violate(
                "S13", label, f"an fp8 tensor holds the magnitude {largest}, and at most {limit} is possible"
            )


def check_int32(card: Card, tensor: torch.Tensor, label: str) -> None:
    """Check that the values of an int64 tensor fit into 32 bits; else wrap them as the device does (S11)."""
    if not tensor.numel():
        return
    low, high = (int(value) for value in torch.aminmax(tensor))
    if low < -(2**31) or high >= 2**31:
        card.ledger.counters["int64_truncations"] += 1
        card.ledger.violate("S11", label, f"the values {low} to {high} do not fit into 32 bits")
        tensor.copy_(tensor.int())


def check_positive(card: Card, indices: torch.Tensor, label: str) -> None:
    """Check that no index is negative (S16); the operation itself refuses one that is too great."""
    if indices.numel() and int(indices.min()) < 0:
        card.ledger.violate("S16", label, f"the index {int(indices.min())} is negative")


def guards_before(card: Card, info: Operation, args: Sequence[Any]) -> list[Guard]:
    """Return the checks for each time before an operation runs."""
    if info.name not in INDEXING:
        return []
    indices = args[INDEXING[info.name]]
    guards: list[Guard] = []
    for tensor in indices if isinstance(indices, (list, tuple)) else [indices]:
        if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.bool:
            if info.name in WRAPPING:
                guards.append((check_positive, (card, tensor, info.label)))
            kv = card.guards.get("kv")
            if kv is not None and kv.watches(storage_of(args[0])):
                guards.append((kv.check, (info, args, tensor)))
    return guards


def guards_after(card: Card, info: Operation, results: Sequence[torch.Tensor]) -> list[Guard]:
    """Return the checks for each time after an operation ran."""
    if info.name not in _ARITHMETIC:
        return []
    return [(check_int32, (card, result, info.label)) for result in results if result.dtype == torch.int64]


def _by_mask(info: Operation, args: Sequence[Any]) -> bool:
    if info.label == "aten.repeat_interleave.Tensor":
        return True
    if info.name not in ("index", "index_put", "index_put_"):
        return False
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1])


def _deciding_dtype(info: Operation, args: Sequence[Any]) -> torch.dtype | None:
    for value in args[1:] if info.name == "where" else args:
        first = value[0] if isinstance(value, (list, tuple)) and value else value
        if isinstance(first, torch.Tensor):
            return first.dtype
    return None
