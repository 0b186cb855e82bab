"""Stand-in for a checkpoint while a model is built without numbers: all faults of the files at once."""

from collections.abc import Sequence

import torch

from .checkpoint import Checkpoint, CheckpointError


class Outline:
    """Tensors on torch's device "meta", and the faults of those in the checkpoint, if there is one.

    Without a checkpoint every tensor exists.
    """

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self.checkpoint = checkpoint
        self.asked: set[str] = set()
        """Names of the tensors that the model has read or dismissed."""
        self._missing: dict[str, None] = {}
        self._misshaped: dict[str, str] = {}
        self._checks = checkpoint is not None

    def __contains__(self, name: str) -> bool:
        return self.checkpoint is None or name in self.checkpoint

    def read(
        self,
        name: str,
        shape: Sequence[int],
        dim: int = 0,
        part: slice | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Do as `Checkpoint.read`, but without numbers and errors."""
        self.asked.add(name)
        if name not in self:
            self._missing[name] = None
        elif fault := self.fault(name, shape):
            self._misshaped[name] = fault
        lengths = list(shape)
        if part is not None:
            lengths[dim] = len(range(lengths[dim])[part])
        return torch.empty(lengths, device="meta") if out is None else out

    def fault(self, name: str, shape: Sequence[int]) -> str | None:
        """Do as `Checkpoint.fault`."""
        return None if self.checkpoint is None else self.checkpoint.fault(name, shape)

    def equal(self, name: str, other: str) -> bool:
        """Do as `Checkpoint.equal`."""
        return self.checkpoint is None or self.checkpoint.equal(name, other)

    def is_zero(self, name: str) -> bool:
        """Do as `Checkpoint.is_zero`."""
        return self.checkpoint is not None and self.checkpoint.is_zero(name)

    def is_plain(self, name: str) -> bool:
        """Do as `Checkpoint.is_plain`."""
        return self.checkpoint is None or self.checkpoint.is_plain(name)

    def bytes_of(self, name: str) -> bytes:
        """Do as `Checkpoint.bytes_of`; a file that there is not has none."""
        return b"" if self.checkpoint is None else self.checkpoint.bytes_of(name)

    def dismiss(self, name: str) -> None:
        """Do as `Checkpoint.dismiss`."""
        self.asked.add(name)

    def skip(self, module: str) -> list[str]:
        """Do as `Checkpoint.skip`."""
        names = [] if self.checkpoint is None else self.checkpoint.skip(module)
        self.asked.update(names)
        return names

    def skip_check(self) -> None:
        """Let `check` pass: the model reads the files in its own way, and finds their faults itself."""
        self._checks = False

    def check(self) -> None:
        """Raise CheckpointError with everything that is wrong."""
        if self.checkpoint is None or not self._checks:
            return
        extra = [name for name in self.checkpoint.unread if name not in self.asked]
        faults = list(self._misshaped.values())[:3]
        if len(self._misshaped) > len(faults):
            faults.append(f"{len(self._misshaped) - len(faults)} more tensors have other shapes too")
        if self._missing:
            faults.append(self.checkpoint.missing(list(self._missing)))
        if extra := extra if faults else self.checkpoint.strange(self.asked):
            faults.append(self.checkpoint.superfluous(extra))
        if faults:
            raise CheckpointError("; ".join(faults))
