"""The look-up of the bucket that a step is padded to. What chooses buckets is `tgi.planning`.

A device that compiles has a set of buckets, and a step gets the cheapest of those that dominate it. Every
step that the policy can plan has one; there is no fallback. Any other device has a bucket for every shape.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

from tgi.limits import Limits
from tgi.protocol import Bucket


class Buckets:
    """The buckets of one device under one set of limits."""

    def __init__(
        self,
        limits: Limits,
        chosen: Iterable[Bucket] | None = None,
        seconds: Callable[[Bucket], float] = lambda _: 0.0,
        *,
        flat: bool = False,
    ) -> None:
        """`chosen`: prefill before decode, the largest first; None: every shape, as on a device that does not
        compile. `seconds` tells which bucket is the cheapest."""
        self.padded = chosen is not None
        """Whether the device computes the padding, so that it counts among the query tokens."""
        self.flat = flat
        """See `DeviceSpec.flat`."""
        self.longest_prefill = limits.longest_chunk
        """Query tokens of the largest chunk of one sequence."""
        self.max_prefill = limits.max_batch_prefill_tokens
        """Most query tokens of a prefill step of several rows."""
        self._seconds, self._rows = seconds, limits.max_batch_size
        every = None if chosen is None else list(chosen)
        self._decode, self._prefill = (
            _Every(limits, prefill=kind)
            if every is None
            else _Chosen([bucket for bucket in every if bucket.prefill is kind], seconds)
            for kind in (False, True)
        )

    def find(self, shape: Bucket) -> Bucket | None:
        """The bucket of a step; None if there is none for so many rows of a prefill."""
        finder = self._prefill if shape.prefill else self._decode
        return finder.find(shape.rows, shape.tokens, shape.blocks)

    def decode(self, rows: int, blocks: int) -> Bucket:
        """The bucket for so many rows; `blocks`: of all together if `flat`, else the most of one."""
        bucket = self.find(Bucket(rows, 1, blocks))
        assert bucket is not None, f"no bucket for {rows} rows with {blocks} blocks"
        return bucket

    def prefill(self, rows: int, tokens: int, blocks: int) -> Bucket | None:
        """The bucket for rows of up to so many query tokens; None if there is none for several rows.

        `blocks`: the most of one row, of its context alone if `flat`.
        """
        return self.find(Bucket(rows, tokens, blocks, prefill=True))

    def worth_joining(self, together: Bucket | None, apart: Iterable[Bucket | None]) -> bool:
        """Whether there is such a bucket, and it costs no more than those do together."""
        if together is None:
            return False
        return self._seconds(together) <= sum(self._seconds(bucket) for bucket in apart if bucket is not None)

    def largest(self) -> list[Bucket]:
        """One of each kind, for the memory they take."""
        if self.padded:
            return [next(iter(self._prefill)), next(iter(self._decode))]
        largest = self.prefill(1, self.longest_prefill, 1), self.decode(self._rows, 1)
        return [bucket for bucket in largest if bucket is not None]

    def to_warm_up(self, *, everything: bool = True) -> list[Bucket]:
        """All where every shape is compiled, else the largest."""
        return list(self) if everything and self.padded else self.largest()

    def __iter__(self) -> Iterator[Bucket]:
        """Every bucket, prefill before decode, the largest first."""
        yield from self._prefill
        yield from self._decode


class _Every:
    """Every number of rows, whole blocks of tokens, tables of one size."""

    def __init__(self, limits: Limits, *, prefill: bool) -> None:
        self._prefill, self._rows, self._block = prefill, limits.max_batch_size, limits.block_size
        self._longest = limits.longest_chunk if prefill else 1
        self._blocks = limits.seen_blocks(self._longest)

    def find(self, rows: int, tokens: int, _blocks: int) -> Bucket:
        padded = min(-(-tokens // self._block) * self._block, self._longest)
        return Bucket(rows, padded, self._blocks, self._prefill)

    def __iter__(self) -> Iterator[Bucket]:
        tokens = self._longest
        while tokens > 0:
            for rows in range(self._rows, 0, -1):
                yield self.find(rows, tokens, 0)
            tokens = (tokens - 1) // self._block * self._block


class _Chosen:
    """Finds the cheapest of some buckets that dominates a shape: three searches, once the table is there."""

    def __init__(self, buckets: list[Bucket], seconds: Callable[[Bucket], float]) -> None:
        self._buckets = buckets
        self._order = sorted(buckets, key=lambda bucket: (seconds(bucket), bucket))
        self._rows = sorted({bucket.rows for bucket in buckets})
        self._tokens = sorted({bucket.tokens for bucket in buckets})
        self._tables: dict[tuple[int, int], tuple[list[int], list[Bucket]]] = {}

    def find(self, rows: int, tokens: int, blocks: int) -> Bucket | None:
        place = bisect_left(self._rows, rows), bisect_left(self._tokens, tokens)
        if place not in self._tables:
            self._tables[place] = self._table(rows, tokens)
        sizes, buckets = self._tables[place]
        index = bisect_left(sizes, blocks)
        return buckets[index] if index < len(buckets) else None

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def _table(self, rows: int, tokens: int) -> tuple[list[int], list[Bucket]]:
        """The buckets for such a shape that have more blocks than every cheaper one, and their blocks."""
        sizes: list[int] = []
        buckets: list[Bucket] = []
        for bucket in self._order:
            if bucket.rows >= rows and bucket.tokens >= tokens and (not sizes or bucket.blocks > sizes[-1]):
                sizes.append(bucket.blocks)
                buckets.append(bucket)
        return sizes, buckets
