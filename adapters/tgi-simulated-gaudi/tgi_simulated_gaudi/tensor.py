"""Tensors whose device is hpu:0 and whose data is a plain CPU tensor."""

from typing import Any, ClassVar

import torch

from .card import Allocation


class Lease:
    """Permission to use tensors of a graph; once it has ended, it names the rule that forbids them."""

    __slots__ = ("reason", "rule")

    def __init__(self) -> None:
        self.rule = self.reason = ""

    def end(self, rule: str, reason: str) -> None:
        """Let every later use of the tensors break the rule."""
        self.rule, self.reason = rule, reason


class HpuTensor(torch.Tensor):
    """A tensor on the simulated card, made by `wrap`; operations on it arrive in dispatch.py."""

    plain: torch.Tensor
    allocation: Allocation
    lease: Lease | None
    is_view: bool
    """Whether it is a view of another shape or place, not just an alias."""
    dispatch: ClassVar[Any]
    """`dispatch.run`, which dispatch.py puts here."""
    reading: ClassVar[Any]
    """`dispatch.reading`, called before Python sees a value."""

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
        """Return the values; a read on the host."""
        HpuTensor.reading(self, "tolist", "S4")
        return self.plain.tolist()

    def numpy(self, **_: Any) -> Any:
        """Raise TypeError, as the bridge does."""
        raise TypeError("can't convert hpu:0 device type tensor to numpy. Use Tensor.cpu() first")


def wrap(
    plain: torch.Tensor, allocation: Allocation, lease: Lease | None = None, is_view: bool = False
) -> HpuTensor:
    """Return a device tensor with this data, without a copy."""
    made: HpuTensor = torch.Tensor._make_wrapper_subclass(
        HpuTensor,
        plain.shape,
        strides=plain.stride(),
        storage_offset=plain.storage_offset(),
        dtype=plain.dtype,
        device="hpu:0",  # type: ignore[arg-type]
    )
    made.plain, made.allocation, made.lease, made.is_view = plain, allocation, lease, is_view
    return made
