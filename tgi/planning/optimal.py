"""The set of at most so many buckets with which steps cost least: the default strategy.

Given how often each shape comes up (`Workload`) and what a step of each shape costs (`Costs`), we want the
set of N buckets that minimises the expected cost of a step that is padded to the cheapest bucket dominating
it: the k-median problem in a partial order. On a line dynamic programming solves it (Wang and Song 2011,
"Ckmeans.1d.dp"); in the plane it is hard. So we take the best of the *nested* sets (see nesting.py), in which
the sizes of one dimension depend on those of the others but not the other way round. Removing buckets from a
fine grid one by one, always the one that is missed least, comes out within a few per cent of the same cost.

The bound on the number becomes a price of each graph, its Lagrange multiplier, which is found by bisection.
The same price for both kinds of steps shares the graphs between prefill and decode as they are worth it.

A bucket that costs more than `1 + max_waste` times what the smallest of its shapes costs is not allowed,
except where the grid of sizes has none between. Several rows of a prefill need no bucket, for they may also
go one by one; so the buckets of one row come first, and then those of several by what they save. These have
no bound: rows join only where that takes less time than to go one by one.
"""

import math

import numpy as np

from tgi.device.costs import Costs
from tgi.protocol import Bucket

from .grids import alone_grid, decode_buckets, decode_grid, joint_grid, prefill_buckets
from .nesting import Cell, Cuts, Floats, Grid
from .shapes import ShapeLimits
from .workload import Workload

MUST = 1e6
"""Leaving out what has to be served costs so much more than anything else."""
HALVINGS = 24
"""Of the interval in which the price of a graph lies."""


class TooFewGraphs(Exception):
    """The bound on waste cannot be kept; `needed` graphs would do."""

    def __init__(self, needed: int) -> None:
        super().__init__(f"{needed} graphs are needed")
        self.needed = needed


def optimal(
    space: ShapeLimits, workload: Workload, costs: Costs, max_graphs: int, max_waste: float = math.inf
) -> list[Bucket]:
    """At most `max_graphs` buckets that dominate every shape. Raises TooFewGraphs."""
    search = _Search(space, workload, costs, 1 + max_waste)
    low, high = math.log(1e-9 * search.dearest), math.log(search.dearest)
    best = search.buckets(search.dearest)
    if len(best) > max_graphs:
        raise TooFewGraphs(len(best))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = search.buckets(math.exp(middle))
        if len(found) > max_graphs:
            low = middle
        else:
            best, high = found, middle
            if len(found) == max_graphs:
                break
    return best


class _Search:
    """The cheapest set of buckets, for any price of a graph."""

    def __init__(self, space: ShapeLimits, workload: Workload, costs: Costs, most: float) -> None:
        self._space = space
        self._decode = decode_grid(space, workload, costs)
        self._alone = alone_grid(space, workload, costs)
        self._joint = joint_grid(space, workload, costs)
        self._decode_cuts = [Cuts(self._decode, order, most) for order in ((0, 1, 2), (2, 1, 0))]
        self._alone_cuts = Cuts(self._alone, (0, 1, 2), most)
        self._joint_cuts = Cuts(self._joint, (0, 1, 2), math.inf)
        self.dearest = 2 * float(sum(g.mass.sum() * g.price.max() for g in (self._decode, self._alone)))
        """More than the worst set costs, where up to twice as many rows count as go one by one: no graph is
        worth so much."""

    def buckets(self, price: float) -> list[Bucket]:
        """All of them, where each graph costs `price`."""
        must = MUST * self.dearest
        decode = min(
            (cuts.cheapest(price, must * self._decode.needed) for cuts in self._decode_cuts),
            key=lambda found: found[0],
        )[1]
        alone = self._alone_cuts.cheapest(price, must * self._alone.needed)[1]
        one_by_one = self._joint.levels[0][:, None, None] * _served(self._alone, alone)
        joint = self._joint_cuts.cheapest(price, self._joint.mass * one_by_one)[1]
        return self._space.closed(
            [
                *decode_buckets(self._decode, decode, self._space),
                *prefill_buckets(self._alone, alone, self._space),
                *prefill_buckets(self._joint, joint, self._space),
            ]
        )


def _served(grid: Grid, cells: list[Cell]) -> Floats:
    """The price at which each combination is served."""
    prices = np.zeros_like(grid.price)
    for cell in cells:
        covered = tuple(slice(first, last + 1) for first, last in cell)
        prices[covered] = grid.price[tuple(last for _, last in cell)]
    return prices
