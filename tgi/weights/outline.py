"""What a model would read of a checkpoint, found out before anything is read: all that is wrong at once."""

from collections.abc import Callable, Sequence

import torch

from .checkpoint import Checkpoint, CheckpointError


class Outline:
    """Stands in for a `Checkpoint` while a model is built on torch's device "meta", which has no numbers."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._asked: set[str] = set()
        self._missing: dict[str, None] = {}
        self._misshaped: dict[str, str] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint

    def read(
        self,
        name: str,
        shape: Sequence[int],
        dim: int = 0,
        part: slice | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `Checkpoint.read`, but without numbers, and what is wrong is remembered."""
        self._asked.add(name)
        if name not in self._checkpoint:
            self._missing[name] = None
        elif fault := self._checkpoint.fault(name, shape):
            self._misshaped[name] = fault
        lengths = list(shape)
        if part is not None:
            lengths[dim] = len(range(lengths[dim])[part])
        return torch.empty(lengths, device="meta") if out is None else out

    def fault(self, name: str, shape: Sequence[int]) -> str | None:
        """As `Checkpoint.fault`."""
        return self._checkpoint.fault(name, shape)

    def dismiss(self, name: str) -> None:
        """As `Checkpoint.dismiss`."""
        self._asked.add(name)

    def check(self) -> None:
        """Raise CheckpointError with everything that is wrong."""
        extra = [name for name in self._checkpoint.unread if name not in self._asked]
        faults = list(self._misshaped.values())[:3]
        if len(self._misshaped) > len(faults):
            faults.append(f"{len(self._misshaped) - len(faults)} more tensors have other shapes too")
        if self._missing:
            faults.append(f"{self._checkpoint.missing(list(self._missing))}")
        if extra:
            faults.append(self._checkpoint.superfluous(extra))
        if faults:
            raise CheckpointError("; ".join(faults))


def check_outline(checkpoint: Checkpoint, build: Callable[[Outline], object]) -> None:
    """Raise CheckpointError unless what `build` reads is the checkpoint. It gets no numbers."""
    outline = Outline(checkpoint)
    try:
        build(outline)
    except (NotImplementedError, RuntimeError):
        return  # it looked at a number: then the first fault that reading meets must be enough
    outline.check()
