"""Programs, and how a device makes them fast."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import attrs
import torch
from torch import nn

Run = Callable[..., tuple[torch.Tensor, ...]]
"""Runs a `Program`: takes and gives what its `forward` does."""


class Program(nn.Module):
    """A function on the device: its `forward` takes tensors [n] and returns a tuple of tensors.

    All are int32 or float32, and their shapes never change. What it keeps between calls are tensors that it
    changes in place. Its Python code may run once only.
    """

    regions: ClassVar[tuple[str, ...]] = ()
    """Methods that may be compiled on their own: tensors, and tuples and dicts of them, go in and out."""


class Tally(Program):
    """A program for tests of a device: it adds up its inputs, and returns twice the sum."""

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__()
        self.sum = torch.zeros(4, dtype=torch.int32, device=torch_device)

    def forward(self, packed: torch.Tensor) -> tuple[torch.Tensor]:
        """Add packed [4] to a sum that outlives the call."""
        self.sum.add_(packed)
        return (self.sum * 2,)


@attrs.frozen
class Counters:
    """What a device has done since it was opened, and holds now."""

    compilations: int = 0
    cpu_fallbacks: int = 0
    """Operations that were left to the CPU."""
    memory_bytes: int = 0
    """0: not known."""


class Graphs(Protocol):
    """How a device makes programs fast."""

    def prepare(self, model: nn.Module) -> None:
        """Called once with a loaded model, whose layers are the children of its `nn.ModuleList`s."""

    def graph(self, program: Program) -> Run:
        """Return a program that is captured or compiled by its first call. Each call ends earlier results."""

    def border(self) -> None:
        """Between two parts of a program that need not be optimised together."""
