"""The allocator that gives a sequence its blocks in the pools of all layer groups at once."""

from collections.abc import Sequence as Items

import attrs

from tgi.limits import Limits

from .blocks import BlockPool
from .sequence import BlockTable, Sequence

GROW_BLOCKS = 4
"""Blocks that a decoding sequence takes at once while plenty are free, so that its table stays in runs."""


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
