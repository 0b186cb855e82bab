"""A rank's share of something that is divided over all ranks."""

import attrs

from tgi.plugins import ConfigError


@attrs.frozen
class Shard:
    """Rank `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def cut(self, total: int, pieces: int | None = None) -> slice:
        """This rank's equal part of `total`, which may be cut into `pieces` only, or None: into any number.

        Where there are more ranks than pieces, neighbours have the same piece. Raises ConfigError where that
        does not come out even.
        """
        ranks = self.size if pieces is None else min(pieces, self.size)
        if total % ranks or self.size % ranks or (pieces is not None and pieces % ranks):
            what = f"{total}" if pieces in (None, total) else f"{total} in {pieces} pieces"
            raise ConfigError(f"{what} cannot be divided over {self.size} ranks")
        part, place = total // ranks, self.rank * ranks // self.size
        return slice(place * part, (place + 1) * part)

    def kv_heads(self, total: int) -> slice:
        """The key/value heads of this rank: those that its share of the query heads reads."""
        return self.cut(total, total)

    def rows(self, total: int) -> slice:
        """This rank's part of any number of rows: `share` each, of which the last ranks may lack some."""
        share = self.share(total)
        return slice(min(total, self.rank * share), min(total, (self.rank + 1) * share))

    def share(self, total: int) -> int:
        """Rows of every rank, with those that are missing."""
        return -(-total // self.size)
