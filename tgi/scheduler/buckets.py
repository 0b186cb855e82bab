"""The shapes that steps are padded to: a pure function of the limits and the kind of device.

A bucket is (rows, query tokens per row, blocks per row); tokens is 1 for decode. The buckets form a grid,
so that the smallest size that fits in each dimension gives the cheapest bucket that dominates a step.
Every step the policy can plan has one; there is no fallback.
"""

from bisect import bisect_left
from collections.abc import Iterator

import attrs

from tgi.config import Limits
from tgi.plugins import DeviceSpec


@attrs.frozen(order=True)
class Bucket:
    """A shape."""

    rows: int
    tokens: int
    """Query tokens per row; 1 in a decode step."""
    blocks: int
    """Entries of each row's block table."""


def geometric(first: int, last: int, ratio: float, multiple: int = 1) -> tuple[int, ...]:
    """Sizes from `first` to `last`, each a multiple of `multiple` except the last, growing by about `ratio`.

    What lies between two neighbours a < b wastes less than 1 - a/b of b: at most 1 - 1/ratio wherever the
    multiples are fine enough to follow the ratio.
    """
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        grown = int(size * ratio) // multiple * multiple
        size = max(size + multiple, grown)
    return (*sizes, last)


@attrs.frozen
class Buckets:
    """All sizes of each dimension, ascending."""

    decode_rows: tuple[int, ...]
    prefill_rows: tuple[int, ...]
    prefill_tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    max_prefill: int
    """Most query tokens of a prefill step of several rows; one row may always have the last size."""
    padded: bool
    """Whether the device computes the padding, so that it counts among the query tokens."""

    @classmethod
    def from_limits(cls, limits: Limits, device: DeviceSpec) -> "Buckets":
        """Doubling sizes where every shape is compiled; every number of rows where none is."""
        block = limits.block_size
        longest = min(limits.max_batch_prefill_tokens, limits.max_total_tokens)
        blocks = -(-limits.max_total_tokens // block)
        if device.compiles:
            rows = geometric(1, limits.max_batch_size, 2)
            tokens = geometric(min(block, longest), longest, 2, block)
            return cls(rows, rows, tokens, geometric(1, blocks, 2), limits.max_batch_prefill_tokens, True)
        rows = tuple(range(1, limits.max_batch_size + 1))
        tokens = geometric(min(block, longest), longest, 1, block)
        return cls(rows, rows, tokens, (blocks,), limits.max_batch_prefill_tokens, False)

    @property
    def longest_prefill(self) -> int:
        """Query tokens of the largest chunk of one sequence."""
        return self.prefill_tokens[-1]

    def decode(self, rows: int, blocks: int) -> Bucket:
        """The cheapest bucket for `rows` rows whose block tables have up to `blocks` entries."""
        return Bucket(_at_least(self.decode_rows, rows), 1, _at_least(self.blocks, blocks))

    def prefill(self, rows: int, tokens: int, blocks: int) -> Bucket | None:
        """The cheapest bucket for `rows` rows of up to `tokens` query tokens; None: too much padding."""
        bucket = Bucket(
            _at_least(self.prefill_rows, rows),
            _at_least(self.prefill_tokens, tokens),
            _at_least(self.blocks, blocks),
        )
        return bucket if self._fits(bucket.rows, bucket.tokens) else None

    def _fits(self, rows: int, tokens: int) -> bool:
        return rows == 1 or not self.padded or rows * tokens <= self.max_prefill

    def to_warm_up(self, device: DeviceSpec, *, everything: bool = True) -> list[Bucket]:
        """All where every shape is compiled, else the largest of each kind, for the memory they take."""
        largest = self.prefill(1, self.longest_prefill, 1), self.decode(self.decode_rows[-1], 1)
        return list(self) if everything and device.compiles else [bucket for bucket in largest if bucket]

    def __iter__(self) -> Iterator[Bucket]:
        """Every bucket, prefill before decode, the largest first."""
        for tokens in reversed(self.prefill_tokens):
            for rows in reversed(self.prefill_rows):
                if self._fits(rows, tokens):
                    yield from (Bucket(rows, tokens, n) for n in reversed(self.blocks))
        for rows in reversed(self.decode_rows):
            yield from (Bucket(rows, 1, n) for n in reversed(self.blocks))


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return sizes[bisect_left(sizes, wanted)]
