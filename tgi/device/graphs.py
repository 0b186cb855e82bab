"""Programs, and how a device makes them fast."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

Run = Callable[..., tuple[torch.Tensor, ...]]
"""A `Program` as a function, with the arguments and results of its `forward`."""


class Program(nn.Module):
    """A function on the device: its `forward` takes tensors [n] and returns a tuple of tensors.

    All are int32 or float32, and their shapes never change. It keeps state between calls in tensors that it
    changes in place. Its Python code may run only once.
    """

    regions: ClassVar[tuple[str, ...]] = ()
    """Names of methods that may be compiled alone: they take and return tensors, or tuples or dicts. Programs
    share what is compiled of a static method."""


class Tally(Program):
    """A program for tests of a device: it adds up its inputs, and returns twice the sum."""

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__()
        self.sum = torch.zeros(4, dtype=torch.int32, device=torch_device)

    def forward(self, packed: torch.Tensor) -> tuple[torch.Tensor]:
        """Add packed [4] to a sum that outlives the call."""
        self.sum.add_(packed)
        return (self.sum * 2,)
