"""Collectives of the simulated card: a backend "hccl" that is gloo with the bridge's restrictions."""

import functools
import hashlib
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from . import costs, dispatch
from .card import Card
from .operations import FLOAT
from .tensor import HpuTensor

_REDUCTIONS = (dist.ReduceOp.SUM, dist.ReduceOp.MIN, dist.ReduceOp.MAX)
_WATCHED = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor")
_originals = {name: getattr(dist, name) for name in _WATCHED}
_NAMES = {
    "allreduce_": "all_reduce",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather_into_tensor",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter_tensor",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all_single",
    "send": "send",
    "recv_": "recv",
}
"""Names of the collectives that the bridge has; it lacks scatter, and receiving from any rank."""
_BETWEEN_TWO = ("send", "recv")


def initialize_distributed_hpu() -> tuple[int, int, int]:
    """Return world size, rank and local rank, from the environment."""
    environ = os.environ
    rank = int(environ.get("RANK", "0"))
    return int(environ.get("WORLD_SIZE", "1")), rank, int(environ.get("LOCAL_RANK", str(rank)))


def register_backend() -> None:
    """Let `init_process_group("hccl")` find the backend; once per process."""
    if "HCCL" not in dir(dist.Backend):
        dist.Backend.register_backend("hccl", _gloo, devices=["hpu", "cpu"])


def watch() -> None:
    """Check the reductions of torch.distributed's functions: the operations that arrive here lack them."""
    for name, original in _originals.items():
        setattr(dist, name, functools.partial(_watched, name, original))


def unwatch() -> None:
    """Undo `watch`."""
    for name, original in _originals.items():
        setattr(dist, name, original)


def _watched(name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    arguments = inspect.signature(original).bind(*args, **kwargs).arguments
    reduction = arguments.get("op", dist.ReduceOp.SUM)
    tensors = [value for value in arguments.values() if isinstance(value, HpuTensor)]
    if tensors and reduction not in _REDUCTIONS:
        dispatch.active().ledger.violate("S20", name, f"the reduction is {reduction}")
    return original(*args, **kwargs)


def _gloo(store: Any, rank: int, size: int, timeout: Any) -> Any:
    return dist.ProcessGroupGloo(store, rank, size, timeout=timeout)


def run(card: Card, op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run a collective with tensors on the device."""
    del kwargs
    name = _NAMES.get(op._opname)
    if name is None:
        raise RuntimeError(f"hccl: {op._opname} is not supported")
    group = next(
        dist.ProcessGroup.unbox(a) for a in args if isinstance(a, torch.ScriptObject) and _is_group(a)
    )
    used: list[HpuTensor] = []
    plain = [_unwrap(card, value, used) for value in args]
    _check(card, name, used)
    issued = f"{name} {[(tuple(t.shape), str(t.dtype)) for t in used]}"
    card.collectives.update(issued.encode())
    card.ledger.counters["collectives"] += 1
    recorder = card.recorder
    if recorder is None:
        card.cut()
    size = sum(t.numel() * t.element_size() for t in used[-1:])
    if name in _BETWEEN_TWO:
        _check_pair(card, name, group, issued, plain)
        seconds = costs.collective_seconds(card.profile, size, 2, gathers=True)
    else:
        _agree(group, issued, card)
        seconds = costs.collective_seconds(card.profile, size, group.size(), "gather" in name)
    result = op(*plain)
    if name not in _BETWEEN_TWO:  # gloo's work of these is waited for once, by the caller
        _wait(result)
    if recorder is None:
        card.clock.spend("collective", seconds)
        for tensor in _written(name, used):
            if tensor.is_view:
                card.change_view(tensor.allocation, name)
    else:
        recorder.collectives.append(issued)
        recorder.seconds += seconds
        recorder.use(used)
        written = _written(name, used)
        recorder.write([tensor.plain for tensor in written])
        if name == "all_gather" and card.lazy:  # the bridge makes one tensor for the list
            recorder.kept += sum(tensor.numel() * tensor.element_size() for tensor in written)
        for tensor in used:
            if not recorder.on_die(tensor.plain):
                recorder.written[id(tensor.allocation)] = tensor.allocation
        recorder.append((_again, (op, plain), {}, name), [tensor.plain for tensor in used])
        card.guards["collectives"] = lambda sequence: _agree(group, sequence, card)
    return (args[0], result[-1]) if isinstance(result, tuple) else result


def _written(name: str, used: Sequence[HpuTensor]) -> Sequence[HpuTensor]:
    """Return the tensors that a collective overwrites: those before its input, which may be the same."""
    if name == "send":
        return []
    return used[:-1] if name.startswith("all_gather") else used[:1]


def _check(card: Card, name: str, used: Sequence[HpuTensor]) -> None:
    if card.recorder is not None and card.lazy and not card.profile.lazy_collectives:
        card.ledger.violate("S19", name, "a collective in a graph without PT_HPU_ENABLE_LAZY_COLLECTIVES")
    if "reduce" not in name:
        return
    for tensor in used:
        if tensor.dtype not in FLOAT:
            card.ledger.violate("S20", name, f"the tensor is of {tensor.dtype}")


def _agree(group: Any, issued: str, card: Card) -> None:
    """Check that all ranks of the group are about to issue the same collectives (S19)."""
    if group.size() == 1:
        return
    mine = torch.frombuffer(bytearray(hashlib.sha256(issued.encode()).digest()[:8]), dtype=torch.uint8)
    everyone = [[torch.empty_like(mine) for _ in range(group.size())]]
    group._get_backend(torch.device("cpu")).allgather(everyone, [mine]).wait()
    if any(not torch.equal(mine, other) for other in everyone[0]):
        card.ledger.violate(
            "S19", issued.split()[0], f"ranks issue different collectives; this rank: {issued}"
        )


def _check_pair(card: Card, name: str, group: Any, issued: str, plain: Sequence[Any]) -> None:
    """Check that what one rank sends has the shape and dtype that the other is about to receive (S19).

    Neither may be in a graph: whether HPU graphs may have them is not documented.
    """
    if card.recorder is not None:
        card.ledger.violate("S19", name, "sends and receives between two ranks in a graph")
    other, tag = plain[2], plain[3]
    gloo, described = group._get_backend(torch.device("cpu")), issued.partition(" ")[2].encode()
    mine = torch.frombuffer(bytearray(hashlib.sha256(described).digest()[:8]), dtype=torch.uint8)
    if name == "send":
        gloo.send([mine], other, tag).wait()
        return
    theirs = torch.empty_like(mine)
    gloo.recv([theirs], other, tag).wait()
    if not torch.equal(mine, theirs):
        card.ledger.violate("S19", name, f"another rank sends something else than {issued}")


def _again(op: Any, args: Sequence[Any]) -> None:
    _wait(op(*args))


def _wait(result: Any) -> None:
    work = result[-1] if isinstance(result, tuple) else result
    if isinstance(work, torch.ScriptObject):
        work = dist.Work.unbox(work)
    work.wait()


def _is_group(value: Any) -> bool:
    return "ProcessGroup" in str(value._type())


def _unwrap(card: Card, value: Any, used: list[HpuTensor]) -> Any:
    if isinstance(value, HpuTensor):
        dispatch.usable(card, value, "collective")
        used.append(value)
        return value.plain
    if isinstance(value, (list, tuple)):
        return [_unwrap(card, item, used) for item in value]
    return value


dispatch.FOREIGN["c10d"] = run
