"""The shapes that steps can have under given limits, on a device with flat block lists."""

from collections.abc import Iterable, Iterator

import attrs
import msgspec

from tgi.device.costs import GATHERED
from tgi.limits import Limits, seen_blocks
from tgi.protocol import AttentionWorkspace, Bucket


@attrs.frozen(kw_only=True)
class ShapeLimits(Limits):
    """Limits, with bounds of the shapes of steps that they allow.

    `max_batch_size` is `Limits.decode_rows`. Decode: 1 to that many rows, with as many block references in
    all as their sequences can have.
    Prefill: one row of 1 to `longest_chunk` tokens, after a context of any length that leaves it within
    `max_total_tokens`; or several such rows, where there is a bucket for them.
    """

    shared: bool = True
    """Whether sequences share blocks, so that a decode step may list more blocks than the cache has."""
    pool: int | None = None
    """Number of blocks in the KV cache; None: unknown."""
    reserved: AttentionWorkspace | None = None
    """Workspace that a prefill of several rows must keep within; None: any."""

    @classmethod
    def from_limits(
        cls,
        limits: Limits,
        *,
        prefixes: bool = True,
        blocks: int | None = None,
        within: AttentionWorkspace | None = None,
    ) -> "ShapeLimits":
        """`prefixes` tells whether sequences share blocks, `blocks` how many the KV cache has, if known.

        `within` is the `workspace` for the same limits, if it is reserved already.
        """
        fields = attrs.asdict(limits) | {"max_batch_size": limits.decode_rows}
        return cls(**fields, shared=prefixes, pool=blocks, reserved=within)

    @property
    def prefill_rows(self) -> int:
        """Maximum rows of a prefill step."""
        return min(self.max_batch_size, self.max_batch_prefill_tokens)

    @property
    def contexts(self) -> bool:
        """Whether a prefill may have a context: prompts share prefixes, or come in chunks."""
        return self.shared or self.longest_chunk < self.max_total_tokens - 1

    def decode_blocks(self, rows: int) -> int:
        """Return the maximum block references of a decode step of `rows` rows.

        In a contiguous cache, whose block 0 is read too, few rows may have blocks behind those of others that
        have ended: they take the bucket of more rows.
        """
        return rows * self.seen_blocks(1) if self.shared else self.likely_blocks(rows)

    def likely_blocks(self, rows: int) -> int:
        """Return `decode_blocks` for sequences that share no blocks."""
        row = self.sequence_blocks if self.contiguous else self.seen_blocks(1)
        blocks = rows * row if self.pool is None else min(rows * row, max(self.pool, row, rows))
        return blocks + self.contiguous

    def context_blocks(self, tokens: int) -> int:
        """Return the maximum blocks of context of a row of `tokens` tokens."""
        before = max(self.max_total_tokens - tokens, 0)
        return seen_blocks(before, 0, self.window, self.block_size) if self.contexts else 0

    def joint_tokens(self, rows: int) -> int:
        """Return the maximum tokens of each of `rows` rows that a prefill bucket can have; 0: none."""
        if rows == 1:
            return self.longest_chunk
        tokens = self.max_batch_prefill_tokens // rows
        return (
            self.longest_chunk
            if tokens >= self.longest_chunk
            else tokens // self.block_size * self.block_size
        )

    def clipped(self, bucket: Bucket) -> Bucket:
        """Return the part of a bucket that steps can need."""
        if bucket.prefill:
            rows = min(bucket.rows, self.prefill_rows)
            tokens = min(bucket.tokens, self.longest_chunk)
            return Bucket(rows, tokens, min(bucket.blocks, self.context_blocks(1)), prefill=True)
        rows = min(bucket.rows, self.max_batch_size)
        return Bucket(rows, 1, min(bucket.blocks, self.decode_blocks(rows)))

    def closed(self, buckets: Iterable[Bucket]) -> list[Bucket]:
        """Return these buckets within the limits, and those without which some step would have none.

        Prefill comes before decode, the largest first, and no bucket twice.
        """
        chosen = {clipped for bucket in buckets if self._allows(clipped := self.clipped(bucket))}
        chosen |= set(self._missing(chosen))
        return sorted(chosen, key=lambda b: (b.prefill, b.rows * b.tokens, b.blocks, b.rows), reverse=True)

    def workspace(self, buckets: Iterable[Bucket]) -> AttentionWorkspace:
        """Return the workspace of steps padded to these buckets, or to any that are `reserved` for."""
        longest = Bucket(1, self.longest_chunk, self.context_blocks(1), prefill=True)
        needs = [msgspec.structs.astuple(self._workspace(bucket)) for bucket in (longest, *buckets)]
        return AttentionWorkspace(*map(max, zip(*needs, strict=True)))

    def _workspace(self, bucket: Bucket) -> AttentionWorkspace:
        # A prefill gathers its context and puts its own keys and values behind it: both are there twice.
        if not bucket.prefill:
            return AttentionWorkspace(min(bucket.blocks, GATHERED), listed_blocks=bucket.blocks)
        seen = bucket.blocks * self.block_size + bucket.tokens
        return AttentionWorkspace(
            gathered_blocks=2 * bucket.rows * -(-seen // self.block_size),
            prefill_pairs=bucket.rows * bucket.tokens * seen,
        )

    def _allows(self, bucket: Bucket) -> bool:
        if not bucket.prefill or bucket.rows == 1:
            return True
        fits = self.reserved is None or self._workspace(bucket).within(self.reserved)
        return fits and bucket.rows * bucket.tokens <= self.max_batch_prefill_tokens

    def _missing(self, chosen: set[Bucket]) -> Iterator[Bucket]:
        """Yield the largest shapes that no bucket dominates; what dominates these dominates all others."""
        largest = Bucket(self.max_batch_size, 1, self.decode_blocks(self.max_batch_size))
        if largest not in chosen:
            yield largest
        reach = {self.longest_chunk: -1}  # the context that the buckets of each number of tokens allow
        for bucket in chosen:
            if bucket.prefill:
                reach[bucket.tokens] = max(reach.get(bucket.tokens, -1), bucket.blocks)
        sizes, blocks = sorted(reach), -1
        for below, tokens in reversed([*zip([0, *sizes], sizes, strict=False)]):
            blocks = max(blocks, reach[tokens])
            if blocks < (needed := self.context_blocks(below + 1)):
                yield Bucket(1, tokens, needed, prefill=True)
