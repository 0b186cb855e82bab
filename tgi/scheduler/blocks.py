"""The KV blocks: which are free, which are shared, and what the full ones hold (the prefix cache).

A block is *in use* (by one sequence or several), or free; a free block may still be *cached*: it keeps
its tokens' keys and values until it is handed out again, least recently used first. A cached block is
found by what it holds and all that came before it: the key is (serial number of the block before it,
its own tokens). Serial numbers are never reused, so a key can neither collide nor go stale.

                 take                      release
    free ──────────────────▶ in use ──────────────────▶ free
      ▲                        │ register (full block)    and, if registered, cached
      └── share (a cached block is found again) ◀─────────┘

Where tokens see no more than a window, a sequence needs the blocks at the end of its chain only. So there the
pool remembers for a while what blocks held that were handed out again: chains go on after them.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence

import attrs

from tgi.footprint import first_block

ROOT = 0
"""Serial number that stands before the first block of a sequence."""
REMEMBERED = 4
"""Where there is a window, what blocks held is remembered of so many times as many as there are."""


@attrs.frozen
class BlockStatistics:
    """Counts of blocks; the padding block is in none of them."""

    total: int
    used: int
    cached: int
    """Free, but still holding a prefix."""


class BlockPool:
    """Blocks 1 .. total; block 0 takes the writes of padding rows and is never handed out."""

    def __init__(self, total: int, block_size: int, window: int | None = None) -> None:
        """`window`: how many tokens a token sees; None: all."""
        self.total = total
        self.block_size = block_size
        self.window = window
        self._users = [0] * (total + 1)
        self._empty = bytearray(b"\0" + b"\1" * total)
        """1 for each free block that caches nothing; a run of them is found by `find`."""
        self._empties = total
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Free and cached; the next to be reused comes first."""
        self._block_of: dict[tuple[int, bytes], tuple[int, int]] = {}
        """Key -> (block, serial); of a past one, block 0"""
        self._key_of: dict[int, tuple[int, bytes]] = {}
        self._past: OrderedDict[tuple[int, bytes], None] = OrderedDict()
        """Keys whose blocks were handed out again; the oldest comes first."""
        self._serial = ROOT
        self._hand = 1
        """Where the next sequence looks for room."""

    @property
    def available(self) -> int:
        """Blocks that `take` could give."""
        return self._empties + len(self._cached)

    def statistics(self) -> BlockStatistics:
        """Counts for metrics and logs."""
        return BlockStatistics(self.total, self.total - self.available, len(self._cached))

    def __repr__(self) -> str:
        return f"<BlockPool {self.statistics()}>"

    def first_block(self, position: int) -> int:
        """Number of the first of its blocks that a sequence needs for the token at this position."""
        return first_block(position, self.window, self.block_size)

    def take(self, count: int, after: int = 0, room: int = 0) -> list[int]:
        """Hand out `count` blocks, in ascending runs as long as possible: attention reads a run in place.

        `after` is the last block the sequence has (0: none); `room`, for a new one, how many it may come to
        need, so that its neighbours start beyond that. Raises IndexError if there are not enough.
        """
        if count > self.available:
            raise IndexError(f"{count} blocks wanted, {self.available} free")
        taken: list[int] = []
        if after:
            while len(taken) < count and after < self.total and self._empty[after + 1]:
                after += 1
                taken.append(self._occupy(after))
        missing = count - len(taken)
        if missing and self._empties >= missing:
            taken += self._take_run(missing, max(room, missing))
        elif missing:
            taken += sorted(self._take_any() for _ in range(missing))
        return taken

    def share(self, tokens: Sequence[int], limit: int) -> tuple[list[int], int]:
        """The longest cached chain of at most `limit` full blocks that `tokens` begin with, and its serial.

        Those that the token after them needs, `first_block` and on, are in use afterwards, like those of
        `take`; for all before them there are zeros.
        """
        size, serial, chain = self.block_size, ROOT, list[int]()
        count, last, whole = 0, ROOT, 0  # `whole`: from there on no block is missing
        for start in range(0, limit * size, size):
            found = self._block_of.get(self._key(serial, tokens[start : start + size]))
            if found is None:
                break
            block, serial = found
            chain.append(block)
            if not block:
                whole = len(chain)
            if self.first_block(start + size) >= whole:
                count, last = len(chain), serial
        first = self.first_block(count * size)
        for block in chain[first:count]:
            if not self._users[block]:
                del self._cached[block]
            self._users[block] += 1
        return [0] * first + chain[first:count], last

    def register(self, block: int, before: int, tokens: Sequence[int]) -> int:
        """Say that a block in use is full of `tokens`, after a chain that ends in serial `before`.

        Returns the serial of this content, whichever block holds it.
        """
        key = self._key(before, tokens)
        known, serial = self._block_of.get(key, (0, 0))
        if known:
            return serial
        if serial:
            del self._past[key]
        else:
            self._serial = serial = self._serial + 1
        self._block_of[key] = (block, serial)
        self._key_of[block] = key
        return serial

    def release(self, blocks: Sequence[int]) -> None:
        """Give up blocks of one sequence; the end of its chain will be reused first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._empty[block] = 1
                    self._empties += 1

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """Assert that blocks are used by exactly these block tables and no block is lost. For tests."""
        users = [0] * (self.total + 1)
        for table in tables:
            for block in table:
                users[block] += 1
        assert users == self._users, "a block's users are miscounted"
        assert not users[0], "the padding block was handed out"
        free = {block for block in range(1, self.total + 1) if not users[block]}
        empty = {block for block in range(self.total + 1) if self._empty[block]}
        assert empty | set(self._cached) == free, "a block is lost"
        assert not empty & set(self._cached), "a block is free twice"
        assert len(empty) == self._empties, "empty blocks are miscounted"

    def _key(self, before: int, tokens: Sequence[int]) -> tuple[int, bytes]:
        return before, array("i", tokens).tobytes()

    def _occupy(self, block: int) -> int:
        self._users[block] = 1
        self._empty[block] = 0
        self._empties -= 1
        return block

    def _take_run(self, count: int, room: int) -> list[int]:
        """`count` empty blocks, in one run if there is one, with room to grow if there is."""
        for length in (room, count):
            start = self._find_run(length)
            if start > 0:
                self._hand = start + room
                return [self._occupy(block) for block in range(start, start + count)]
        taken, block = list[int](), 0
        while len(taken) < count:
            block = self._empty.find(1, block + 1)
            taken.append(self._occupy(block))
        return taken

    def _find_run(self, length: int) -> int:
        run = b"\1" * length
        start = self._empty.find(run, min(self._hand, self.total))
        return start if start > 0 else self._empty.find(run)

    def _take_any(self) -> int:
        """One free block: an empty one, else the least recently used, whose content is forgotten."""
        if self._empties:
            return self._occupy(self._empty.find(1))
        block, _ = self._cached.popitem(last=False)
        key = self._key_of.pop(block)
        _, serial = self._block_of.pop(key)
        if self.window is not None:
            self._block_of[key] = (0, serial)
            self._past[key] = None
            if len(self._past) > REMEMBERED * self.total:
                del self._block_of[self._past.popitem(last=False)[0]]
        self._users[block] = 1
        return block
