"""What a step is on a device that compiles: a program from one packed tensor to another, one per bucket."""

from collections.abc import Callable
from typing import ClassVar, Protocol

import attrs
import torch
from torch import nn


class Program(nn.Module):
    """From one int32 tensor [n] to one int32 tensor, both on the device; shapes never change.

    What it keeps between calls are tensors that it changes in place. Its Python code may run once only.
    """

    regions: ClassVar[tuple[str, ...]] = ()
    """Methods that may be compiled on their own: tensors, and tuples and dicts of them, go in and out."""

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Carry it out."""
        raise NotImplementedError


class Tally(Program):
    """A program for tests of a device: it adds up its inputs, and returns twice the sum."""

    def __init__(self, torch_device: torch.device) -> None:
        super().__init__()
        self.sum = torch.zeros(4, dtype=torch.int32, device=torch_device)

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Add packed [4] to a sum that outlives the call."""
        self.sum.add_(packed)
        return self.sum * 2


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

    def graph(self, program: Program) -> Callable[[torch.Tensor], torch.Tensor]:
        """The program, captured or compiled by its first call. A result is valid until the next call."""

    def border(self) -> None:
        """Between two parts of a program that need not be optimised together."""
