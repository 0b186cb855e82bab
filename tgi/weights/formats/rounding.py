"""The interface of formats that dense weights are rounded to while a checkpoint is loaded (`--quantize`)."""

from abc import abstractmethod
from collections.abc import Iterator

import torch

from .base import LinearWeight, WeightFormat
from .dense import Dense


class Rounding(Dense):
    """A format of dense checkpoints. One layer at a time is in memory as the checkpoint has it."""

    @property
    def head(self) -> WeightFormat:
        """The format of the layer that gives logits, which may need more precision than others."""
        return self

    @abstractmethod
    def bytes(self, out: int, size: int) -> int:
        """Return the bytes of a matrix [out, size]."""

    @abstractmethod
    def round(self, matrix: torch.Tensor) -> LinearWeight:
        """Round a dense matrix [out, in]."""

    @classmethod
    def kinds(cls) -> "Iterator[type[Rounding]]":
        """Yield the roundings that `--quantize` names."""
        for kind in cls.__subclasses__():
            yield from kind.kinds() if kind.__subclasses__() else [kind]
