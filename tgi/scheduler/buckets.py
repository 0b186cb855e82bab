"""The shape that each step is padded to.

A device that compiles has a set of buckets, and a step gets the cheapest of those that dominate it. Every
step that the policy can plan has one; there is no fallback. Any other device has a bucket for every shape.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from tgi.limits import Limits
from tgi.plugins import DeviceSpec

from .bucketing import Bucketing
from .costs import Costs
from .shapes import Bucket, Reads, Space


class Buckets:
    """What the policy asks, for one device and one set of limits."""

    def __init__(
        self, space: Space, chosen: Iterable[Bucket] | None, costs: Costs, *, flat: bool = False
    ) -> None:
        """`chosen`: None stands for every shape. `costs` tell which of them is the cheapest."""
        self.padded = chosen is not None
        """Whether the device computes the padding, so that it counts among the query tokens."""
        self.flat = flat
        """See `DeviceSpec.flat`."""
        self.longest_prefill = space.longest
        """Query tokens of the largest chunk of one sequence."""
        self.max_prefill = space.prefill_tokens
        """Most query tokens of a prefill step of several rows."""
        self.reads = Reads()
        """What the attention of steps reads; nothing if not `flat`."""
        self._costs, self._rows = costs, space.rows
        every = None if chosen is None else list(chosen)
        self._decode, self._prefill = (
            _Every(space, prefill=kind)
            if every is None
            else _Chosen([bucket for bucket in every if bucket.prefill is kind], costs)
            for kind in (False, True)
        )
        if flat:
            self.reads = space.most_reads(self)

    @classmethod
    def from_limits(
        cls,
        limits: Limits,
        device: DeviceSpec,
        bucketing: Bucketing | None = None,
        *,
        prefixes: bool = True,
        blocks: int | None = None,
        within: Reads | None = None,
    ) -> "Buckets":
        """Those of a device. `prefixes`: whether sequences share blocks; `blocks`: in the KV cache.

        `within`: the `reads` of the buckets that the memory was planned for; these ones read no more. Takes
        up to a second where the device compiles. Raises OptionError.
        """
        bucketing = bucketing or Bucketing(costs=Costs.of(block_size=limits.block_size))
        space = Space.from_limits(limits, prefixes=prefixes, blocks=blocks, within=within)
        chosen: Iterable[Bucket] | None = None
        if device.compiles:
            chosen = bucketing.choose(space, blocks) if device.flat else doubling(space)
        return cls(space, chosen, bucketing.costs, flat=device.compiles and device.flat)

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
        return self._costs.seconds(together) <= sum(self._costs.seconds(b) for b in apart if b is not None)

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

    def __init__(self, space: Space, *, prefill: bool) -> None:
        self._space, self._prefill = space, prefill

    def find(self, rows: int, tokens: int, _blocks: int) -> Bucket:
        space = self._space
        if self._prefill:
            return Bucket(rows, space.token_size(tokens), space.table_blocks, prefill=True)
        return Bucket(rows, 1, space.row_blocks)

    def __iter__(self) -> Iterator[Bucket]:
        tokens = self._space.longest if self._prefill else 1
        while tokens > 0:
            for rows in range(self._space.rows, 0, -1):
                yield self.find(rows, tokens, 0)
            tokens = (tokens - 1) // self._space.block * self._space.block


class _Chosen:
    """Finds the cheapest of some buckets that dominates a shape: three searches, once the table is there."""

    def __init__(self, buckets: list[Bucket], costs: Costs) -> None:
        self._buckets = buckets
        self._order = sorted(buckets, key=lambda bucket: (costs.seconds(bucket), bucket))
        self._rows = sorted({bucket.rows for bucket in buckets})
        self._tokens = sorted({bucket.tokens for bucket in buckets})
        self._tables: dict[tuple[int, int], tuple[list[int], list[Bucket]]] = {}

    def find(self, rows: int, tokens: int, blocks: int) -> Bucket | None:
        place = bisect_left(self._rows, rows), bisect_left(self._tokens, tokens)
        if place not in self._tables:
            self._tables[place] = self._table(rows, tokens)
        most, buckets = self._tables[place]
        index = bisect_left(most, blocks)
        return buckets[index] if index < len(buckets) else None

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def _table(self, rows: int, tokens: int) -> tuple[list[int], list[Bucket]]:
        """By number of blocks: those buckets that have more of them than all that are cheaper."""
        most: list[int] = []
        buckets = []
        for bucket in self._order:
            if bucket.rows >= rows and bucket.tokens >= tokens and (not most or bucket.blocks > most[-1]):
                most.append(bucket.blocks)
                buckets.append(bucket)
        return most, buckets


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


def doubling(space: Space) -> Iterator[Bucket]:
    """For block tables of a row each: sizes that double, in every dimension."""
    rows, blocks = geometric(1, space.rows, 2)[::-1], geometric(1, space.table_blocks, 2)[::-1]
    for tokens in geometric(min(space.block, space.longest), space.longest, 2, space.block)[::-1]:
        for count in rows:
            if count == 1 or count * tokens <= space.prefill_tokens:
                yield from (Bucket(count, tokens, size, prefill=True) for size in blocks)
    for count in rows:
        yield from (Bucket(count, 1, size) for size in geometric(1, space.row_blocks, 2)[::-1])
