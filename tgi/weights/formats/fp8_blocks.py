"""Weights in 8 bits (e4m3) with a scale for each block of 128 by 128 numbers, as DeepSeek-V3 has them.

Beside the numbers "x.weight" [out, in] a checkpoint has "x.weight_scale_inv", a factor for each block, of
which the last ones of a row or column may be smaller. Inputs are not rounded.
"""

from collections.abc import Sequence
from typing import Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .base import LinearWeight, Operations, Reader, WeightFormat
from .fp8 import FP8, FP8_LIMIT
from .fp8_wide import has_inverse_scales
from .stored import make_dense

BLOCK = 128


@attrs.frozen(eq=False)
class Fp8BlockWeight(LinearWeight):
    """A matrix in 8 bits with the scales of its blocks."""

    numbers: torch.Tensor
    """Stored weights [out, in] e4m3."""
    scales: torch.Tensor
    """Scales [out, blocks] float32 of the blocks of each row: real = stored * scale."""
    offset: int
    """Number of columns of the first block that are on other ranks."""

    def dense(self) -> torch.Tensor:
        """Return the real numbers, in float32."""
        columns = torch.arange(self.numbers.shape[1], dtype=torch.int32, device=self.numbers.device)
        return self.numbers.float() * self.scales.index_select(1, (columns + self.offset) // BLOCK)

    def prepare(self, device: Operations) -> Self:
        """Return a copy on the device, within its range: checkpoints are made for FP8_LIMIT."""
        numbers, scales, place = self.numbers, self.scales, device.torch_device
        if device.fp8_limit < FP8_LIMIT:
            numbers, scales = (numbers.float() / 2).to(FP8), 2 * scales
        return attrs.evolve(self, numbers=numbers.to(place), scales=scales.to(place))

    def multiply(
        self,
        device: Operations,
        x: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply by the real numbers, rounded to the dtype of x."""
        return device.linear(x, self.dense().to(x.dtype), bias, residual)


class Fp8Blocks(WeightFormat):
    """Dynamic fp8, one scale per block."""

    name = "fp8 blocks"
    methods = frozenset({"fp8"})
    scope = f"e4m3 weights with a scale for each block of {BLOCK} by {BLOCK}"

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether blocks have that size."""
        known = config.data.get("weight_block_size") == [BLOCK, BLOCK]
        return super().means(config) and known and not has_inverse_scales(config)

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the first setting that asks for another kind of fp8."""
        scheme = config(str, "activation_scheme", "dynamic")
        return None if scheme == "dynamic" else f"'activation_scheme' is {scheme!r}"

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the scales if the checkpoint lacks them."""
        name = f"{part.name}_scale_inv"
        return None if name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read numbers and scales; those of a weight that the device does not keep are multiplied.

        Parts that are fused have the same columns.
        """
        offset, kept = _range(parts[0], 1).start % BLOCK, "fp8" in reader.device.keeps
        pieces = [
            Fp8BlockWeight(reader.read_raw(part, FP8, kept), _read_scales(reader, part), offset)
            for part in parts
        ]
        if not kept:
            return make_dense(reader, self.name, parts, (piece.dense() for piece in pieces))
        for part, piece in zip(parts, pieces, strict=True):
            blocks = [-(-size // BLOCK) for size in part.shape]
            reader.keep(f"{part.name}_scale_inv", blocks, piece.scales, self.name)
        numbers, scales = [piece.numbers for piece in pieces], [piece.scales for piece in pieces]
        return Fp8BlockWeight(_join(numbers), _join(scales), offset)


def _join(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return matrices one below the other; torch takes long for those without numbers."""
    if not parts[0].is_meta:
        return torch.cat(list(parts))
    return parts[0].new_empty(sum(len(part) for part in parts), parts[0].shape[1])


def _range(part: TensorPart, dim: int) -> range:
    """Return the indices of a part in one of its two dimensions."""
    whole = range(part.shape[dim])
    return whole if part.indices is None or part.dim != dim else whole[part.indices]


def _read_scales(reader: Reader, part: TensorPart) -> torch.Tensor:
    """Return the scales [rows of the part, blocks of each] float32."""
    shape = [-(-size // BLOCK) for size in part.shape]
    whole = reader.read_raw(TensorPart(f"{part.name}_scale_inv", shape), torch.float32, kept=False)
    rows, columns = _range(part, 0), _range(part, 1)
    mine = whole[rows.start // BLOCK :, columns.start // BLOCK : -(-columns.stop // BLOCK)]
    skipped = rows.start % BLOCK
    return mine.repeat_interleave(BLOCK, 0)[skipped : skipped + len(rows)].contiguous()
