"""How fast a model can be on cards: the costs of steps, and the time that cards wait for each other.

They do so twice in a layer, and once for the logits: an all-reduce moves 2 (n - 1) / n of its bytes over a
card's links, an all-gather n - 1 times a card's part, and each takes a fixed time besides.
"""

from collections.abc import Iterator

import attrs

from tgi.device.costs import EFFICIENCY, Costs, ModelSize
from tgi.limits import Limits, first_block
from tgi.plugins import Card
from tgi.protocol import Bucket, Described
from tgi.scheduler.buckets import Buckets

from .buckets import doubling
from .workload import Workload

COLLECTIVE_SECONDS = 20e-6
"""Time of a collective, however small: an estimate."""


@attrs.frozen(kw_only=True)
class Roofline:
    """Times of the steps of a model on `ranks` cards, in seconds."""

    model: Described
    size: ModelSize
    costs: Costs
    card: Card
    ranks: int

    @property
    def floor(self) -> float:
        """Minimum time of a step: the weights that a token needs are read once, at the peak rate."""
        return self.size.read_bytes(1) / self.card.bandwidth

    def bound(self, rows: int, context: int) -> float:
        """Return the minimum time of a decode step of rows with `context` tokens each, at peak rates."""
        read = self.size.read_bytes(rows) + rows * context * self.size.kv_bytes
        return max(read / self.card.bandwidth, 2 * rows * self.size.parameters / self.card.flops)

    def seconds(self, bucket: Bucket) -> float:
        """Return the expected time of a step of a bucket's shape."""
        return self.costs.seconds(bucket) + self._waiting(bucket)

    def _waiting(self, bucket: Bucket) -> float:
        if self.ranks == 1:
            return 0.0
        model, others, rows = self.model, self.ranks - 1, bucket.rows
        features = 2 * model.layers * model.hidden_size * model.item
        logits = model.vocab_size / self.ranks * model.item
        moved = 2 * others / self.ranks * rows * bucket.tokens * features + others * rows * logits
        collectives = 2 * model.layers + 1
        return collectives * COLLECTIVE_SECONDS + moved / (self.card.link * EFFICIENCY)


@attrs.frozen(kw_only=True)
class Speed:
    """Speed of a decode step, or of a prompt that takes several steps."""

    rows: int
    tokens: int
    """Tokens of each row, with all before the step."""
    buckets: list[Bucket]
    seconds: float
    """Expected time."""
    bound: float | None = None
    """Minimum time, at peak rates."""

    @property
    def computed(self) -> int:
        """Number of tokens that are computed: one of each row, or the prompt's."""
        return self.tokens if self.buckets[0].prefill else self.rows

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.computed / self.seconds


def decode_speeds(limits: Limits, buckets: Buckets, roofline: Roofline) -> Iterator[Speed]:
    """Yield the speed of one token for each of 1, 2, 4, … sequences of the greatest length."""
    context, size = limits.max_total_tokens, limits.block_size
    blocks = -(-context // size) - first_block(context - 1, limits.window, size)
    for rows in doubling(1, limits.max_batch_size):
        bucket = _find(buckets, Bucket(rows, 1, blocks * (rows if buckets.flat else 1)))
        yield Speed(
            rows=rows,
            tokens=context,
            buckets=[bucket],
            seconds=roofline.seconds(bucket),
            bound=roofline.bound(rows, min(context, limits.window or context)),
        )


def prefill_speeds(limits: Limits, buckets: Buckets, roofline: Roofline) -> Iterator[Speed]:
    """Yield the speed of prompts of 1, 2, 4, … blocks and of the longest, each alone and in chunks."""
    size, longest = limits.block_size, limits.max_input_tokens
    lengths = {min(size * blocks, longest) for blocks in doubling(1, -(-longest // size))}
    for tokens in sorted(lengths):
        chunks = []
        for start in range(0, tokens, limits.longest_chunk):
            chunk = min(limits.longest_chunk, tokens - start)
            end = start if buckets.flat else start + chunk
            blocks = -(-end // size) - first_block(start, limits.window, size)
            chunks.append(_find(buckets, Bucket(1, chunk, blocks, prefill=True)))
        yield Speed(rows=1, tokens=tokens, buckets=chunks, seconds=sum(map(roofline.seconds, chunks)))


def expected_padding(workload: Workload, buckets: Buckets, costs: Costs) -> dict[str, float]:
    """Return the time that padding adds to steps of each kind, as a share, if shapes are as in `workload`."""
    seconds = costs.seconds
    real = dict.fromkeys(("prefill", "decode"), 0.0)
    padded = dict(real)
    for (rows, tokens, context), weight in zip(
        workload.prefill.tolist(), workload.prefill_weights.tolist(), strict=True
    ):
        shape = Bucket(rows, tokens, context, prefill=True)
        together = buckets.find(shape)
        apart = rows * seconds(_find(buckets, Bucket(1, tokens, context, prefill=True)))
        padded["prefill"] += weight * (min(seconds(together), apart) if together else apart)
        real["prefill"] += weight * seconds(shape)
    for (rows, blocks), weight in zip(
        workload.decode.tolist(), workload.decode_weights.tolist(), strict=True
    ):
        shape = Bucket(rows, 1, blocks)
        padded["decode"] += weight * seconds(_find(buckets, shape))
        real["decode"] += weight * seconds(shape)
    return {kind: padded[kind] / real[kind] - 1 for kind in real}


def _find(buckets: Buckets, shape: Bucket) -> Bucket:
    bucket = buckets.find(shape)
    assert bucket is not None, "every decode step and every single row of a prompt has a bucket"
    return bucket
