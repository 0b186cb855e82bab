"""The speed of a model on cards: the costs of steps, and the time that cards wait for each other.

The ranks of a stage wait twice in a layer, and once for the logits: an all-reduce moves 2 (n - 1) / n of its
bytes over a card's links, an all-gather n - 1 times a card's part, and each takes a fixed time besides. Over
several boxes they have three phases: within each box, between the boxes, where each card moves its share, and
within each box again. A stage sends the features of its tokens on to the next one, each rank all of them.
"""

from collections.abc import Iterator, Sequence

import attrs

from tgi.device.costs import EFFICIENCY, Costs, ModelSize
from tgi.limits import Limits, first_block
from tgi.plugins import Card
from tgi.protocol import Bucket, Described
from tgi.scheduler.buckets import Buckets

from .buckets import doubling
from .workload import Workload

COLLECTIVE_SECONDS = 20e-6
"""Time of a phase of a collective, however small: an estimate."""


@attrs.frozen(kw_only=True)
class StageRoofline:
    """Times of the steps of a stage on `ranks` cards, in seconds."""

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
        model, card = self.model, self.card
        near = min(self.ranks, card.box)
        far = self.ranks // near  # boxes
        features = 2 * model.layers * model.hidden_size * model.item * bucket.rows * bucket.tokens
        logits = model.vocab_size / self.ranks * model.item * bucket.rows
        links = 2 * (near - 1) / near * features + far * (near - 1) * logits
        waiting = links / (card.link * EFFICIENCY)
        if far > 1:
            network = 2 * (far - 1) / far * features / near + (far - 1) * logits
            waiting += network / (card.network * EFFICIENCY)
        collectives = 2 * model.layers + (model.vocab_size > 0)
        return waiting + collectives * COLLECTIVE_SECONDS * (1 if far == 1 else 3)


@attrs.frozen(kw_only=True)
class Roofline:
    """Times of the steps of a model whose stages are on cards of their own, in seconds."""

    stages: Sequence[StageRoofline]

    @property
    def floor(self) -> float:
        """Minimum time of a step in the slowest stage."""
        return max(stage.floor for stage in self.stages)

    def bound(self, rows: int, context: int) -> float:
        """Return the minimum time of a token for each of `rows` sequences with `context` tokens each."""
        steps, share = self.shares(rows)
        times = [stage.bound(share, context) for stage in self.stages]
        return max(sum(times), steps * max(times))

    def shares(self, rows: int) -> tuple[int, int]:
        """Return the number of steps that `rows` sequences divide into, and the rows of the largest."""
        share = -(-rows // len(self.stages))
        return -(-rows // share), share

    def seconds(self, bucket: Bucket) -> float:
        """Return the expected time of a step of a bucket's shape, through all stages."""
        sent = (len(self.stages) - 1) * self.sending(bucket)
        return sum(stage.seconds(bucket) for stage in self.stages) + sent

    def interval(self, bucket: Bucket) -> float:
        """Return the expected time between the ends of two such steps, while every stage has one."""
        return max(stage.seconds(bucket) for stage in self.stages) + self.sending(bucket)

    def sending(self, bucket: Bucket) -> float:
        """Return the time to send the features of a step to the next stage; 0 without one."""
        if len(self.stages) == 1:
            return 0.0
        stage = self.stages[0]
        features = bucket.rows * bucket.tokens * stage.model.hidden_size * stage.model.item
        card = stage.card
        within = len(self.stages) * stage.ranks <= card.box
        rate = card.link / (card.box - 1) if within else card.network  # one card has its part of the links
        return COLLECTIVE_SECONDS + features / (rate * EFFICIENCY)


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
    """Yield the speed of one token for each of 1, 2, 4, … sequences of the greatest length.

    In a pipeline they divide into a step for each stage.
    """
    context, size = limits.max_total_tokens, limits.block_size
    blocks = -(-context // size) - first_block(context - 1, limits.window, size)
    for rows in doubling(1, limits.max_batch_size):
        steps, share = roofline.shares(rows)
        bucket = _find(buckets, Bucket(share, 1, blocks * (share if buckets.flat else 1)))
        yield Speed(
            rows=rows,
            tokens=context,
            buckets=[bucket],
            seconds=max(roofline.seconds(bucket), steps * roofline.interval(bucket)),
            bound=roofline.bound(rows, min(context, limits.window or context)),
        )


def prefill_speeds(limits: Limits, buckets: Buckets, roofline: Roofline) -> Iterator[Speed]:
    """Yield the speed of prompts of 1, 2, 4, … blocks and of the longest, each alone and in chunks.

    In a pipeline, chunks follow one another from stage to stage.
    """
    size, longest = limits.block_size, limits.max_input_tokens
    lengths = {min(size * blocks, longest) for blocks in doubling(1, -(-longest // size))}
    for tokens in sorted(lengths):
        chunks = []
        for start in range(0, tokens, limits.longest_chunk):
            chunk = min(limits.longest_chunk, tokens - start)
            end = start if buckets.flat else start + chunk
            blocks = -(-end // size) - first_block(start, limits.window, size)
            chunks.append(_find(buckets, Bucket(1, chunk, blocks, prefill=True)))
        filling = roofline.seconds(chunks[-1]) - roofline.interval(chunks[-1])
        seconds = sum(map(roofline.interval, chunks)) + filling
        yield Speed(rows=1, tokens=tokens, buckets=chunks, seconds=seconds)


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
