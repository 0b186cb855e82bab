"""Pinned memory of the host: `pin_memory` and `is_pinned` of CPU tensors while a card is installed.

Nothing is really pinned; the simulation only knows which memory would be.
"""

import weakref
from typing import Any

import torch

_pinned: dict[int, tuple[int, int]] = {}
"""First address, and address behind the last byte, of pinned tensors by identity."""


def extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and behind its last."""
    if not tensor.numel():
        return 0, 0
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * stride for size, stride in sizes)
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """Return a pinned copy of a CPU tensor; it stays pinned as long as this object lives."""
    del device
    if is_pinned(tensor):
        return tensor
    pinned = tensor.clone()
    _pinned[id(pinned)] = extent(pinned)
    weakref.finalize(pinned, _pinned.pop, id(pinned))
    return pinned


def is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    """Whether all memory of a CPU tensor is pinned."""
    del device
    first, end = extent(tensor)
    return any(begin <= first and end <= behind for begin, behind in _pinned.values())


_METHODS = {"pin_memory": pin_memory, "is_pinned": is_pinned}


def watch() -> None:
    """Let tensors have these methods instead of torch's, which need a real device."""
    for name, method in _METHODS.items():
        setattr(torch.Tensor, name, method)


def unwatch() -> None:
    """Undo `watch`."""
    for name in _METHODS.keys() & vars(torch.Tensor).keys():
        delattr(torch.Tensor, name)
