"""What holds of blocks and buckets after every step."""

from collections.abc import Sequence as Items

from tgi.protocol import Bucket
from tgi.scheduler import Sequence
from tgi.scheduler.allocator import BlockAllocator
from tgi.scheduler.blocks import BlockPool


def check_pool(pool: BlockPool, tables: Items[Items[int]]) -> None:
    """Assert that exactly these block tables use blocks, and that no block is lost."""
    users = [0] * (pool.total + 1)
    for table in tables:
        for block in table:
            users[block] += 1
    assert users == pool._users, "a block's users are miscounted"
    assert not users[0], "the padding block was handed out"
    free = {block for block in range(1, pool.total + 1) if not users[block]}
    empty = {block for block in range(pool.total + 1) if pool._empty[block]}
    assert empty | set(pool._cached) == free, "a block is lost"
    assert not empty & set(pool._cached), "a block is free twice"
    assert len(empty) == pool.empties, "empty blocks are miscounted"
    bit = 1 << pool.number
    known = {serial for serial, knowing in pool.prefixes._known.values() if knowing & bit}
    assert known == set(pool._block_of), "others know of other prefixes"


def check_allocator(allocator: BlockAllocator, sequences: Items[Sequence]) -> None:
    """Assert that these sequences use exactly the blocks that are in use."""
    for group, pool in enumerate(allocator.pools):
        check_pool(pool, [s.tables[group].blocks[s.tables[group].freed :] for s in sequences])


def dominates(bucket: Bucket, shape: Bucket) -> bool:
    """Return whether a step of a shape can be padded to a bucket."""
    return (
        bucket.prefill == shape.prefill
        and bucket.rows >= shape.rows
        and bucket.tokens >= shape.tokens
        and bucket.blocks >= shape.blocks
    )
