"""The choice of buckets for a device that compiles: a function of limits, costs and recorded shapes."""

import math
from collections.abc import Iterator, Mapping

import attrs

from tgi.device.costs import Costs
from tgi.limits import Limits
from tgi.plugins import DeviceSpec
from tgi.protocol import AttentionWorkspace, Bucket
from tgi.scheduler.buckets import Buckets

from .optimal import TooFewGraphs, optimal
from .shapes import ShapeLimits
from .workload import Workload

MAX_GRAPHS = 64
"""Default of --max-graphs: about three minutes of warm-up."""
MAX_WASTE = 1.0
"""Default of --max-waste; doubled until --max-graphs is enough for it."""
SECONDS_PER_LAYER = 2.5 / 32
"""Time to warm up a bucket, per layer: for 32 layers it is 1.5 to 3 s in the logs of vLLM."""


@attrs.frozen(kw_only=True)
class Bucketing:
    """Aims of the choice."""

    max_graphs: int | None = None
    """Maximum number of buckets; None: MAX_GRAPHS."""
    max_waste: float | None = None
    """Maximum time that padding may add to a step, as a share of the step; None: MAX_WASTE, or more."""
    counts: Mapping[Bucket, int] = attrs.field(factory=dict)
    """Recorded shapes of steps, with their numbers. Without any, all shapes count as equally likely."""
    costs: Costs = attrs.field(factory=Costs.of)
    """Costs of steps, which also decide which of the buckets that dominate a step is the cheapest."""

    def choose(self, shapes: ShapeLimits) -> list[Bucket]:
        """Choose the buckets with which steps cost least: prefill before decode, the largest first.

        Raises TooFewGraphs if every step can only have a bucket with more than `max_graphs`.
        """
        workload = Workload.counted(self.counts, shapes)
        graphs = MAX_GRAPHS if self.max_graphs is None else self.max_graphs
        waste = MAX_WASTE if self.max_waste is None else self.max_waste
        while True:
            try:
                return optimal(shapes, workload, self.costs, graphs, waste)
            except TooFewGraphs:
                if self.max_waste is not None or waste == math.inf:
                    raise
                waste = 2 * waste if waste < 100 else math.inf


def make_buckets(
    limits: Limits,
    device: DeviceSpec,
    bucketing: Bucketing | None = None,
    *,
    prefixes: bool = True,
    blocks: int | None = None,
    within: AttentionWorkspace | None = None,
) -> Buckets:
    """Return the buckets of a device; takes up to a second where it compiles. Raises OptionError.

    `prefixes` tells whether sequences share blocks, `blocks` how many the KV cache has, if that is known. The
    buckets need no more than the workspace `within`, if that is reserved already.
    """
    if not device.compiles:
        return Buckets(limits, mixes=device.mixes_rows)
    bucketing = bucketing or Bucketing(costs=Costs.of(block_size=limits.block_size))
    shapes = ShapeLimits.from_limits(limits, prefixes=prefixes, blocks=blocks, within=within)
    chosen = bucketing.choose(shapes) if device.flat else simple_buckets(limits)
    return Buckets(limits, chosen, bucketing.costs.seconds, flat=device.flat)


def attention_workspace(limits: Limits, buckets: Buckets, *, prefixes: bool = True) -> AttentionWorkspace:
    """Return the workspace of the attention of steps that are padded to these buckets."""
    if not buckets.flat:
        return AttentionWorkspace()
    return ShapeLimits.from_limits(limits, prefixes=prefixes).workspace(buckets)


def simple_buckets(limits: Limits) -> Iterator[Bucket]:
    """Yield buckets whose sizes double in every dimension, for a device with a block table per row."""
    longest = limits.longest_chunk
    rows = doubling(1, limits.decode_rows)[::-1]
    for tokens in doubling(min(limits.block_size, longest), longest)[::-1]:
        for count in rows:
            if count == 1 or count * tokens <= limits.max_batch_prefill_tokens:
                for blocks in doubling(1, limits.seen_blocks(longest))[::-1]:
                    yield Bucket(count, tokens, blocks, prefill=True)
    for count in rows:
        yield from (Bucket(count, 1, blocks) for blocks in doubling(1, limits.seen_blocks(1))[::-1])


def doubling(first: int, last: int) -> list[int]:
    """Return the first size, twice that, and so on below the last, and the last."""
    sizes = []
    while first < last:
        sizes.append(first)
        first *= 2
    return [*sizes, last]
