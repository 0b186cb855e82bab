"""The choice of buckets for a device that compiles."""

import math
from collections.abc import Iterator, Mapping

import attrs

from tgi.config import OptionError, Options
from tgi.device.costs import Costs
from tgi.limits import Limits
from tgi.plugins import DeviceSpec
from tgi.protocol import Bucket
from tgi.scheduler.buckets import Buckets

from .optimal import TooFewGraphs, optimal
from .shapes import AttentionWorkspace, ShapeLimits
from .workload import ShapeCounts, Workload

MAX_GRAPHS = 64
"""Default of --max-graphs: some three minutes of warm-up."""
MAX_WASTE = 1.0
"""Default of --max-waste; doubled until --max-graphs is enough for it."""
SECONDS_PER_GRAPH = 2.5
"""What warming up a bucket takes for a model of medium size: 1.5 to 3 s by the logs of vLLM."""
LAYERS = 32
"""Of such a model; more take longer in proportion."""


def warm_up_seconds(graphs: int, layers: int) -> float:
    """An estimate; a recipe cache that has everything makes it a fraction."""
    return graphs * SECONDS_PER_GRAPH * layers / LAYERS


class GraphsError(OptionError):
    """--max-graphs is too few; `needed` would do."""

    def __init__(self, given: int, needed: int, reason: str = "") -> None:
        super().__init__(f"`max_graphs` must be >= {needed}{reason}. Given: {given}")
        self.needed = needed


@attrs.frozen(kw_only=True)
class Bucketing:
    """How buckets are chosen."""

    max_graphs: int | None = None
    max_waste: float | None = None
    """Most seconds that padding may add to those of a step, as a share of them."""
    counts: Mapping[Bucket, int] = attrs.field(factory=dict)
    """Shapes of steps that have been seen. Without any, all are taken to be as likely."""
    costs: Costs = attrs.field(factory=Costs.of)
    """Also decide which of the buckets that dominate a step is the cheapest."""

    @classmethod
    def from_options(cls, options: Options, costs: Costs, graphs: int | None = None) -> "Bucketing":
        """With at most `graphs` buckets, if given. Reads --bucket-shapes. Raises OptionError."""
        counts: Mapping[Bucket, int] = {}
        if options.bucket_shapes is not None:
            counts = ShapeCounts.read(options.bucket_shapes, costs.block_size).counts
        limits = [limit for limit in (options.max_graphs, graphs) if limit is not None]
        return cls(
            max_graphs=min(limits, default=None),
            max_waste=options.max_waste,
            counts=counts,
            costs=costs,
        )

    def choose(self, space: ShapeLimits) -> list[Bucket]:
        """The buckets: prefill before decode, the largest first.

        Raises GraphsError where there would have to be more than --max-graphs.
        """
        workload = Workload.counted(self.counts, space)
        graphs = MAX_GRAPHS if self.max_graphs is None else self.max_graphs
        waste = MAX_WASTE if self.max_waste is None else self.max_waste
        while True:
            try:
                return optimal(space, workload, self.costs, graphs, waste)
            except TooFewGraphs as error:
                if self.max_waste is not None or waste == math.inf:
                    bound = f" for `max_waste` = {waste:g}" if waste < math.inf else ""
                    raise GraphsError(graphs, error.needed, bound) from error
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
    """The buckets of a device. `prefixes`: whether sequences share blocks; `blocks`: in the KV cache.

    `within`: the workspace that is reserved already; these buckets need no more. Takes up to a second where
    the device compiles. Raises OptionError.
    """
    if not device.compiles:
        return Buckets(limits, mixes=device.mixes_rows)
    bucketing = bucketing or Bucketing(costs=Costs.of(block_size=limits.block_size))
    space = ShapeLimits.from_limits(limits, prefixes=prefixes, blocks=blocks, within=within)
    chosen = bucketing.choose(space) if device.flat else doubling(space)
    return Buckets(limits, chosen, bucketing.costs.seconds, flat=device.flat)


def attention_workspace(limits: Limits, buckets: Buckets, *, prefixes: bool = True) -> AttentionWorkspace:
    """The largest workspace that the attention of steps padded to these buckets needs."""
    if not buckets.flat:
        return AttentionWorkspace()
    return ShapeLimits.from_limits(limits, prefixes=prefixes).most_reads(buckets)


def geometric(first: int, last: int, ratio: float, multiple: int = 1) -> tuple[int, ...]:
    """Sizes from `first` to `last`, each a multiple of `multiple` except the last, growing by about `ratio`.

    What lies between two neighbours a < b wastes less than 1 - a/b of b: at most 1 - 1/ratio wherever the
    multiples are fine enough to follow the ratio.
    """
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        grown = int(size * ratio) // multiple * multiple
        size = max(size + multiple, grown)
    return (*sizes, last)


def doubling(space: ShapeLimits) -> Iterator[Bucket]:
    """For block tables of a row each: sizes that double, in every dimension."""
    rows, blocks = geometric(1, space.rows, 2)[::-1], geometric(1, space.table_blocks, 2)[::-1]
    for tokens in geometric(min(space.block, space.longest), space.longest, 2, space.block)[::-1]:
        for count in rows:
            if count == 1 or count * tokens <= space.prefill_tokens:
                yield from (Bucket(count, tokens, size, prefill=True) for size in blocks)
    for count in rows:
        yield from (Bucket(count, 1, size) for size in geometric(1, space.row_blocks, 2)[::-1])
