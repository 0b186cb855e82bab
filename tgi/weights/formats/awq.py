"""Weights in 4 bits as AutoAWQ's "gemm" kernels have them (Lin et al. 2023, arXiv 2306.00978).

For "x.weight" [out, in] a checkpoint has "x.qweight" [in, out] and "x.qzeros" [groups, out], both packed
along out with the eight numbers of a word in an order of their own, and "x.scales" [groups, out].
"""

from typing import Self

import attrs
import torch

from tgi.plugins import JsonReader
from tgi.weights.shard import TensorPart

from .auto_round import AUTO_ROUND, auto_round_fault, auto_round_packing
from .base import LinearWeight, Reader, WeightFormat
from .packed import read_packed
from .stored import fuse, group_columns

BITS = 4
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Place in a word of each of eight neighbours."""


@attrs.frozen(slots=False)  # slots would need a second class, and both would be found
class Awq(WeightFormat):
    """AWQ's tensors."""

    name = "awq"
    methods = frozenset({"awq", *AUTO_ROUND})
    scope = "AWQ of 4 bits in version 'gemm'"

    group: int
    """Input features in a group; at most 0: all."""
    symmetric: bool = False
    """Whether all zeros are the middle."""

    @classmethod
    def means(cls, config: JsonReader) -> bool:
        """Return whether the method or AutoRound's packing is AWQ."""
        return super().means(config) and auto_round_packing(config) in ("", "auto_awq")

    @classmethod
    def fault(cls, config: JsonReader) -> str | None:
        """Return the setting that asks for other tensors."""
        if fault := auto_round_fault(config):
            return fault
        names = ("version", "checkpoint_format", "format")
        version = next((config.data[name] for name in names if config.data.get(name)), "gemm")
        if str(version).lower() not in ("gemm", "exllama"):
            return f"'version' is {version!r}"
        bits = config(int, "bits", config(int, "w_bit", BITS))
        return None if bits == BITS else f"'bits' is {bits}"

    @classmethod
    def from_config(cls, config: JsonReader) -> Self:
        """Read the size of groups, and whether they have zeros."""
        group = config(int, "group_size", config(int, "q_group_size", 128))
        return cls(group, not config(bool, "zero_point", not config(bool, "sym", False)))

    def missing(self, reader: Reader, part: TensorPart) -> str | None:
        """Return the name of the packed weight if the checkpoint lacks it."""
        name = f"{part.module}.qweight"
        return None if part.index is None and name in reader else name

    def read(self, reader: Reader, *parts: TensorPart) -> LinearWeight:
        """Read and unpack."""
        return fuse(reader, self.name, parts, [self._read(reader, part) for part in parts])

    def _read(self, reader: Reader, part: TensorPart) -> LinearWeight:
        name, (out, size) = part.module, part.shape
        group = size if self.group <= 0 else self.group
        rows, columns = (part.indices, None) if part.dim == 0 else (None, part.indices)
        numbers = TensorPart(f"{name}.qweight", (size, out), 1 - part.dim, part.indices)
        zeros = TensorPart(f"{name}.qzeros", (-(-size // group), out), 1, rows)
        scales = attrs.evolve(zeros, name=f"{name}.scales")
        middles = _read_columns(reader, zeros).T
        middle = self.symmetric and (middles.is_meta or bool((middles == 2 ** (BITS - 1)).all()))
        return group_columns(
            _read_columns(reader, numbers).T.contiguous(),
            reader.read_raw(scales, torch.float32, kept=False).T,
            None if middle else middles,
            BITS,
            group,
            0 if columns is None else columns.start,
        )


def _read_columns(reader: Reader, part: TensorPart) -> torch.Tensor:
    """Return a part of a matrix [any, out] whose columns are packed in AWQ's order."""
    cut = slice(0, part.shape[1]) if part.dim == 0 or part.indices is None else part.indices
    whole = slice(cut.start // 8 * 8, -(-cut.stop // 8) * 8)
    if part.dim == 1:
        part = attrs.evolve(part, indices=whole)
    words = read_packed(reader, part, BITS, 1)
    columns = words.view(len(words), -1, 8)[..., _PLACES].flatten(1)
    return columns[:, cut.start - whole.start :][:, : cut.stop - cut.start]
