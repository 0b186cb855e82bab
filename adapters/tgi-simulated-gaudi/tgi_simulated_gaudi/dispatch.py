"""Receives every operation on a device tensor: checks it, runs it on the plain tensors, accounts and records
it."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from . import costs
from .card import Allocation, Card
from .checks import check_from_host, check_kernel, check_new, guards_after, guards_before
from .operations import FP8, Operation, operation
from .recording import refuse_index, size_of
from .tensor import HpuTensor, wrap

_cards: list[Card] = []
_CPU = torch.device("cpu")
_RESHAPING = frozenset({"t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_", "resize_", "set_"})
_ALIASES = frozenset({"detach", "alias", "lift", "lift_fresh"})
"""Operations that return their argument in another Python object."""
FUSED: dict[str, Operation] = {}
"""Operations of the bridge's own by name, which kernels.py puts here."""
FOREIGN: dict[str, Callable[..., Any]] = {}
"""Functions that run the operations of other namespaces, which collectives.py puts here."""


def _name(op: Any) -> str:
    """Return the name of an operation of the bridge's own, with its overload."""
    overload = op._overloadname
    return str(op._opname if overload == "default" else f"{op._opname}.{overload}")


def active() -> Card:
    """Return the card that operations run on."""
    if not _cards:
        raise RuntimeError("there is no simulated card: call tgi_simulated_gaudi.install() first")
    return _cards[-1]


def use_card(card: Card | None) -> None:
    """Let operations run on a card, or on none."""
    _cards.clear()
    if card is not None:
        _cards.append(card)


