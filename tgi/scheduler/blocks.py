"""KV blocks: a pool for each layer group, and the prefixes that all pools know.

A block is *in use* by one or more sequences, or free. A free block may still be *cached* (the prefix cache):
it keeps its tokens' keys and values until it is handed out again, least recently used first. The content of a
cached block has a serial number, which stands for all tokens up to its end: it is found by the serial number
before it and the block's own tokens (`Prefixes`). Serial numbers are never reused, so they can neither
collide nor go stale. Pools share them, those of all replicas too.

                 take                      release
    free ──────────────────▶ in use ──────────────────▶ free
      ▲                        │ register (full block)    and, if registered, cached
      └── share (a cached block is found again) ◀─────────┘

Layers with the same attention window form a group. A full-attention group keeps every block of a sequence; a
windowed one frees the blocks that no later token attends to, and needs only the end of a cached chain: its
pool remembers for a while the serials of blocks that were handed out again, to follow chains past them.
"""

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from collections.abc import Sequence as Items
from itertools import pairwise

import attrs

from tgi.limits import first_block

from .sequence import ROOT

REMEMBERED = 4
"""Maximum serials of reused blocks that a windowed pool remembers, as a multiple of its blocks."""


@attrs.frozen
class BlockStatistics:
    """Counts of blocks, without the padding block."""

    total: int
    used: int
    cached: int
    """Free blocks that still hold a prefix."""

    def __add__(self, other: "BlockStatistics") -> "BlockStatistics":
        return BlockStatistics(self.total + other.total, self.used + other.used, self.cached + other.cached)


class Prefixes:
    """Serial numbers of the contents of full blocks, and the pools that know each of them."""

    def __init__(self) -> None:
        self.members = 0
        """Number of pools that have joined; each has its number as its bit."""
        self._known: dict[tuple[int, bytes], tuple[int, int]] = {}
        """(serial, bits of the pools) by the serial before a block, and its tokens."""
        self._key_of: dict[int, tuple[int, bytes]] = {}
        self._latest = ROOT

    def join(self) -> int:
        """Return the number of a new pool."""
        self.members += 1
        return self.members - 1

    def find(self, before: int, tokens: Items[int]) -> tuple[int, int]:
        """Return the serial of `tokens` after a chain that ends in serial `before`, and who knows it.

        The second number has the bit of each pool that does. Both are 0 if none does.
        """
        return self._known.get(_key(before, tokens), (0, 0))

    def depths(self, tokens: Items[int], limit: int, size: int, root: int) -> dict[int, int]:
        """Return how many of the first `limit` blocks of `tokens` each pool knows, for those that know any.

        A block has `size` tokens; `root` is the serial before the first one.
        """
        serial, holders = root, [-1]
        for start in range(0, limit * size, size):
            serial, knowing = self.find(serial, tokens[start : start + size])
            if not holders[-1] & knowing:
                break
            holders.append(holders[-1] & knowing)
        last = [these & ~next_ones for these, next_ones in pairwise([*holders[1:], 0])]
        return {pool: depth for depth, pools in enumerate(last, 1) for pool in _bits(pools)}

    def add(self, pool: int, before: int, tokens: Items[int]) -> int:
        """Note that a pool knows `tokens` after a chain that ends in serial `before`; return their serial."""
        key = _key(before, tokens)
        serial, knowing = self._known.get(key, (0, 0))
        if not serial:
            self._latest = serial = self._latest + 1
            self._key_of[serial] = key
        self._known[key] = serial, knowing | 1 << pool
        return serial

    def discard(self, pool: int, serial: int) -> None:
        """Note that a pool has forgotten a content; its serial ends with the last pool that knows it."""
        key = self._key_of[serial]
        _, knowing = self._known[key]
        if left := knowing & ~(1 << pool):
            self._known[key] = serial, left
        else:
            del self._known[key], self._key_of[serial]


def _key(before: int, tokens: Items[int]) -> tuple[int, bytes]:
    return before, array("i", tokens).tobytes()


def _bits(number: int) -> Iterator[int]:
    """Yield the places of the bits that are set."""
    while number:
        place = number.bit_length() - 1
        yield place
        number ^= 1 << place


