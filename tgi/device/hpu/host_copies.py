"""Copies of results from a Gaudi to the host, beside the next step."""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from tgi.device.base import Array


class HostCopies:
    """Results on their way to the host, on a stream of their own, so that the next step need not wait.

    Events do not cover copies into memory that is not pinned. Where none can be, results are copied on the
    card, since the next step overwrites them, and from there by whoever waits.
    """

    def __init__(self, hpu: Any) -> None:
        self.hpu = hpu
        """Module torch.hpu."""
        self._stream = hpu.Stream()
        self._spare: defaultdict[tuple[torch.Size, torch.dtype], list[torch.Tensor]] = defaultdict(list)
        """Pinned buffers that no copy uses, by shape and dtype."""
        self._last: Any = None
        """Event after the last copy."""

    def fetch(self, *tensors: torch.Tensor) -> Callable[[], list[Array]]:
        """Begin to copy tensors; the function returned waits for them."""
        event = self.hpu.Event()
        self._stream.wait_stream(self.hpu.current_stream())
        with self.hpu.stream(self._stream):
            if self.pinned:
                copies = [self._buffer(tensor) for tensor in tensors]
                for host, tensor in zip(copies, tensors, strict=True):
                    host.copy_(tensor, non_blocking=True)
            else:
                copies = [tensor.clone() for tensor in tensors]
            event.record()
        self._last = event

        def wait() -> list[Array]:
            event.synchronize()
            arrays: list[Array] = [copy.cpu().numpy().copy() for copy in copies]
            if self.pinned:
                for host in copies:
                    self._spare[host.shape, host.dtype].append(host)
            return arrays

        return wait

    def hold_back(self) -> None:
        """Let the card begin nothing new before the last copy has been made."""
        if self._last is not None:
            self.hpu.current_stream().wait_event(self._last)

    @functools.cached_property
    def pinned(self) -> bool:
        """Whether this release can pin memory of the host."""
        try:
            torch.empty(1).pin_memory(device="hpu")
        except RuntimeError:
            return False
        return True

    def _buffer(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a pinned buffer for a tensor."""
        spare = self._spare[tensor.shape, tensor.dtype]
        if spare:
            return spare.pop()
        return torch.empty(tensor.shape, dtype=tensor.dtype).pin_memory(device="hpu")
