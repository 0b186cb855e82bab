"""The shapes of steps: buckets, and the space of all shapes that steps can have under given limits."""

from collections.abc import Iterable, Iterator

import attrs

from tgi.config import Limits


@attrs.frozen(order=True)
class Bucket:
    """A shape that steps are padded to; also the shape of a step without padding."""

    rows: int
    tokens: int
    """Query tokens per row; 1 in a decode step."""
    blocks: int
    """Entries of block tables: of which, `DeviceSpec.flat` tells."""
    prefill: bool = False

    def dominates(self, other: "Bucket") -> bool:
        """Whether a step of that shape can be padded to this one."""
        return (
            self.prefill == other.prefill
            and self.rows >= other.rows
            and self.tokens >= other.tokens
            and self.blocks >= other.blocks
        )


@attrs.frozen(kw_only=True)
class Space:
    """The shapes that can come up on a device with flat block lists.

    Decode: 1 to `rows` rows, with as many block references in all as their sequences can have. Prefill: one
    row of 1 to `longest` tokens, after a context of any length that leaves it within `total` tokens; or
    several such rows, where there is a bucket for them.
    """

    rows: int
    prefill_rows: int
    prefill_tokens: int
    """Most padded tokens of a prefill step of several rows."""
    longest: int
    """Tokens of the largest chunk of a prompt."""
    total: int
    """Tokens of the longest sequence."""
    block: int
    contexts: bool
    """Whether a prefill may have a context: prompts that share prefixes, or come in chunks."""
    most_blocks: int | None = None
    """Most references of one decode step, where no two sequences share a block: all blocks that there are."""

    @classmethod
    def from_limits(cls, limits: Limits, *, prefixes: bool = True, blocks: int | None = None) -> "Space":
        """`prefixes`: whether sequences share blocks; `blocks`: in the KV cache, if that is known."""
        longest = min(limits.max_batch_prefill_tokens, limits.max_total_tokens)
        return cls(
            rows=limits.max_batch_size,
            prefill_rows=min(limits.max_batch_size, limits.max_batch_prefill_tokens),
            prefill_tokens=limits.max_batch_prefill_tokens,
            longest=longest,
            total=limits.max_total_tokens,
            block=limits.block_size,
            contexts=prefixes or longest < limits.max_total_tokens - 1,
            most_blocks=None if prefixes else blocks,
        )

    @property
    def row_blocks(self) -> int:
        """Blocks of the longest sequence."""
        return -(-self.total // self.block)

    def decode_blocks(self, rows: int) -> int:
        """Most block references of a decode step of so many rows."""
        most = rows * self.row_blocks
        return most if self.most_blocks is None else min(most, max(self.most_blocks, self.row_blocks, rows))

    def context_blocks(self, tokens: int) -> int:
        """Most blocks of context that a row of so many tokens has."""
        return -(-max(self.total - tokens, 0) // self.block) if self.contexts else 0

    def token_sizes(self) -> tuple[int, ...]:
        """Worthwhile sizes of a chunk: whole blocks, and the longest chunk."""
        return (*range(self.block, self.longest, self.block), self.longest)

    def clipped(self, bucket: Bucket) -> Bucket:
        """The part of it that steps can need."""
        if bucket.prefill:
            rows = min(bucket.rows, self.prefill_rows)
            tokens = min(bucket.tokens, self.longest)
            return Bucket(rows, tokens, min(bucket.blocks, self.context_blocks(1)), prefill=True)
        rows = min(bucket.rows, self.rows)
        return Bucket(rows, 1, min(bucket.blocks, self.decode_blocks(rows)))

    def closed(self, buckets: Iterable[Bucket]) -> list[Bucket]:
        """These buckets within the limits, and those that it takes for every step to have one.

        Prefill before decode, the largest first, none twice.
        """
        chosen = {clipped for bucket in buckets if self._allows(clipped := self.clipped(bucket))}
        chosen |= set(self._missing(chosen))
        return sorted(chosen, key=lambda b: (b.prefill, b.rows * b.tokens, b.blocks, b.rows), reverse=True)

    def _allows(self, bucket: Bucket) -> bool:
        return not bucket.prefill or bucket.rows == 1 or bucket.rows * bucket.tokens <= self.prefill_tokens

    def _missing(self, chosen: set[Bucket]) -> Iterator[Bucket]:
        """The largest shapes that nothing dominates; what dominates these dominates all others."""
        largest = Bucket(self.rows, 1, self.decode_blocks(self.rows))
        if largest not in chosen:
            yield largest
        prefill = [bucket for bucket in chosen if bucket.prefill]
        below = 0
        for tokens in sorted({bucket.tokens for bucket in prefill} | {self.longest}):
            most = Bucket(1, tokens, self.context_blocks(below + 1), prefill=True)
            if not any(bucket.dominates(most) for bucket in prefill):
                yield most
            below = tokens
