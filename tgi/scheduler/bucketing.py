"""Which buckets a device that compiles gets: a strategy, applied to the shapes that its limits allow."""

import math
from collections.abc import Mapping
from typing import Literal

import attrs

from tgi.config import OptionError, Options, bucket_ranges

from . import ladders
from .costs import Costs
from .optimal import TooFewGraphs, optimal
from .shapes import Bucket, Space
from .workload import ShapeCounts, Workload

Strategy = Literal["optimal", "linear", "exponential", "padding-aware"]
MAX_GRAPHS = 64
"""Default of --max-graphs: some three minutes of warm-up."""
MAX_WASTE = 1.0
"""Default of --max-waste; doubled until --max-graphs is enough for it."""
SECONDS_PER_GRAPH = 2.5
"""What warming up a bucket takes for a model of medium size: 1.5 to 3 s by the logs of vLLM on Gaudi."""
LAYERS = 32
"""Of such a model; more take longer in proportion."""
_LADDERS = {
    "linear": ladders.linear,
    "exponential": ladders.exponential,
    "padding-aware": ladders.padding_aware,
}


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

    strategy: Strategy = "optimal"
    max_graphs: int | None = None
    max_waste: float | None = None
    """Most seconds that padding may add to those of a step, as a share of them; for `optimal`."""
    counts: Mapping[Bucket, int] = attrs.field(factory=dict)
    """Shapes of steps that have been seen; for `optimal`. Without any, all are taken to be as likely."""
    ranges: ladders.Ranges = attrs.field(factory=dict)
    """For the other strategies."""
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
            strategy=options.bucketing,
            max_graphs=min(limits, default=None),
            max_waste=options.max_waste,
            counts=counts,
            ranges={name: ladders.Range(*sizes) for name, sizes in bucket_ranges().items()},
            costs=costs,
        )

    def choose(self, space: Space, blocks: int | None = None) -> list[Bucket]:
        """The buckets: prefill before decode, the largest first; `blocks`: in the KV cache, if that is known.

        Raises GraphsError where there would have to be more than --max-graphs.
        """
        if self.strategy == "optimal":
            return self._optimal(space)
        known = space.decode_blocks(space.rows) if blocks is None else blocks
        chosen = space.closed(_LADDERS[self.strategy](space, self.ranges, known))
        if self.max_graphs is not None and len(chosen) > self.max_graphs:
            raise GraphsError(self.max_graphs, len(chosen), f" for `bucketing` = {self.strategy}")
        return chosen

    def _optimal(self, space: Space) -> list[Bucket]:
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
