"""Made-up weights for measurements: the same ones every time, over any number of ranks."""

import math
import zlib
from collections.abc import Sequence

import torch

_STARTS = 1 << 20
"""Length of the noise, which repeats. The rows of a tensor begin at different places in it."""
_STEP = 611_953
"""Distance from the beginning of one row to that of the next; prime, so that rows differ."""
_SPREAD = 0.02
"""Standard deviation, the one that models begin their training with."""
_CHUNK = 1 << 24
"""Numbers that are written at once, or one row if that is longer."""


class DummyWeights:
    """A stand-in for a `Checkpoint` that has every tensor, with small numbers.

    Vectors are neutral, 1 in a weight and 0 in a bias, so that norms keep numbers in bounds.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._noise = torch.empty(0)

    def __contains__(self, name: str) -> bool:
        return True

    def read(
        self,
        name: str,
        shape: Sequence[int],
        dim: int = 0,
        part: slice | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Do as `Checkpoint.read`."""
        ranges = [range(length) for length in shape]
        if part is not None:
            ranges[dim] = ranges[dim][part]
        if out is None:
            out = torch.empty([len(indices) for indices in ranges], dtype=self._dtype)
        if len(shape) < 2:
            return out.fill_(0.0 if name.endswith("bias") else 1.0)
        if dim > 1:
            whole = self.read(name, shape)
            return out.copy_(whole.narrow(dim, ranges[dim].start, len(ranges[dim])))
        inner = math.prod(shape[2:])
        columns = range(ranges[1].start * inner, ranges[1].stop * inner)
        self._fill(out.view(len(ranges[0]), len(columns)), name, ranges[0], columns, shape[1] * inner)
        return out

    def fault(self, _name: str, _shape: Sequence[int]) -> str | None:
        """Do as `Checkpoint.fault`."""
        return None

    def equal(self, _name: str, _other: str) -> bool:
        """Do as `Checkpoint.equal`: a tied model has one tensor."""
        return True

    def is_zero(self, _name: str) -> bool:
        """Do as `Checkpoint.is_zero`."""
        return False

    def is_plain(self, _name: str) -> bool:
        """Do as `Checkpoint.is_plain`."""
        return True

    def bytes_of(self, _name: str) -> bytes:
        """Return none."""
        return b""

    def dismiss(self, name: str) -> None:
        """Do as `Checkpoint.dismiss`."""

    def skip(self, _module: str) -> list[str]:
        """Do as `Checkpoint.skip`."""
        return []

    def _fill(self, out: torch.Tensor, name: str, rows: range, columns: range, width: int) -> None:
        noise = self._noise_for(width, out.dtype)  # on the host: where integers may have 64 bits
        windows = noise[columns.start :].unfold(0, len(columns), 1)
        first = zlib.crc32(name.encode())
        count = max(1, _CHUNK // max(1, len(columns)))
        for begin in range(0, len(rows), count):
            numbers = torch.tensor(rows[begin : begin + count])
            out[begin : begin + count].copy_(windows.index_select(0, (first + numbers * _STEP) % _STARTS))

    def _noise_for(self, width: int, dtype: torch.dtype) -> torch.Tensor:
        """Return noise that is long enough for a row of that width from any start."""
        if len(self._noise) < _STARTS + width or self._noise.dtype != dtype:
            noise = torch.randn(_STARTS, generator=torch.Generator().manual_seed(0)).mul_(_SPREAD)
            rounds = 1 + -(-width // _STARTS)
            self._noise = noise.to(dtype).repeat(rounds)
        return self._noise
