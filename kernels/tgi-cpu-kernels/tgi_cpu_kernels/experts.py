"""The experts of a layer in one call."""

import ctypes
from collections.abc import Sequence

import torch

from .decoder import LinearLayer, Weight, weight_of
from .interface import GATES
from .kernels import Kernels

_POINTERS = ("x", "weights", "chosen", "up", "down", "y")
_LONGS = ("tokens", "hidden", "inner", "top", "first", "count", "x_stride", "gate")


class _Arguments(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_void_p) for name in _POINTERS), *((name, ctypes.c_long) for name in _LONGS))


class Experts:
    """MLPs of one size, numbered from `first` on: down(silu(gate(x)) * up(x))."""

    def __init__(
        self,
        kernels: Kernels,
        up: Sequence[LinearLayer],
        down: Sequence[LinearLayer],
        first: int,
        gate: str = "silu",
    ) -> None:
        """`up` are the gates, then what they multiply. "swiglu" is the gate of gpt-oss."""
        self._kernels, self._first, self._layers, self._gate = kernels, first, (up, down), GATES[gate]
        self._up, self._down = ((Weight * len(part))(*map(weight_of, part)) for part in (up, down))
        self._inner = up[0].features // 2

    def run(self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return for each token of x [tokens, hidden] the sum of those of its experts that are here.

        `chosen` [tokens, top] int64 are the numbers of its experts, `weights` [tokens, top] their factors in
        the dtype of x. Each expert's result is rounded; they are added up in float32, in the order of their
        numbers, and rounded once.
        """
        x = x if x.stride(-1) == 1 else x.contiguous()
        weights, chosen = weights.contiguous(), chosen.contiguous()
        y = x.new_empty(x.shape)
        arguments = _Arguments(
            x.data_ptr(), weights.data_ptr(), chosen.data_ptr(),
            ctypes.addressof(self._up), ctypes.addressof(self._down), y.data_ptr(),
            *x.shape, self._inner, chosen.shape[1], self._first, len(self._up), x.stride(0), self._gate,
        )  # fmt: skip
        self._kernels.experts(x.dtype, arguments)
        return y
