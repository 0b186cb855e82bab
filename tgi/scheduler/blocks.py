"""KV blocks: a pool per layer group, and the allocator that gives sequences theirs in every group at once.

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

from tgi.limits import Limits, first_block

from .sequence import ROOT, BlockTable, Sequence

GROW_BLOCKS = 4
"""Blocks that a decoding sequence takes at once while plenty are free, so that its table stays in runs."""
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

    def check(self, tables: Items[Items[int]]) -> None:
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
        assert len(empty) == self.empties, "empty blocks are miscounted"
        bit = 1 << self.number
        known = {serial for serial, knowing in self.prefixes._known.values() if knowing & bit}
        assert known == set(self._block_of), "others know of other prefixes"

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


@attrs.define(eq=False)
class BlockAllocator:
    """Gives sequences their blocks in every group and offers full ones to the prefix cache."""

    limits: Limits
    pools: Items[BlockPool]
    """One for each layer group, in the order of the groups; all have the same block size."""
    prefix_limit: int | None = None
    """Longest prompt, in tokens, that shares prefixes, and the depth to which blocks are cached. None: no
    bound; 0: no prefix cache."""
    block_size: int = attrs.field(init=False)
    """Tokens in a block."""
    widest: BlockPool = attrs.field(init=False)
    """Pool of the group that attends the farthest; no group lists more blocks for a row than this."""

    def __attrs_post_init__(self) -> None:
        self.block_size = self.pools[0].block_size
        self.widest = max(self.pools, key=lambda pool: float("inf") if pool.window is None else pool.window)

    def admit(self, sequence: Sequence, running: int) -> bool:
        """Give a sequence blocks for its tokens and one more, cached ones first; False: nothing was given.

        A windowed group gives no more than a sequence can have at once. Each of the `running` sequences is
        left a block to grow into.
        """
        tables = self._share(sequence)
        hit, known, wanted = len(tables[0].blocks), len(sequence.tokens), self._wanted(sequence)
        groups = [
            (pool, table, table.freed + self.limits.group_blocks(pool.window))
            for pool, table in zip(self.pools, tables, strict=True)
        ]
        missing = [min(self._count(known + 1), end) - hit for _, _, end in groups]
        if any(pool.available < n + running for (pool, _, _), n in zip(groups, missing, strict=True)):
            self._release(tables)
            return False
        for (pool, table, end), count in zip(groups, missing, strict=True):
            after = table.blocks[-1] if table.blocks else 0
            table.blocks += pool.take(count, after, room=min(wanted, end) - hit)
        sequence.tables, sequence.registered, sequence.computed = tables, hit, hit * self.block_size
        sequence.settled, sequence.unsent = 0, True
        return True

    def reserve(self, sequence: Sequence, tokens: int, running: int) -> bool:
        """Give a sequence blocks for `tokens` tokens, and free those that no token to come attends to.

        Takes some ahead while plenty are free for all `running` sequences. False: too few are free, and
        none was given. Changes nothing while `tokens` are at most `sequence.settled`.
        """
        needed, settled = self._count(tokens), []
        groups = list(zip(self.pools, sequence.tables, strict=True))
        for pool, table in groups:
            first = pool.first_block(sequence.computed)
            if first > table.freed:
                pool.release(table.blocks[table.freed : first])
                table.freed = first
        if any(pool.available < needed - len(table.blocks) for pool, table in groups):
            return False
        for pool, table in groups:
            count = needed - len(table.blocks)
            if count > 0:
                if pool.available > GROW_BLOCKS * running and not self.limits.contiguous:
                    count = max(count, min(self._wanted(sequence) - len(table.blocks), GROW_BLOCKS))
                table.blocks += pool.take(count, after=table.blocks[-1])
                sequence.unsent = True
            settled.append(len(table.blocks) * self.block_size)
            if pool.window is not None:
                settled.append((table.freed + 1) * self.block_size + pool.window - 1)
        sequence.settled = min(settled)
        return True

    def clear(self) -> None:
        """Forget every block: the ranks were lost with all keys and values."""
        for pool in self.pools:
            pool.clear()

    def release(self, sequence: Sequence) -> None:
        """Take back all blocks of a sequence."""
        self._release(sequence.tables)
        sequence.tables = []

    def register(self, sequence: Sequence) -> None:
        """Offer every full block of known tokens to the prefix cache.

        A step that was only sent counts as executed: every step that uses the block comes after it. A block
        that steps in flight have left behind their window may have been freed before its tokens are known.
        """
        size = self.block_size
        full = min(sequence.computed, len(sequence.tokens), self._shareable(sequence)) // size
        for index in range(sequence.registered, full):
            content = sequence.tokens[index * size : index * size + size]
            for pool, table in zip(self.pools, sequence.tables, strict=True):
                block = table.blocks[index] if index >= table.freed else 0
                table.serial = pool.register(block, table.serial, content)
            sequence.registered = index + 1

    def check(self, sequences: Items[Sequence]) -> None:
        """Assert that these sequences use exactly the blocks that are in use. For tests."""
        for group, pool in enumerate(self.pools):
            pool.check([s.tables[group].blocks[s.tables[group].freed :] for s in sequences])

    def _count(self, tokens: int) -> int:
        """Return how many blocks hold `tokens` tokens."""
        return -(-tokens // self.block_size)

    def _wanted(self, sequence: Sequence) -> int:
        """Return how many blocks a sequence has if it generates all tokens that it may."""
        return self._count(len(sequence.prompt) + sequence.max_new_tokens)

    def cached_tokens(self, sequence: Sequence) -> int:
        """Return the number of a waiting sequence's tokens that are cached now."""
        limit = self.shareable_blocks(sequence)
        while True:
            hits = {pool.count_shared(sequence.tokens, limit, sequence.root) for pool in self.pools}
            if len(hits) == 1:
                return hits.pop() * self.block_size
            limit = min(hits)

    def _shareable(self, sequence: Sequence) -> int:
        """Number of leading tokens whose keys and values other sequences may use."""
        limit = len(sequence.tokens) if self.prefix_limit is None else self.prefix_limit
        return limit if len(sequence.prompt) <= limit else 0

    def shareable_blocks(self, sequence: Sequence) -> int:
        """Return how many blocks of a sequence may be found in the cache.

        The last token is always computed, and so are all whose log-probabilities are wanted.
        """
        if sequence.prompt_top is not None and not sequence.generated:
            return 0
        return min(len(sequence.tokens) - 1, self._shareable(sequence)) // self.block_size

    def _share(self, sequence: Sequence) -> list[BlockTable]:
        """Return tables of the longest prefix that is cached in every group, with its blocks in use."""
        limit = self.shareable_blocks(sequence)
        while True:
            tables = []
            for pool in self.pools:
                blocks, serial = pool.share(sequence.tokens, limit, sequence.root)
                freed = pool.first_block(len(blocks) * self.block_size)
                tables.append(BlockTable(blocks, freed, serial=serial))
            hits = {len(table.blocks) for table in tables}
            if len(hits) == 1:
                return tables
            self._release(tables)
            limit = min(hits)

    def _release(self, tables: Items[BlockTable]) -> None:
        for pool, table in zip(self.pools, tables, strict=True):
            pool.release(table.blocks[table.freed :])
