"""A rank's share of something that is divided over all ranks."""

import attrs


@attrs.frozen
class Shard:
    """Rank `rank` of `size`."""

    rank: int = 0
    size: int = 1

    def cut(self, total: int) -> slice:
        """This rank's equal part of `total`. Raises ValueError where it does not divide."""
        if total % self.size:
            raise ValueError(f"{total} does not divide over {self.size} ranks")
        part = total // self.size
        return slice(self.rank * part, (self.rank + 1) * part)
