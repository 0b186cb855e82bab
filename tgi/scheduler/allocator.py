"""KV blocks of sequences: one table and one pool per layer group, given all or nothing.

Layers with the same attention window form a group. A full-attention group keeps every block of a sequence;
a windowed one frees the blocks that no later token attends to.
"""

from collections.abc import Sequence as Items

import attrs

from tgi.limits import Limits

from .blocks import BlockPool, BlockStatistics
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

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.pools[0].block_size

    @property
    def widest(self) -> BlockPool:
        """Pool of the group that attends the farthest; no group lists more blocks for a row than this."""
        return max(self.pools, key=lambda pool: float("inf") if pool.window is None else pool.window)

    def statistics(self) -> BlockStatistics:
        """Count the blocks of the widest group."""
        return self.widest.statistics()

    def admit(self, sequence: Sequence, running: int) -> bool:
        """Give a sequence blocks for its tokens and one more, cached ones first; False: nothing was given.

        A windowed group gives no more than a sequence can have at once. Each of the `running` sequences is
        left a block to grow into.
        """
        size, known = self.block_size, len(sequence.tokens)
        shared = self._share(sequence)
        hit = len(shared[0].blocks)
        wanted = _count(len(sequence.prompt) + sequence.max_new_tokens, size)
        ends = [
            table.freed + self.limits.group_blocks(pool.window)
            for pool, table in zip(self.pools, shared, strict=True)
        ]
        missing = [min(_count(known + 1, size), end) - hit for end in ends]
        if any(p.available < count + running for p, count in zip(self.pools, missing, strict=True)):
            self._release(shared)
            return False
        for pool, table, end, count in zip(self.pools, shared, ends, missing, strict=True):
            after = table.blocks[-1] if table.blocks else 0
            table.blocks += pool.take(count, after, room=min(wanted, end) - hit)
        sequence.tables, sequence.registered, sequence.computed = shared, hit, hit * size
        return True

    def grow(self, sequence: Sequence, tokens: int, running: int) -> bool:
        """Make sure that a sequence has blocks for `tokens` tokens; False: nothing was given.

        Takes some ahead while plenty are free for all `running` sequences.
        """
        size = self.block_size
        missing = [max(_count(tokens, size) - len(table.blocks), 0) for table in sequence.tables]
        if any(pool.available < count for pool, count in zip(self.pools, missing, strict=True)):
            return False
        wanted = _count(len(sequence.prompt) + sequence.max_new_tokens, size)
        for pool, table, count in zip(self.pools, sequence.tables, missing, strict=True):
            if count and pool.available > GROW_BLOCKS * running:
                count = max(count, min(wanted - len(table.blocks), GROW_BLOCKS))
            if count:
                table.blocks += pool.take(count, after=table.blocks[-1])
        return True

    def free_behind(self, sequence: Sequence) -> None:
        """Free the blocks that none of the tokens still to be computed attends to."""
        for pool, table in zip(self.pools, sequence.tables, strict=True):
            first = pool.first_block(sequence.computed)
            if first > table.freed:
                pool.release(table.blocks[table.freed : first])
                table.freed = first

    def release(self, sequence: Sequence) -> None:
        """Take back all blocks of a sequence."""
        self._release(sequence.tables)
        sequence.tables = []

    def register(self, sequence: Sequence) -> None:
        """Offer every full block of known tokens to the prefix cache.

        A step that was only sent counts as executed: every step that uses the block comes after it. So a
        block has been offered before `free_behind` frees it.
        """
        size = self.block_size
        if len(sequence.tokens) < (sequence.registered + 1) * size:
            return  # nothing to do after most tokens
        full = min(sequence.computed, len(sequence.tokens), self._shareable(sequence)) // size
        for index in range(sequence.registered, full):
            content = sequence.tokens[index * size : index * size + size]
            for pool, table in zip(self.pools, sequence.tables, strict=True):
                table.serial = pool.register(table.blocks[index], table.serial, content)
            sequence.registered = index + 1

    def check(self, sequences: Items[Sequence]) -> None:
        """Assert that these sequences use exactly the blocks that are in use. For tests."""
        for group, pool in enumerate(self.pools):
            pool.check([s.tables[group].blocks[s.tables[group].freed :] for s in sequences])

    def _shareable(self, sequence: Sequence) -> int:
        """Number of leading tokens whose keys and values other sequences may use."""
        limit = len(sequence.tokens) if self.prefix_limit is None else self.prefix_limit
        return limit if len(sequence.prompt) <= limit else 0

    def _share(self, sequence: Sequence) -> list[BlockTable]:
        """Return tables of the longest prefix that is cached in every group, with its blocks in use.

        The last token is always computed, and so are all whose log-probabilities are wanted.
        """
        limit = min(len(sequence.tokens) - 1, self._shareable(sequence)) // self.block_size
        if sequence.wants_prompt_logprobs and not sequence.generated:
            limit = 0
        while True:
            tables = []
            for pool in self.pools:
                blocks, serial = pool.share(sequence.tokens, limit)
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


def _count(tokens: int, block_size: int) -> int:
    """Return how many blocks hold `tokens` tokens."""
    return -(-tokens // block_size)
