"""The set of at most N buckets with which steps cost least.

`Workload` tells how often each shape occurs, and `Costs` how long a step of each shape takes. A step is
padded to the cheapest bucket that dominates it. The best set of N buckets minimises the expected time of a
step: the k-median problem in a partial order. On a line, dynamic programming solves it (Wang and Song 2011,
"Ckmeans.1d.dp"); in the plane it is hard. So this takes the best of the *nested* sets (see nesting.py), in
which the sizes of one dimension depend on those of the others but not the other way round. Removing buckets
from a fine grid one by one, always the one that is missed least, comes within a few per cent of that cost.

The bound on the number becomes a price of each graph, its Lagrange multiplier, which is found by bisection.
The same price for both kinds of steps shares the graphs between prefill and decode as they are worth it.

A bucket that costs more than `1 + max_waste` times what the smallest of its shapes costs is not allowed,
except where the grid of sizes has none between. Several rows of a prefill need no bucket, since they can also
go one by one; so the buckets of one row come first, and then those of several by what they save. These have
no bound: rows join only where that takes less time than to go one by one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tgi.config import OptionError
from tgi.device.costs import Costs
from tgi.protocol import Bucket

from .nesting import Cell, Cuts, Floats, Grid, Ints
from .shapes import ShapeLimits
from .workload import Workload

MUST = 1e6
"""Factor by which leaving out a needed shape costs more than everything else."""
HALVINGS = 24
"""Number of halvings of the interval in which the price of a graph lies."""
ROWS, BLOCKS = 24, 96
"""Maximum numbers of candidate sizes in decode."""
TOKENS, CONTEXT, DOUBLINGS = 40, 14, 6
"""Maximum numbers of candidate sizes in prefill; rows are powers of 2."""
CANDIDATES = 1 << 15
"""Maximum number of sizes to choose candidates from: all, or some that are even in the logarithm."""
FLAT = 8
"""Sizes whose cost is not known by itself are even in log(size + FLAT)."""


class TooFewGraphs(OptionError):
    """Raised if --max-graphs is too low for the bound on waste; `needed` would be enough."""

    def __init__(self, given: int, needed: int, max_waste: float) -> None:
        bound = f" for `max_waste` = {max_waste:g}" if max_waste < math.inf else ""
        super().__init__(f"`max_graphs` must be >= {needed}{bound}. Given: {given}")
        self.needed = needed


def optimal(
    limits: ShapeLimits, workload: Workload, costs: Costs, max_graphs: int, max_waste: float = math.inf
) -> list[Bucket]:
    """Return at most `max_graphs` buckets that dominate every shape. Raises TooFewGraphs."""
    search = _Search(limits, workload, costs, 1 + max_waste)
    low, high = math.log(1e-9 * search.dearest), math.log(search.dearest)
    best = search.buckets(search.dearest)
    if len(best) > max_graphs:
        raise TooFewGraphs(max_graphs, len(best), max_waste)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        buckets = search.buckets(math.exp(middle))
        if len(buckets) > max_graphs:
            low = middle
        else:
            best, high = buckets, middle
            if len(buckets) == max_graphs:
                break
    return best


class _Search:
    """Finds the cheapest set of buckets for any price of a graph."""

    def __init__(self, limits: ShapeLimits, workload: Workload, costs: Costs, max_ratio: float) -> None:
        self._limits = limits
        self._decode = decode_grid(limits, workload, costs)
        self._alone, self._joint = prefill_grids(limits, workload, costs)
        self._decode_cuts = [Cuts(self._decode, order, max_ratio) for order in ((0, 1, 2), (2, 1, 0))]
        self._alone_cuts = Cuts(self._alone, (0, 1, 2), max_ratio)
        self._joint_cuts = Cuts(self._joint, (0, 1, 2), math.inf)
        self.dearest = 2 * float(sum(g.mass.sum() * g.price.max() for g in (self._decode, self._alone)))
        """Upper bound of the cost of the worst set, in which up to twice the rows go one by one: no graph is
        worth this price."""

    def buckets(self, price: float) -> list[Bucket]:
        """Return the set that is cheapest if each graph costs `price`."""
        must = MUST * self.dearest
        ways = (cuts.cheapest(price, must * self._decode.needed) for cuts in self._decode_cuts)
        _, decode = min(ways, key=lambda way: way[0])
        _, alone = self._alone_cuts.cheapest(price, must * self._alone.needed)
        one_by_one = self._joint.levels[0][:, None, None] * _served(self._alone, alone)
        _, joint = self._joint_cuts.cheapest(price, self._joint.mass * one_by_one)
        return self._limits.closed(
            [
                *_decode_buckets(self._decode, decode, self._limits),
                *_prefill_buckets(self._alone, alone, self._limits),
                *_prefill_buckets(self._joint, joint, self._limits),
            ]
        )


def _served(grid: Grid, cells: list[Cell]) -> Floats:
    """Return the price at which each combination is served."""
    prices = np.zeros_like(grid.price)
    for cell in cells:
        covered = tuple(slice(first, last + 1) for first, last in cell)
        prices[covered] = grid.price[tuple(last for _, last in cell)]
    return prices


def decode_grid(limits: ShapeLimits, workload: Workload, costs: Costs) -> Grid:
    """Return the grid of (rows, 1, blocks)."""
    seen, weights = workload.decode, workload.decode_weights
    rows = _levels(_sizes(1, limits.max_batch_size), ROWS, seen[:, 0], weights)
    sizes, middle = _sizes(1, limits.decode_blocks(limits.max_batch_size)), limits.max_batch_size // 2 + 1
    blocks = _levels(sizes, BLOCKS, seen[:, 1], weights, lambda blocks: costs.decode(middle, blocks))
    maxima = np.array([limits.decode_blocks(size) for size in rows.tolist()])[:, None, None]
    r, b = rows[:, None, None], blocks[None, None, :]
    rows_before, blocks_before = _before(rows)[:, None, None], _before(blocks)[None, None, :]
    levels = rows, np.array([1]), blocks
    return Grid(
        levels=levels,
        mass=_mass(levels, np.insert(seen, 1, 1, axis=1), weights),
        price=costs.decode(r, np.minimum(b, maxima)),
        least=costs.decode(rows_before + 1, np.maximum(rows_before, blocks_before) + 1),
        needed=(blocks_before < maxima) & (rows_before < b),
        unbound=np.ones((len(rows), 1, len(blocks)), bool),
    )


def prefill_grids(limits: ShapeLimits, workload: Workload, costs: Costs) -> tuple[Grid, Grid]:
    """Return the grids of (1, tokens, context), where all rows go one by one, and of (rows, tokens, context)
    for two or more rows, which need no bucket."""
    shapes, weights = workload.prefill, workload.prefill_weights
    chunks = np.minimum(
        limits.block_size * _sizes(1, -(-limits.longest_chunk // limits.block_size)), limits.longest_chunk
    )
    tokens = _levels(chunks, TOKENS, shapes[:, 1], weights, lambda tokens: costs.prefill(1, tokens, 0))
    contexts = _levels(_sizes(0, limits.context_blocks(1)), CONTEXT, shapes[:, 2], weights)
    rows = [2**power for power in range(1, DOUBLINGS + 1) if 2**power <= limits.prefill_rows]
    several = (shapes[:, 0] > 1) & (shapes[:, 0] <= max(rows, default=0))

    def grid(rows: list[int], shapes: Ints, weights: Floats) -> Grid:
        return _prefill_grid(limits, costs, (np.array(rows, np.int64), tokens, contexts), shapes, weights)

    alone = grid([1], shapes * (0, 1, 1) + (1, 0, 0), weights * shapes[:, 0])
    return alone, grid(rows, shapes[several], weights[several])


def _prefill_grid(
    limits: ShapeLimits, costs: Costs, levels: tuple[Ints, Ints, Ints], shapes: Ints, weights: Floats
) -> Grid:
    rows, tokens, context = levels
    r, t, c = rows[:, None, None], tokens[None, :, None], context[None, None, :]
    fewest = _before(tokens)[None, :, None] + 1
    shortest = np.concatenate([[0], context[:-1] + 1])[None, None, :]
    longest = np.array([limits.context_blocks(size) for size in fewest.ravel().tolist()])[None, :, None]
    alone = (r == 1) & np.ones((1, len(tokens), len(context)), bool)
    return Grid(
        levels=levels,
        mass=_mass(levels, shapes, weights),
        price=np.where(alone | (r * t <= limits.max_batch_prefill_tokens), costs.prefill(r, t, c), np.inf),
        least=costs.prefill(r // 2 + 1, fewest, shortest),
        needed=alone & (shortest <= longest),
        unbound=alone,
    )


def _decode_buckets(grid: Grid, cells: Sequence[Cell], limits: ShapeLimits) -> Iterator[Bucket]:
    rows, _, blocks = grid.levels
    for (_, row), _, (_, block) in cells:
        yield limits.clipped(Bucket(int(rows[row]), 1, int(blocks[block])))


def _prefill_buckets(grid: Grid, cells: Sequence[Cell], limits: ShapeLimits) -> Iterator[Bucket]:
    """Yield the buckets of these cells, without context that rows of their tokens cannot have."""
    rows, tokens, context = grid.levels
    for (_, row), (first, last), (_, block) in cells:
        fewest = int(tokens[first - 1]) + 1 if first else 1
        blocks = min(int(context[block]), limits.context_blocks(fewest))
        yield Bucket(int(rows[row]), int(tokens[last]), blocks, prefill=True)


def _levels(
    sizes: Ints,
    count: int,
    seen: Ints,
    weights: Floats,
    cost: Callable[[Ints], Any] = lambda sizes: sizes + FLAT,
) -> Ints:
    """Choose at most `count` sizes: half of them even in log(cost), half in the weight of what is seen."""
    if len(sizes) <= count:
        return sizes
    logs, half = np.log(cost(sizes)), count // 2
    even = np.searchsorted(logs, np.linspace(logs[0], logs[-1], half)).clip(0, len(sizes) - 1)
    order = seen.argsort(kind="stable")
    shares = weights[order].cumsum()
    places = np.searchsorted(shares, shares[-1] * np.arange(1, half) / half)
    quantiles = np.searchsorted(sizes, seen[order][places])
    levels: Ints = sizes[np.unique([0, *even, *quantiles, len(sizes) - 1])]
    return levels


def _sizes(first: int, last: int) -> Ints:
    """Return the sizes from first to last, or some of very many, with gaps that grow evenly."""
    count = last - first + 1
    if count <= CANDIDATES:
        return np.arange(first, last + 1)
    sizes: Ints = np.unique(np.geomspace(1, count, CANDIDATES).round().astype(np.int64))
    return sizes + (first - 1)


def _before(levels: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), levels[:-1]])


def _mass(levels: tuple[Ints, Ints, Ints], shapes: Ints, weights: Floats) -> Floats:
    """Add up the weights of the shapes at the levels that they are padded to."""
    mass = np.zeros([len(sizes) for sizes in levels])
    places = tuple(np.searchsorted(sizes, of) for sizes, of in zip(levels, shapes.T, strict=True))
    np.add.at(mass, places, weights)
    return mass
