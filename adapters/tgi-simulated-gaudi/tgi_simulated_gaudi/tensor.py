"""A tensor whose device is hpu:0 and whose data is a plain CPU tensor, and what it may be used for how
long."""

from typing import Any, ClassVar

import torch

from .card import Allocation


class Lease:
    """How long tensors of a graph may be used; ended, it names the rule that forbids them."""

    __slots__ = ("reason", "rule")

    def __init__(self) -> None:
        self.rule = self.reason = ""

    def end(self, rule: str, reason: str) -> None:
        """From now on whoever uses the tensors breaks the rule."""
        self.rule, self.reason = rule, reason


class HpuTensor(torch.Tensor):
    """Made by `wrap`; operations on it arrive in dispatch.py."""

    plain: torch.Tensor
    allocation: Allocation
    lease: Lease | None
    dispatch: ClassVar[Any]
    """dispatch.run, put here by it."""
    reading: ClassVar[Any]
    """dispatch.reading: called before a value is shown to Python."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return HpuTensor.dispatch(op, args, kwargs or {})

    def __bool__(self) -> bool:
        HpuTensor.reading(self, "bool(tensor)", "S5")
        return bool(self.plain)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        HpuTensor.reading(self, "repr(tensor)", "S4")
        return f"{self.plain!r:.2000} on hpu:0"

    def __format__(self, spec: str) -> str:
        HpuTensor.reading(self, "format(tensor)", "S4")
        return format(self.plain, spec)

    def tolist(self) -> Any:
        """As of any tensor; a read on the host."""
        HpuTensor.reading(self, "tolist", "S4")
        return self.plain.tolist()

    def numpy(self, **_: Any) -> Any:
        """Refused, as by the bridge."""
        raise TypeError("can't convert hpu:0 device type tensor to numpy. Use Tensor.cpu() first")


def wrap(plain: torch.Tensor, allocation: Allocation, lease: Lease | None = None) -> HpuTensor:
    """On the device, with that data; no copy."""
    made: HpuTensor = torch.Tensor._make_wrapper_subclass(
        HpuTensor,
        plain.shape,
        strides=plain.stride(),
        storage_offset=plain.storage_offset(),
        dtype=plain.dtype,
        device="hpu:0",  # type: ignore[arg-type]
    )
    made.plain, made.allocation, made.lease = plain, allocation, lease
    return made
