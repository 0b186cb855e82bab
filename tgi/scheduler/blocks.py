"""The KV blocks of a layer group: free, shared, and full ones with their content (the prefix cache).

A block is *in use* by one or more sequences, or free. A free block may still be *cached*: it keeps its
tokens' keys and values until it is handed out again, least recently used first. The key of a cached block
is (serial number of the block before it, its own tokens), so it stands for all tokens up to its end. Serial
numbers are never reused, so a key can neither collide nor go stale.

                 take                      release
    free ──────────────────▶ in use ──────────────────▶ free
      ▲                        │ register (full block)    and, if registered, cached
      └── share (a cached block is found again) ◀─────────┘

With an attention window, a sequence needs only the blocks at the end of its chain. There the pool remembers
for a while the keys of blocks that were handed out again, so that chains can be followed past them.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence

import attrs

from tgi.footprint import first_block

ROOT = 0
"""Serial number before the first block of a sequence."""
REMEMBERED = 4
"""With a window: keys remembered of blocks that were handed out again, as a multiple of the pool's size."""


@attrs.frozen
class BlockStatistics:
    """Counts of blocks, without the padding block."""

    total: int
    used: int
    cached: int
    """Free blocks that still hold a prefix."""


class BlockPool:
    """Blocks 1 to `total`. Block 0 takes the writes of padding rows and is never handed out."""

    def __init__(self, total: int, block_size: int, window: int | None = None) -> None:
        """`window` is the number of tokens that a token attends to, itself included; None: all."""
        self.total = total
        self.block_size = block_size
        self.window = window
        self._users = [0] * (total + 1)
        self._empty = bytearray(b"\0" + b"\1" * total)
        """1 for each free block that caches nothing; `find` finds a run of them."""
        self._empties = total
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Free blocks that are cached, the next to be reused first."""
        self._block_of: dict[tuple[int, bytes], tuple[int, int]] = {}
        """(block, serial) of each key; block 0 if it was handed out again."""
        self._key_of: dict[int, tuple[int, bytes]] = {}
        self._past: OrderedDict[tuple[int, bytes], None] = OrderedDict()
        """Keys whose blocks were handed out again, the oldest first."""
        self._serial = ROOT
        self._hand = 1
        """Block from which the next sequence looks for room."""

    @property
    def available(self) -> int:
        """Number of blocks that `take` can give."""
        return self._empties + len(self._cached)

    def statistics(self) -> BlockStatistics:
        """Count the blocks, for metrics and logs."""
        return BlockStatistics(self.total, self.total - self.available, len(self._cached))

    def __repr__(self) -> str:
        return f"<BlockPool {self.statistics()}>"

    def first_block(self, position: int) -> int:
        """Return the index in a sequence of the first block that the token at `position` attends to."""
        return first_block(position, self.window, self.block_size)

    def take(self, count: int, after: int = 0, room: int = 0) -> list[int]:
        """Hand out `count` blocks in ascending runs, as long as possible: attention reads a run in place.

        `after` is the sequence's last block, or 0. `room` is the number of blocks that a new sequence may
        come to need, so that the next one starts beyond them. Raises IndexError if too few are available.
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
        """Return the longest cached chain of at most `limit` blocks that `tokens` begin with, and its serial.

        The blocks that the next token attends to, from `first_block` on, are in use afterwards, as those of
        `take` are; zeros stand for the blocks before them.
        """
        size, serial, chain = self.block_size, ROOT, list[int]()
        count, last, whole = 0, ROOT, 0  # no block is missing from index `whole` on
        for start in range(0, limit * size, size):
            known = self._block_of.get(self._key(serial, tokens[start : start + size]))
            if known is None:
                break
            block, serial = known
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
        """Record that a block in use is full of `tokens`, after a chain that ends in serial `before`.

        Returns the serial of this content, even if another block holds it.
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
        """Give up blocks of one sequence; the end of its chain is reused first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._key_of:
                    self._cached[block] = None
                else:
                    self._empty[block] = 1
                    self._empties += 1

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """Assert that exactly these block tables use blocks, and that no block is lost. For tests."""
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
        """Take `count` empty blocks, in one run if possible, with room to grow if possible."""
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
        """Take one free block: an empty one, else the least recently used, whose content is forgotten."""
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