def run(op: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation that has an argument or its result on the device."""
    card = active()
    if card.forked:
        card.ledger.violate("S26", str(op), "the device is used in a child of the process that opened it")
    if op.namespace in FOREIGN:
        return FOREIGN[op.namespace](card, op, args, kwargs)
    info = operation(op) if op.namespace != "hpu" else FUSED[_name(op)]
    if info.name == "one_hot":
        card.ledger.violate("S17", info.label, "native one_hot is called")
    if info.composite:
        result = op.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
    special = _SPECIAL.get(info.name)
    if special is not None:
        return special(card, info, args, kwargs)
    return execute(card, info, args, kwargs)


def execute(card: Card, info: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operation that has all of its tensors on the device."""
    used: list[HpuTensor] = []
    plain_args = [unwrap(card, info, value, used) for value in args]
    plain_kwargs = {name: unwrap(card, info, value, used) for name, value in kwargs.items()}
    if "device" in plain_kwargs:
        plain_kwargs["device"] = _CPU
    if info.view:
        return _wrap_views(card, info, used[0], info.call(*plain_args, **plain_kwargs))
    if info.name in _RESHAPING:
        raise NotImplementedError(f"{info.label}: the simulated device does not change shapes in place")
    if info.name in card.profile.refused:
        raise RuntimeError(f"{info.label}: Graph compile failed. synStatus 26 [Generic failure].")
    check_kernel(card, info, plain_args)
    result = _guarded(card, info, plain_args, plain_kwargs, used)
    if info.mutates:
        targets = [args[i] if i < len(args) else kwargs[name] for i, name in info.mutates]
        return targets[0] if len(targets) == 1 else tuple(targets)
    leaves = costs.tensors(result)
    wrapped = [new_tensor(card, info.label, leaf) for leaf in leaves]
    if isinstance(result, torch.Tensor):
        return wrapped[0]
    rest = iter(wrapped)
    return type(result)(next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in result)


def _guarded(
    card: Card, info: Operation, args: list[Any], kwargs: dict[str, Any], used: Sequence[HpuTensor]
) -> Any:
    """Run an operation with the checks before and after it, now and at replays."""
    recorder = card.recorder
    targets = [args[i] if i < len(args) else kwargs[name] for i, name in info.mutates]
    changed = [tensor for tensor in used if any(tensor.plain is target for target in targets)]
    before = guards_before(card, info, args)
    for check, values in before:
        check(*values)
        if recorder is not None:
            recorder.append((check, values, {}, info.label), costs.tensors(values))
    if recorder is not None:
        recorder.use(used)
        for tensor in changed:
            recorder.change(info, tensor)
    else:
        for tensor in used:
            card.streams.reads(tensor.allocation, info.label)
        for tensor in changed:
            card.streams.writes(tensor.allocation, info.label)
            if tensor.is_view:
                card.change_view(tensor.allocation, info.label)
    try:
        result = info.call(*args, **kwargs)
    except (IndexError, RuntimeError) as error:
        refuse_index(card, info.label, error)
    leaves = [] if info.mutates else costs.tensors(result)
    key = describe(info.label, args, kwargs)
    after = guards_after(card, info, leaves or targets)
    if recorder is not None:
        if not info.name.startswith(("empty", "new_empty")):
            _check_elements(card, info, [*costs.tensors(args), *leaves])
        recorder.add(info, args, kwargs, leaves, key)
        for check, values in after:
            recorder.append((check, values, {}, info.label), costs.tensors(values))
    else:
        _account(card, info, args, leaves or targets, key)
    for check, values in after:
        check(*values)
    return result


def _check_elements(card: Card, info: Operation, tensors: Sequence[torch.Tensor]) -> None:
    """Check that an operation in a graph has no tensor without elements (S31)."""
    empty = next((tensor for tensor in tensors if not tensor.numel()), None)
    if empty is not None:
        shape = tuple(empty.shape)
        card.ledger.violate("S31", info.label, f"a tensor of shape {shape} has no elements")


def _account(
    card: Card,
    info: Operation,
    args: Sequence[Any],
    results: Sequence[torch.Tensor],
    key: Hashable,
) -> None:
    """Charge an operation outside of graphs."""
    if not info.name.startswith(("empty", "new_empty")):
        card.ran(key, info.label)
    card.clock.spend(
        "compute", costs.seconds(card.profile, info, costs.tensors(args), results, lambda _: False)
    )


def new_tensor(card: Card, label: str, plain: torch.Tensor) -> HpuTensor:
    """Put a result on the device: in memory of its own, or as an intermediate result of the capture."""
    check_new(card, plain, label)
    recorder = card.recorder
    if recorder is None:
        allocation = card.allocate(size_of(plain), label)
        card.streams.writes(allocation, label)
        return wrap(plain, allocation)
    made = wrap(plain, Allocation(None, 0), recorder.lease)
    recorder.made(made)
    return made


def unwrap(card: Card, info: Operation, value: Any, used: list[HpuTensor]) -> Any:
    """Return the plain tensors of device tensors, also in lists, and add these to `used`."""
    if isinstance(value, HpuTensor):
        usable(card, value, info.label)
        used.append(value)
        return value.plain
    if isinstance(value, torch.Tensor):
        if value.dim() > 0:
            card.ledger.violate("S6", info.label, f"an argument of shape {tuple(value.shape)} is on the CPU")
        return value
    if isinstance(value, (list, tuple)):
        return [unwrap(card, info, item, used) for item in value]
    return value


def usable(card: Card, tensor: HpuTensor, label: str) -> None:
    """Check that a tensor may still be used (S8, S9, S10)."""
    lease = tensor.lease
    if lease is not None and lease.rule:
        card.ledger.violate(lease.rule, label, lease.reason)


def describe(label: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Hashable:
    """Return the key of a recipe: operation, shapes, dtypes, contiguity, and the values of scalars."""
    return (label, *map(_describe, args), *((name, _describe(value)) for name, value in kwargs.items()))


def reading(tensor: HpuTensor, label: str, rule: str) -> None:
    """Check and charge a read of a value by Python."""
    card = active()
    usable(card, tensor, label)
    if card.recorder is not None:
        card.ledger.violate(rule, label, "a value is read on the host while a graph is captured")
    card.host_sync(label)
    card.ledger.counters["d2h"] += 1
    card.streams.reads(tensor.allocation, label)
    card.streams.current.synchronize()


def _describe(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), str(value.dtype), value.is_contiguous())
    if isinstance(value, (list, tuple)):
        return tuple(map(_describe, value))
    return value if isinstance(value, (int, float, bool)) else str(value)


def _wrap_views(card: Card, info: Operation, base: HpuTensor, result: Any) -> Any:
    views = costs.tensors(result)
    if card.recorder is not None:
        if views[0].dtype != base.dtype:
            detail = f"the bits of {base.dtype} are read as {views[0].dtype}"
            card.ledger.violate("S29", info.label, detail)
        card.recorder.see_view(base.plain, views)
    is_view = base.is_view or info.name not in _ALIASES
    wrapped = [wrap(view, base.allocation, base.lease, is_view) for view in views]
    if card.recorder is not None:
        for view in wrapped:
            card.recorder.made(view)
    return wrapped[0] if isinstance(result, torch.Tensor) else type(result)(wrapped)


# ---- what crosses the border to the host, or is read there --------------------------------------------


def _scalar(card: Card, info: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    reading(args[0], info.label, "S4")
    return args[0].plain.item()


def _equal(card: Card, info: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:  # noqa: ARG001
    one, other = args
    reading(one if isinstance(one, HpuTensor) else other, info.label, "S4")
    return torch.equal(unwrap(card, info, one, []), unwrap(card, info, other, []))


def _copy(card: Card, info: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    target, source = args[0], args[1]
    later = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    if not isinstance(target, HpuTensor):
        return download(card, info, source, target, later)
    if not isinstance(source, HpuTensor):
        upload(card, info, target, source, later)
        return target
    if target.dtype in FP8 and source.dtype not in FP8:
        source = source.to(target.dtype)
    return execute(card, info, (target, source), {})


def _to_copy(card: Card, info: Operation, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    source, device, dtype = args[0], kwargs.get("device"), kwargs.get("dtype")
    later = bool(kwargs.get("non_blocking", False))
    if not isinstance(source, HpuTensor):
        moved = source.detach().to(dtype).clone() if dtype is not None else source.detach().clone()
        target = _place(card, info, moved)
        upload(card, info, target, source, later)
        return target
    if device is not None and torch.device(device).type == "cpu":
        usable(card, source, info.label)
        return download(card, info, source, torch.empty_like(source.plain, dtype=dtype), later)
    if dtype == torch.float8_e5m2:
        card.ledger.violate("S13", info.label, "e5m2 is not supported")
    if dtype in FP8:
        return execute(card, FUSED["cast_saturating"], (source, card.profile.generation.fp8_limit), {})
    kwargs = {name: value for name, value in kwargs.items() if name not in ("non_blocking", "pin_memory")}
    return execute(card, info, args, kwargs)


def _place(card: Card, info: Operation, plain: torch.Tensor) -> HpuTensor:
    """Return the target of a copy from the host; within a graph it is a constant."""
    recorder, card.recorder = card.recorder, None
    try:
        return new_tensor(card, info.label, plain)
    finally:
        card.recorder = recorder


def upload(card: Card, info: Operation, target: HpuTensor, source: torch.Tensor, later: bool) -> None:
    """Copy from the host, perhaps asynchronously (`later`)."""
    usable(card, target, info.label)
    if card.recorder is not None and source.dim() > 0:
        card.ledger.violate("S6", info.label, "a tensor is copied from the host while a graph is captured")
    if card.recorder is None and target.is_view:
        card.change_view(target.allocation, info.label)
    check_from_host(card, source, info.label)
    card.streams.uses_host(source, info.label, to_host=False)
    target.plain.copy_(source)
    size = target.numel() * target.element_size()
    if card.lazy and card.recorder is None and size < size_of(target.plain):
        card.defer_insert(describe(info.label, (target.plain,), {}), size, info.label)
    sent = source.numel() * source.element_size()
    card.ledger.counters["h2d"] += 1
    card.ledger.counters["h2d_bytes"] += sent
    card.clock.spend("h2d", 10e-6 + sent / card.profile.generation.host_rate)
    card.streams.writes(target.allocation, info.label)
    if later:
        before = source.detach().clone()
        card.streams.arrive(source, False, lambda: _unchanged(card, info, source, before))


def _unchanged(card: Card, info: Operation, source: torch.Tensor, before: torch.Tensor) -> None:
    if not torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (source, before))):
        card.ledger.violate(
            "S27", info.label, "a buffer on the host was changed while its copy was unfinished"
        )


def download(
    card: Card, info: Operation, source: HpuTensor, target: torch.Tensor, later: bool
) -> torch.Tensor:
    """Copy to the host, perhaps asynchronously (`later`)."""
    usable(card, source, info.label)
    if card.recorder is not None:
        card.ledger.violate("S4", info.label, "a tensor is copied to the host while a graph is captured")
    card.cut()
    size = source.numel() * source.element_size()
    card.ledger.counters["d2h"] += 1
    card.clock.spend("d2h", 10e-6 + size / card.profile.generation.host_rate)
    card.streams.reads(source.allocation, info.label, copy=later)
    card.streams.uses_host(target, info.label, to_host=True)
    if not later:
        card.host_sync(info.label)
        card.streams.current.synchronize()
        return target.copy_(source.plain)
    snapshot = source.plain.clone()
    _rubbish(target)
    card.streams.arrive(target, True, lambda: _deliver(target, snapshot))
    return target


def _rubbish(target: torch.Tensor) -> None:
    if target.is_floating_point():
        target.fill_(torch.nan)
    else:
        target.fill_(1 if target.dtype == torch.bool else torch.iinfo(target.dtype).max - 1)


def _deliver(target: torch.Tensor, snapshot: torch.Tensor) -> None:
    with torch.inference_mode():
        target.copy_(snapshot)


_SPECIAL: dict[str, Callable[..., Any]] = {
    "_local_scalar_dense": _scalar,
    "equal": _equal,
    "copy_": _copy,
    "_to_copy": _to_copy,
}
HpuTensor.dispatch = staticmethod(run)
HpuTensor.reading = staticmethod(reading)
