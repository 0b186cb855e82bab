"""A rank's share of a tensor that is divided over all ranks."""

from collections.abc import Sequence

import attrs

from tgi.plugins import ConfigError


class DivisionError(ConfigError):
    """Something cannot be divided evenly over this number of ranks."""


@attrs.frozen
class Shard:
    """Rank `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def cut(self, total: int, pieces: int | None = None) -> slice:
        """Return this rank's equal share of `total` indices.

        `pieces` stay whole, as heads do: more ranks than pieces have the same piece as their neighbours.
        Raises DivisionError where the shares are not equal.
        """
        if not divides(total, pieces, self.size):
            what = f"{total}" if pieces in (None, total) else f"{total} in {pieces} pieces"
            raise DivisionError(f"{what} cannot be divided over {self.size} ranks")
        shares = self.size if pieces is None else min(pieces, self.size)
        length, place = total // shares, self.rank * shares // self.size
        return slice(place * length, (place + 1) * length)

    def kv_heads(self, total: int) -> slice:
        """Return the key/value heads that this rank's share of the query heads reads."""
        return self.cut(total, total)

    def rows(self, total: int) -> slice:
        """Return this rank's share of any number of rows; the last ranks may have fewer than `share`."""
        share = self.share(total)
        return slice(min(total, self.rank * share), min(total, (self.rank + 1) * share))

    def share(self, total: int) -> int:
        """Return the number of rows of every rank but the last ones."""
        return -(-total // self.size)


@attrs.frozen(eq=False)
class RecordingShard(Shard):
    """The only rank of a model, remembering which divisions several ranks would need."""

    cuts: set[tuple[int, int | None]] = attrs.field(factory=set)
    """Arguments of `cut` so far."""

    def cut(self, total: int, pieces: int | None = None) -> slice:
        """Return everything."""
        self.cuts.add((total, pieces))
        return slice(0, total)

    def possible_ranks(self, limit: int) -> list[int]:
        """Return the numbers of ranks up to `limit` for which every cut is possible; 1 if nothing is cut."""
        counts = range(1, limit + 1 if self.cuts else 2)
        return [count for count in counts if all(divides(*cut, count) for cut in self.cuts)]


def divides(total: int, pieces: int | None, ranks: int) -> bool:
    """Whether `total` can be divided equally over the ranks, with `pieces` (None: every index) kept whole."""
    shares = ranks if pieces is None else min(pieces, ranks)
    return total % shares == 0 and ranks % shares == 0 and (pieces is None or pieces % shares == 0)


@attrs.frozen
class TensorPart:
    """A rank's part of one tensor of the checkpoint."""

    name: str
    shape: Sequence[int]
    """Shape of the whole tensor."""
    dim: int = 0
    """Dimension that is divided."""
    indices: slice | None = None
    """Indices of the part in `dim`; None: all."""
    transposed: bool = False
    """Whether the checkpoint has the matrix with its two dimensions exchanged."""
    index: int | None = None
    """Index of the tensor in the first dimension of one that has `count` of them."""
    count: int = 0

    @property
    def module(self) -> str:
        """Name of the module whose weight the tensor is."""
        return self.name.removesuffix(".weight")

    @property
    def has_rows(self) -> bool:
        """Whether the checkpoint has the rows of the part one after another."""
        return not self.transposed and self.index is None and (not self.dim or self.size == list(self.shape))

    def rows(self, begin: int, end: int) -> "TensorPart":
        """Return some rows of a part that `has_rows`."""
        first = 0 if self.dim or self.indices is None else range(self.shape[0])[self.indices].start
        return attrs.evolve(self, dim=0, indices=slice(first + begin, first + end))

    @property
    def stored(self) -> list[int]:
        """Shape of the tensor in the checkpoint that the part is in."""
        shape = list(self.shape[::-1] if self.transposed else self.shape)
        return shape if self.index is None else [self.count, *shape]

    @property
    def size(self) -> list[int]:
        """The part's own shape."""
        size = list(self.shape)
        if self.indices is not None:
            size[self.dim] = len(range(size[self.dim])[self.indices])
        return size