class BlockPool:
    """Blocks 1 to `total`. Block 0 takes the writes of padding rows and is never handed out."""

    def __init__(
        self,
        total: int,
        block_size: int,
        window: int | None = None,
        prefixes: Prefixes | None = None,
        *,
        lowest: bool = False,
    ) -> None:
        """`window` is the number of tokens that a token attends to, itself included; None: all.

        `prefixes` are shared with other pools, if there are any. `lowest`: the lowest free blocks are handed
        out first, wherever they are.
        """
        self.total = total
        self.block_size = block_size
        self.window = window
        self._lowest = lowest
        self.prefixes = Prefixes() if prefixes is None else prefixes
        self.number = self.prefixes.join()
        self._users = [0] * (total + 1)
        self._empty = bytearray(b"\0" + b"\1" * total)
        """1 for each free block that caches nothing; `find` finds a run of them."""
        self.empties = total
        """Number of those."""
        self._cached: OrderedDict[int, None] = OrderedDict()
        """Free blocks that are cached, the next to be reused first."""
        self._block_of: dict[int, int] = {}
        """Block with the content of each serial; 0 if it was handed out again."""
        self._serial_of: dict[int, int] = {}
        self._past: OrderedDict[int, None] = OrderedDict()
        """Serials whose blocks were handed out again, the oldest first."""
        self._hand = 1
        """Block from which the next sequence looks for room."""

    @property
    def available(self) -> int:
        """Number of blocks that `take` can give."""
        return self.empties + len(self._cached)

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
        if after and not self._lowest:
            while len(taken) < count and after < self.total and self._empty[after + 1]:
                after += 1
                taken.append(self._occupy(after))
        missing = count - len(taken)
        if missing and self.empties >= missing:
            taken += self._take_run(missing, max(room, missing))
        elif missing:
            taken += sorted(self._take_any() for _ in range(missing))
        return taken

    def share(self, tokens: Items[int], limit: int, root: int = ROOT) -> tuple[list[int], int]:
        """Return the longest cached chain of at most `limit` blocks that `tokens` begin with, and its serial.

        `root` is the serial before the chain, which only the sequences with one LoRA adapter share.
        The blocks that the next token attends to, from `first_block` on, are in use afterwards, as those of
        `take` are; zeros stand for the blocks before them.
        """
        chain, last = self._chain(tokens, limit, root)
        first = self.first_block(len(chain) * self.block_size)
        for block in chain[first:]:
            if not self._users[block]:
                del self._cached[block]
            self._users[block] += 1
        return [0] * first + chain[first:], last

    def count_shared(self, tokens: Items[int], limit: int, root: int = ROOT) -> int:
        """Return the length of the chain that `share` would return, and change nothing."""
        return len(self._chain(tokens, limit, root)[0])

    def _chain(self, tokens: Items[int], limit: int, root: int) -> tuple[list[int], int]:
        """Return the longest chain of at most `limit` blocks that `tokens` can go on from, and its serial.

        Blocks that were handed out again are 0; none of them is one that the next token attends to.
        """
        size, serial, chain = self.block_size, root, list[int]()
        count, last, whole = 0, root, 0  # no block is missing from index `whole` on
        for start in range(0, limit * size, size):
            serial, _ = self.prefixes.find(serial, tokens[start : start + size])
            block = self._block_of.get(serial)
            if block is None:
                break
            chain.append(block)
            if not block:
                whole = len(chain)
            if self.first_block(start + size) >= whole:
                count, last = len(chain), serial
        return chain[:count], last

    def register(self, block: int, before: int, tokens: Items[int]) -> int:
        """Record that a block in use is full of `tokens`, after a chain that ends in serial `before`.

        Block 0 stands for one that was given up before its tokens were known. Returns the serial of this
        content, even if another block holds it.
        """
        serial = self.prefixes.add(self.number, before, tokens)
        if block and not self._block_of.get(serial):
            self._past.pop(serial, None)
            self._block_of[serial] = block
            self._serial_of[block] = serial
        elif serial not in self._block_of:
            self._remember(serial)
        return serial

    def release(self, blocks: Items[int]) -> None:
        """Give up blocks of one sequence; the end of its chain is reused first."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if not self._users[block]:
                if block in self._serial_of:
                    self._cached[block] = None
                else:
                    self._empty[block] = 1
                    self.empties += 1

    def clear(self) -> None:
        """Forget what blocks hold, none of which is in use."""
        for serial in list(self._block_of):
            self._forget(serial)
        for kept in (self._cached, self._serial_of, self._past):
            kept.clear()
        self._empty[1:] = b"\1" * self.total
        self.empties = self.total
        self._hand = 1

    def _occupy(self, block: int) -> int:
        self._users[block] = 1
        self._empty[block] = 0
        self.empties -= 1
        return block

    def _take_run(self, count: int, room: int) -> list[int]:
        """Take `count` empty blocks, in one run if possible, with room to grow if possible."""
        for length in () if self._lowest else (room, count):
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
        if self.empties:
            return self._occupy(self._empty.find(1))
        block, _ = self._cached.popitem(last=False)
        serial = self._serial_of.pop(block)
        if self.window is None:
            self._forget(serial)
        else:
            self._remember(serial)
        self._users[block] = 1
        return block

    def _remember(self, serial: int) -> None:
        """Keep the serial of a content that no block has any more, and forget the oldest such."""
        self._block_of[serial] = 0
        self._past[serial] = None
        if len(self._past) > REMEMBERED * self.total:
            self._forget(self._past.popitem(last=False)[0])

    def _forget(self, serial: int) -> None:
        del self._block_of[serial]
        self.prefixes.discard(self.number, serial)
