"""The look-up of the bucket that a step is padded to, and the measured cost of steps.

`tgi.planning` chooses the buckets. On a device that compiles, a step gets the cheapest bucket that dominates
it. Every step that the policy can plan has one. On any other device the bucket of a step is its exact shape.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator

import attrs

from tgi.limits import Limits
from tgi.protocol import Bucket

WARM_TOKENS = 64
"""Tokens of the prompt that is warmed up where steps are not padded: nothing is compiled for its length."""
WEIGHT = 0.1
"""Weight of the latest step in the running averages."""


class Buckets:
    """The buckets of one device under one set of limits."""

    def __init__(
        self,
        limits: Limits,
        chosen: Iterable[Bucket] | None = None,
        seconds: Callable[[Bucket], float] = lambda _: 0.0,
        *,
        flat: bool = False,
        mixes: bool = False,
    ) -> None:
        """`chosen` are prefill before decode, the largest first; None: every shape is its own bucket.

        `seconds` is the cost of a bucket.
        """
        self.padded = chosen is not None
        """Whether steps are padded: the device then computes padding as well as query tokens."""
        self.flat = flat
        """See `DeviceSpec.flat`."""
        self.mixes = mixes
        """See `DeviceSpec.mixes_rows`."""
        self._seconds = seconds
        if chosen is None:
            chunk, rows = min(limits.longest_chunk, WARM_TOKENS), limits.max_batch_size
            chosen = [
                Bucket(1, chunk, limits.seen_blocks(chunk), prefill=True),
                Bucket(rows, 1, limits.seen_blocks(1)),
            ]
        every = list(chosen)
        self._prefill, self._decode = (
            _Chosen([bucket for bucket in every if bucket.prefill is kind], seconds) for kind in (True, False)
        )

    def find(self, shape: Bucket) -> Bucket | None:
        """Return the bucket of a step; None if no bucket has that many prefill rows."""
        if not self.padded:
            return shape
        finder = self._prefill if shape.prefill else self._decode
        return finder.find(shape.rows, shape.tokens, shape.blocks)

    def worth_joining(self, together: Bucket | None, apart: Iterable[Bucket | None]) -> bool:
        """Whether such a bucket exists and costs no more than the others together."""
        if together is None:
            return False
        return self._seconds(together) <= sum(self._seconds(bucket) for bucket in apart if bucket is not None)

    def largest(self) -> list[Bucket]:
        """Return the largest bucket of each kind, for the memory they take; or a shape where all are."""
        return [next(iter(self._prefill)), next(iter(self._decode))]

    def to_warm_up(self, *, everything: bool = True) -> list[Bucket]:
        """Return all buckets, or a shape of each kind where steps are not padded."""
        return list(self) if everything else self.largest()

    def __iter__(self) -> Iterator[Bucket]:
        """Iterate over the buckets, prefill before decode, the largest first; or over a shape of each."""
        yield from self._prefill
        yield from self._decode


class _Chosen:
    """Finds the cheapest bucket that dominates a shape, by three searches and a table that is kept."""

    def __init__(self, buckets: list[Bucket], seconds: Callable[[Bucket], float]) -> None:
        self._buckets = buckets
        self._order = sorted(buckets, key=lambda bucket: (seconds(bucket), bucket))
        self._rows = sorted({bucket.rows for bucket in buckets})
        self._tokens = sorted({bucket.tokens for bucket in buckets})
        self._tables: dict[tuple[int, int], tuple[list[int], list[Bucket]]] = {}

    def find(self, rows: int, tokens: int, blocks: int) -> Bucket | None:
        place = bisect_left(self._rows, rows), bisect_left(self._tokens, tokens)
        if place not in self._tables:
            self._tables[place] = self._table(rows, tokens)
        sizes, buckets = self._tables[place]
        index = bisect_left(sizes, blocks)
        return buckets[index] if index < len(buckets) else None

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self._buckets)

    def _table(self, rows: int, tokens: int) -> tuple[list[int], list[Bucket]]:
        """Return the buckets that have more blocks than every cheaper one, and their blocks."""
        sizes: list[int] = []
        buckets: list[Bucket] = []
        for bucket in self._order:
            if bucket.rows >= rows and bucket.tokens >= tokens and (not sizes or bucket.blocks > sizes[-1]):
                sizes.append(bucket.blocks)
                buckets.append(bucket)
        return sizes, buckets


@attrs.define(eq=False)
class StepCosts:
    """Measured cost of steps: seconds = step + token x query tokens, learned from the steps as they come.

    Two running averages: one from steps without chunks of prompts, one from later steps with chunks.
    """

    step: float = 0.0
    """Seconds of a step apart from its query tokens; 0: not measured."""
    token: float = 0.0
    """Seconds of each query token; 0: not measured."""

    def add(self, tokens: int, chunks: bool, seconds: float) -> None:
        """Learn from a step that took `seconds` for `tokens` query tokens."""
        if chunks and self.step:
            measured = max(seconds - self.step, 0.0) / tokens
            self.token += (WEIGHT if self.token else 1.0) * (measured - self.token)
        elif not chunks:
            measured = max(seconds - self.token * tokens, 0.0)
            self.step += (WEIGHT if self.step else 1.0) * (measured - self.step)

    def seconds(self, tokens: int) -> float:
        """Expect a duration; 0: not measured."""
        return self.step + self.token * tokens if self.step else 0.0

    def doubling_tokens(self, tokens: int) -> int:
        """Return how many query tokens, beside `tokens`, take as long as a step of those alone.

        0: not measured.
        """
        return int(self.seconds(tokens) / self.token) if self.step and self.token else 0
