"""The block pool: nothing lost, nothing shared by accident, prefixes found, runs kept long."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tgi.scheduler.blocks import REMEMBERED, ROOT, BlockPool

from .invariants import check_pool


class PoolMachine(RuleBasedStateMachine):
    """Sequences come with token prefixes over a small alphabet, grow, and leave."""

    window: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12, 2, self.window)
        self.tables: list[tuple[list[int], list[int]]] = []
        self.content: dict[int, list[int]] = {}
        """Block -> all tokens up to its end, for every block that was registered and not handed out since."""

    @rule(tokens=st.lists(st.integers(0, 1), min_size=2, max_size=10))
    def arrive(self, tokens: list[int]) -> None:
        full = len(tokens) // 2
        blocks, serial = self.pool.share(tokens, full)
        first = self.pool.first_block(2 * len(blocks))
        assert not any(blocks[:first])
        for index, block in enumerate(blocks[first:], first):
            assert self.content[block] == tokens[: 2 * index + 2], "a hit of something else"
        missing = -(-len(tokens) // 2) - len(blocks)
        if missing > self.pool.available:
            self.pool.release(blocks[first:])
            return
        fresh = self.pool.take(missing, after=blocks[-1] if blocks else 0, room=missing + 1)
        for block in fresh:
            self.content.pop(block, None)
        for index in range(len(blocks), full):
            block = fresh[index - len(blocks)]
            before, serial = serial, self.pool.register(block, serial, tokens[2 * index : 2 * index + 2])
            assert serial > before
            self.content[block] = tokens[: 2 * index + 2]
        self.tables.append((blocks[first:] + fresh, tokens))

    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        if self.tables and self.pool.available:
            blocks, _ = data.draw(st.sampled_from(self.tables))
            if not blocks:
                return
            fresh = self.pool.take(1, after=blocks[-1])
            self.content.pop(fresh[0], None)
            blocks += fresh

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.tables:
            index = data.draw(st.integers(0, len(self.tables) - 1))
            self.pool.release(self.tables.pop(index)[0])

    @rule(data=st.data())
    def slide(self, data: st.DataObject) -> None:
        """A sequence gives up its first block while it goes on."""
        if self.tables and (blocks := data.draw(st.sampled_from(self.tables))[0]):
            self.pool.release([blocks.pop(0)])

    @invariant()
    def nothing_is_lost(self) -> None:
        check_pool(self.pool, [blocks for blocks, _ in self.tables])


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


class WindowMachine(PoolMachine):
    """Sequences whose tokens see three tokens."""

    window = 3


TestWindowPool = WindowMachine.TestCase
TestWindowPool.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_prefix_is_found_again_after_its_sequence_has_gone() -> None:
    pool = BlockPool(8, 2)
    blocks = pool.take(3)
    serial = ROOT
    for block, tokens in zip(blocks, ([1, 2], [3, 4]), strict=False):
        serial = pool.register(block, serial, tokens)
    pool.release(blocks)

    assert pool.share([1, 2, 3, 4, 5, 6], 3) == (blocks[:2], serial)
    assert pool.share([3, 4], 1) == ([], ROOT), "the same tokens after another beginning are not the same"


def chain_of(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks of one token each, registered and free again."""
    blocks, serial = pool.take(len(tokens)), ROOT
    for block, token in zip(blocks, tokens, strict=True):
        serial = pool.register(block, serial, [token])
    pool.release(blocks)
    return blocks


def test_with_a_window_the_blocks_at_the_end_of_a_chain_are_enough() -> None:
    """Two blocks are handed out again: of a chain of five, what its sixth token sees is still there."""
    pool = BlockPool(5, 1, window=3)
    blocks, serial = pool.take(5), ROOT
    for block, token in zip(blocks, [1, 2, 3, 4, 5], strict=True):
        serial = pool.register(block, serial, [token])
    for block in blocks:  # as a sequence does that goes on
        pool.release([block])
    pool.take(2)

    found, end = pool.share([1, 2, 3, 4, 5, 6], 5)
    assert (found, end) == ([0, 0, 0, *blocks[3:]], serial)
    assert pool.available == 1, "the third is not needed"
    assert pool.share([1, 2, 3, 4], 4)[0] == [0, 0, *blocks[2:4]]
    assert pool.share([1, 2, 3], 3) == ([], ROOT), "its fourth token would see the second"
    with pytest.raises(IndexError):
        pool.take(1)


def test_with_a_window_what_blocks_held_is_not_remembered_for_ever() -> None:
    pool = BlockPool(3, 1, window=2)
    for start in range(10, 10 + 3 * (REMEMBERED + 3), 3):
        chain_of(pool, [start, start + 1, start + 2])

    assert len(pool._past) == REMEMBERED * pool.total
    assert len(pool._block_of) == (REMEMBERED + 1) * pool.total


def test_with_a_window_a_chain_goes_on_where_its_beginning_was_computed_again() -> None:
    pool = BlockPool(4, 1, window=3)
    blocks, serial = pool.take(3), ROOT
    for block, token in zip(blocks, [1, 2, 3], strict=True):
        serial = pool.register(block, serial, [token])
    for block in blocks:
        pool.release([block])
    assert pool.take(2) == [blocks[0], 4]
    assert pool.share([1, 2], 2) == ([], ROOT)

    pool.register(4, ROOT, [1])
    assert pool.share([1, 2], 2)[0] == [4, blocks[1]]


def test_the_end_of_the_oldest_chain_is_reused_first() -> None:
    pool = BlockPool(4, 1)
    first, second = pool.take(2), pool.take(2)
    for blocks, tokens in ((first, [1, 2]), (second, [3, 4])):
        serial = ROOT
        for block, token in zip(blocks, tokens, strict=True):
            serial = pool.register(block, serial, [token])
    pool.release(first)
    pool.release(second)

    assert pool.take(1) == [first[1]]
    assert pool.share([1, 2], 2)[0] == [first[0]]
    assert pool.share([3, 4], 2)[0] == second


def test_sequences_that_grow_side_by_side_keep_one_run_each() -> None:
    pool = BlockPool(64, 16)
    tables = [pool.take(4, room=8) for _ in range(4)]
    for _ in range(4):
        for table in tables:
            table += pool.take(1, after=table[-1])

    for table in tables:
        assert all(b == a + 1 for a, b in pairwise(table)), table


def test_more_than_there_is_cannot_be_taken() -> None:
    pool = BlockPool(3, 16)
    pool.take(2)

    with pytest.raises(IndexError, match="2 blocks wanted, 1 free"):
        pool.take(2)
    assert pool.available == 1
