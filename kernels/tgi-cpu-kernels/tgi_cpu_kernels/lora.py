"""LoRA adapters: small matrices of several slots, by which the tokens of a step change linear layers."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch

from .kernels import Kernels

Pair = tuple[torch.Tensor, torch.Tensor]
"""Matrices [rank, in] and [out, rank]."""
_Pointer, _Long = ctypes.c_void_p, ctypes.c_long


class _Piece(ctypes.Structure):
    _fields_ = (("up", _Pointer), *((name, _Long) for name in ("rank", "column", "first", "n")))


class _Adapter(ctypes.Structure):
    _fields_ = (("down", _Pointer), ("pieces", _Pointer), ("columns", _Long), ("count", _Long))


class _Segment(ctypes.Structure):
    _fields_ = tuple((name, _Long) for name in ("slot", "begin", "count"))


class _Rows(ctypes.Structure):
    _fields_ = (("tokens", _Pointer), ("segments", _Pointer), ("count", _Long))


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, _Pointer) for name in ("x", "y", "adapters", "rows")),
        *((name, _Long) for name in ("k", "x_stride", "y_stride")),
    )


class LoraRows:
    """The slots of a step's tokens, for all layers."""

    def __init__(self, slots: torch.Tensor) -> None:
        """Sort the tokens by their slots [tokens]; -1: none."""
        numbers = slots.numpy()
        order = np.argsort(numbers, kind="stable")[np.count_nonzero(numbers < 0) :].astype(np.int32)
        found, begins, counts = np.unique(numbers[order], return_index=True, return_counts=True)
        parts = zip(found.tolist(), begins.tolist(), counts.tolist(), strict=True)
        segments = (_Segment * len(found))(*(_Segment(*part) for part in parts))
        rows = _Rows(order.ctypes.data, ctypes.addressof(segments), len(found))
        self._alive = order, segments, rows
        self.place = ctypes.addressof(rows)
        """Address of the kernels' structure."""


class LoraTable:
    """The matrices of all slots for one linear layer, whose outputs are pieces one after the other."""

    def __init__(self, kernels: Kernels, slots: int, outputs: Sequence[int]) -> None:
        """Make an empty table; `outputs` are the sizes of the pieces."""
        self._kernels, self._outputs = kernels, outputs
        self._adapters = (_Adapter * slots)()
        self._alive: dict[int, object] = {}
        self.place = ctypes.addressof(self._adapters)
        """Address of the kernels' structure, which stays when adapters change."""

    def put(self, slot: int, pairs: Sequence[Pair | None]) -> None:
        """Fill a slot with the matrices of each piece; None: it has none."""
        pieces, downs, ups, column, first = [], [], [], 0, 0
        for pair, size in zip(pairs, self._outputs, strict=True):
            if pair is not None:
                down, up = pair
                downs.append(down)
                ups.append(self._kernels.pack(up))
                pieces.append(_Piece(ups[-1].data_ptr(), len(down), column, first, size))
                column += len(down)
            first += size
        if not pieces:
            self._adapters[slot] = _Adapter()
            self._alive.pop(slot, None)
            return
        packed, array = self._kernels.pack(torch.cat(downs)), (_Piece * len(pieces))(*pieces)
        self._adapters[slot] = _Adapter(packed.data_ptr(), ctypes.addressof(array), column, len(pieces))
        self._alive[slot] = packed, array, ups

    def add(self, x: torch.Tensor, y: torch.Tensor, rows: LoraRows) -> None:
        """Add to y [tokens, out] the products of x [tokens, in], of the same dtype, with each one's matrices.

        Sums are float32; what is between the matrices, and the result, is rounded to the dtype of y.
        """
        x = x if x.stride(1) == 1 else x.contiguous()
        assert y.stride(1) == 1, "the features of a row must follow one another"
        arguments = _Arguments(
            x.data_ptr(), y.data_ptr(), self.place, rows.place, x.shape[1], x.stride(0), y.stride(0)
        )
        self._kernels.lora(x.dtype, arguments)
