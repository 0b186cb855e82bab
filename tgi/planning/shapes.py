"""The shapes of steps: buckets, and the space of all shapes that steps can have under given limits."""

from collections.abc import Iterable, Iterator

import attrs
from attrs import astuple

from tgi.footprint import GATHERED
from tgi.limits import Limits, seen_blocks
from tgi.protocol import Bucket


@attrs.frozen
class AttentionWorkspace:
    """What the attention of steps copies at most, and needs memory for."""

    blocks: int = 0
    """Of keys and values that are gathered at once."""
    pairs: int = 0
    """Of tokens, which the mask of a prefill is for."""
    listed: int = 0
    """Blocks that a decode step lists."""

    def within(self, other: "AttentionWorkspace") -> bool:
        """Whether it is no more in any respect."""
        return all(mine <= its for mine, its in zip(astuple(self), astuple(other), strict=True))


@attrs.frozen(kw_only=True)
class ShapeLimits:
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
    window: int | None = None
    """How many tokens a token sees; None: all."""
    block: int
    contexts: bool
    """Whether a prefill may have a context: prompts that share prefixes, or come in chunks."""
    shared: bool = True
    """Whether sequences share blocks: a decode step may then have more references than there are blocks."""
    pool: int | None = None
    """Blocks in the KV cache, if that is known."""
    reads: AttentionWorkspace | None = None
    """What a prefill of several rows may read, if there is memory for so much only."""

    @classmethod
    def from_limits(
        cls,
        limits: Limits,
        *,
        prefixes: bool = True,
        blocks: int | None = None,
        within: AttentionWorkspace | None = None,
    ) -> "ShapeLimits":
        """`prefixes`: whether sequences share blocks; `blocks`: in the KV cache, if that is known.

        `within`: what there is memory for, if that is reserved already; `most_reads` of the same limits do.
        """
        longest = limits.longest_chunk
        return cls(
            rows=limits.max_batch_size,
            prefill_rows=min(limits.max_batch_size, limits.max_batch_prefill_tokens),
            prefill_tokens=limits.max_batch_prefill_tokens,
            longest=longest,
            total=limits.max_total_tokens,
            window=limits.window,
            block=limits.block_size,
            contexts=prefixes or longest < limits.max_total_tokens - 1,
            shared=prefixes,
            pool=blocks,
            reads=within,
        )

    @property
    def row_blocks(self) -> int:
        """Most blocks that a token sees."""
        return self._seen(self.total, 0)

    @property
    def table_blocks(self) -> int:
        """Most blocks that a chunk of a prompt is in or sees."""
        return self._seen(self.total, self.longest - 1)

    def _seen(self, tokens: int, more: int) -> int:
        """Of the blocks of so many tokens, those that a token and so `more` after it can see."""
        return seen_blocks(tokens, more + 1, self.window, self.block)

    def decode_blocks(self, rows: int) -> int:
        """Most block references of a decode step of so many rows."""
        most = rows * self.row_blocks
        return most if self.shared else self._pooled(most, rows)

    def likely_blocks(self, rows: int) -> int:
        """The same without those that only sequences have which share many blocks."""
        return self._pooled(rows * self.row_blocks, rows)

    def _pooled(self, most: int, rows: int) -> int:
        return most if self.pool is None else min(most, max(self.pool, self.row_blocks, rows))

    def context_blocks(self, tokens: int) -> int:
        """Most blocks of context that a row of so many tokens has."""
        return self._seen(max(self.total - tokens, 0), -1) if self.contexts else 0

    def joint_tokens(self, rows: int) -> int:
        """Most tokens of each of so many rows of a prefill: what there can be a bucket for; 0: none."""
        if rows == 1:
            return self.longest
        most = self.prefill_tokens // rows
        return self.longest if most >= self.longest else most // self.block * self.block

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

    def most_reads(self, buckets: Iterable[Bucket]) -> AttentionWorkspace:
        """Of steps padded to these buckets, or to any others that `reads` is this for."""
        longest = Bucket(1, self.longest, self.context_blocks(1), prefill=True)
        every = [self._reads(bucket) for bucket in (longest, *buckets)]
        return AttentionWorkspace(*map(max, zip(*map(astuple, every), strict=True)))

    def _reads(self, bucket: Bucket) -> AttentionWorkspace:
        """A prefill gathers its context, and puts its own keys and values behind it: all are there twice."""
        if not bucket.prefill:
            return AttentionWorkspace(min(bucket.blocks, GATHERED), listed=bucket.blocks)
        seen = bucket.blocks * self.block + bucket.tokens
        return AttentionWorkspace(
            2 * bucket.rows * -(-seen // self.block), bucket.rows * bucket.tokens * seen
        )

    def _allows(self, bucket: Bucket) -> bool:
        if not bucket.prefill or bucket.rows == 1:
            return True
        fits = self.reads is None or self._reads(bucket).within(self.reads)
        return fits and bucket.rows * bucket.tokens <= self.prefill_tokens

    def _missing(self, chosen: set[Bucket]) -> Iterator[Bucket]:
        """The largest shapes that nothing dominates; what dominates these dominates all others."""
        largest = Bucket(self.rows, 1, self.decode_blocks(self.rows))
        if largest not in chosen:
            yield largest
        reach = {self.longest: -1}
        for bucket in chosen:
            if bucket.prefill:
                reach[bucket.tokens] = max(reach.get(bucket.tokens, -1), bucket.blocks)
        sizes, most = sorted(reach), -1
        for below, tokens in reversed([*zip([0, *sizes], sizes, strict=False)]):
            most = max(most, reach[tokens])
            if most < (needed := self.context_blocks(below + 1)):
                yield Bucket(1, tokens, needed, prefill=True)
