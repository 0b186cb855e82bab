"""Weights that are integers of a few bits, with a scale for each group of input features.

Other files of this folder say which checkpoints have such weights, or how dense ones are rounded to them.
"""

from abc import abstractmethod
from typing import ClassVar, Self

import attrs
import torch
import torch.nn.functional as F

from .base import LinearWeight, Operations
from .rounding import Rounding

_PIECE = 1 << 18
"""Numbers that are rounded at once: few enough to stay in a processor's cache."""


@attrs.frozen(eq=False)
class IntegerWeight(LinearWeight):
    """A matrix (numbers - zeros) * scales, or numbers * scales - zeros * minima, or table[numbers] * scales.

    Inputs are rounded to 8 bits too: in each row and group to multiples of 1/127 of the greatest.
    """

    numbers: torch.Tensor
    """Stored weights [out, in] uint8, below 2^bits."""
    scales: torch.Tensor
    """Factors [out, groups] float32; with `shares`, of several groups each."""
    zeros: torch.Tensor | None
    """Numbers [out, groups] uint8 that stand for 0; None: 2^(bits - 1)."""
    bits: int
    group: int
    """Input features in a group; the last one may have fewer."""
    order: torch.Tensor | None = None
    """Input features [in] in the order of the weight's columns; None: their own."""
    shares: torch.Tensor | None = None
    """Factors [out, groups] of the scale of each group; None: 1. int8 or e4m3, or uint8 for `power`."""
    minima: torch.Tensor | None = None
    """Factors of `zeros` in the shape of `scales`, if these are not what stands for 0."""
    table: tuple[int, ...] | None = None
    """16 integers of 8 bits that numbers of 4 bits stand for, without zeros; None: themselves."""

    @property
    def matrix(self) -> torch.Tensor:
        """The real numbers in float32, with the columns in the order of `order`."""
        count = -(-self.numbers.shape[1] // self.group)
        scales = self.scales.repeat_interleave(count // self.scales.shape[1], 1)
        scales = _spread(scales if self.shares is None else scales * _factors(self.shares), self)
        if self.table is not None:
            return torch.tensor(self.table, device=scales.device)[self.numbers.int()] * scales
        zeros = 2 ** (self.bits - 1) if self.zeros is None else _spread(self.zeros, self)
        if self.minima is None:
            return (self.numbers.float() - zeros) * scales
        minima = self.minima.repeat_interleave(count // self.minima.shape[1], 1)
        return self.numbers * scales - zeros * _spread(minima, self)

    @property
    def zeros_or_middle(self) -> torch.Tensor:
        """The zeros [out, groups] uint8, whether they are given or not."""
        middle = torch.full_like(self.scales, 2 ** (self.bits - 1), dtype=torch.uint8)
        return middle if self.zeros is None else self.zeros

    @property
    def row_bytes(self) -> int:
        """Bytes of a row: packed numbers, and what groups have."""
        columns = (self.scales, self.zeros, self.shares, self.minima)
        size = sum(each.shape[1] * each.dtype.itemsize for each in columns if each is not None)
        return -(-self.numbers.shape[1] * self.bits // 8) + size

    def dense(self) -> torch.Tensor:
        """Return the real numbers in float32, with the columns in the order of the inputs."""
        matrix = self.matrix
        return matrix if self.order is None or matrix.is_meta else matrix[:, self.order.argsort()]

    def prepare(self, device: Operations) -> Self:
        """Return a copy on the device."""
        names = ("numbers", "scales", "zeros", "order", "shares", "minima")
        tensors = ((name, getattr(self, name)) for name in names)
        placed = {name: each.to(device.torch_device) for name, each in tensors if each is not None}
        return attrs.evolve(self, **placed)

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Round x to 8 bits and multiply in float32."""
        rounded = round_inputs(x if self.order is None else x[:, self.order], self.group)
        y = device.linear(rounded, self.matrix)
        y = y if bias is None else y + bias
        return (y if residual is None else y + residual).to(x.dtype)


def power(exponents: torch.Tensor) -> torch.Tensor:
    """Return the powers of 2, in float32, of exponents in e8m0, for which torch 2.6 has no dtype."""
    return (exponents.float() - 127).exp2()


def _factors(shares: torch.Tensor) -> torch.Tensor:
    return power(shares) if shares.dtype == torch.uint8 else shares.float()


def _spread(columns: torch.Tensor, weight: IntegerWeight) -> torch.Tensor:
    """Repeat numbers [out, groups] for every input feature, [out, in]."""
    return columns.repeat_interleave(weight.group, 1)[:, : weight.numbers.shape[1]]


def round_inputs(x: torch.Tensor, group: int) -> torch.Tensor:
    """Round x [n, in] to 8 bits, in groups of the last dimension, and return the result in float32."""
    rows, size = x.shape
    groups = F.pad(x.float(), (0, -size % group)).view(rows, -1, group)
    top = groups.abs().amax(-1, keepdim=True)
    inverse = torch.full_like(top, 127).div(top).masked_fill(top == 0, 0)
    return ((groups * inverse).round() * (top / 127)).view(rows, -1)[:, :size]


class IntegerRounding(Rounding):
    """A rounding to integers."""

    bits: ClassVar[int]
    symmetric: ClassVar[bool]
    """Whether 0 is in the middle of the integers' range; else a group begins at its least number."""

    @abstractmethod
    def group(self, size: int) -> int:
        """Return how many of `size` input features share a scale."""

    def bytes(self, out: int, size: int) -> int:
        """Return the bytes of numbers, scales, and zeros unless all are the middle."""
        groups = -(-size // self.group(size))
        return out * (size * self.bits // 8 + groups * (4 if self.symmetric else 5))

    def round(self, matrix: torch.Tensor) -> IntegerWeight:
        """Round each group of features by its own range."""
        return round_weight(matrix, self.bits, self.group(matrix.shape[1]), symmetric=self.symmetric)


def round_weight(matrix: torch.Tensor, bits: int, group: int, *, symmetric: bool) -> IntegerWeight:
    """Round a dense matrix [out, in] to integers; `symmetric`: 0 is in the middle of their range."""
    out, size = matrix.shape
    count = -(-size // group)
    numbers = torch.empty(out, size, dtype=torch.uint8, device=matrix.device)
    scales = torch.empty(out, count, dtype=torch.float32, device=matrix.device)
    zeros = None if symmetric else torch.empty(out, count, dtype=torch.uint8, device=matrix.device)
    rows = max(1, _PIECE // size)
    for begin in range(0, 0 if matrix.is_meta else out, rows):
        piece = slice(begin, begin + rows)
        groups = F.pad(matrix[piece].float(), (0, count * group - size)).view(-1, count, group)
        if zeros is None:
            middle = 2 ** (bits - 1)
            scale, zero = groups.abs().amax(-1) / (middle - 1), groups.new_full((), middle)
        else:
            low, high = groups.amin(-1).clamp_max(0), groups.amax(-1).clamp_min(0)
            scale = (high - low) / (2**bits - 1)
            zero = (-low / scale.clamp_min(_TINY)).round()
            zeros[piece] = zero.to(torch.uint8)
            zero = zero[..., None]
        stored = (groups / scale.clamp_min(_TINY)[..., None]).round_() + zero
        numbers[piece] = stored.clamp_(0, 2**bits - 1).flatten(1)[:, :size].to(torch.uint8)
        scales[piece] = scale
    return IntegerWeight(numbers, scales, zeros, bits, group)


_TINY = torch.finfo(torch.float32).tiny
