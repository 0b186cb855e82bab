"""Candidate sizes of buckets, how often they are needed, and what they cost: what `optimal` chooses from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tgi.device.costs import Costs
from tgi.protocol import Bucket

from .nesting import Cell, Floats, Grid, Ints
from .shapes import ShapeLimits
from .workload import Workload

ROWS, BLOCKS = 24, 96
"""Most candidates in decode,"""
TOKENS, CONTEXT, DOUBLINGS = 40, 14, 6
"""and in prefill: rows are powers of 2."""
CANDIDATES = 1 << 15
"""Of which these are chosen: all sizes, or so many that are even in the logarithm."""
FLAT = 8
"""Sizes whose cost is not known by itself are even in log(size + FLAT)."""


def decode_grid(space: ShapeLimits, workload: Workload, costs: Costs) -> Grid:
    """Of (rows, 1, blocks)."""
    seen, weights = workload.decode, workload.decode_weights
    rows = _levels(_sizes(1, space.rows), ROWS, seen[:, 0], weights)
    every, middle = _sizes(1, space.decode_blocks(space.rows)), space.rows // 2 + 1
    blocks = _levels(every, BLOCKS, seen[:, 1], weights, lambda blocks: costs.decode(middle, blocks))
    limits = np.array([space.decode_blocks(size) for size in rows.tolist()])[:, None, None]
    r, b = rows[:, None, None], blocks[None, None, :]
    rows_before, blocks_before = _before(rows)[:, None, None], _before(blocks)[None, None, :]
    levels = rows, np.array([1]), blocks
    return Grid(
        levels=levels,
        mass=_mass(levels, np.insert(seen, 1, 1, axis=1), weights),
        price=costs.decode(r, np.minimum(b, limits)),
        least=costs.decode(rows_before + 1, np.maximum(rows_before, blocks_before) + 1),
        needed=(blocks_before < limits) & (rows_before < b),
        unbound=np.ones((len(rows), 1, len(blocks)), bool),
    )


def alone_grid(space: ShapeLimits, workload: Workload, costs: Costs) -> Grid:
    """Of (1, tokens, context), where the rows of all prefills go one by one."""
    shapes = workload.prefill * (0, 1, 1) + (1, 0, 0)
    weights = workload.prefill_weights * workload.prefill[:, 0]
    return _prefill_grid(space, costs, ([1], *_prefill_sizes(space, workload, costs)), shapes, weights)


def joint_grid(space: ShapeLimits, workload: Workload, costs: Costs) -> Grid:
    """Of (rows, tokens, context), for prefills of several rows; no bucket is needed here."""
    rows = [2**power for power in range(1, DOUBLINGS + 1) if 2**power <= space.prefill_rows]
    several = (workload.prefill[:, 0] > 1) & (workload.prefill[:, 0] <= max(rows, default=0))
    shapes, weights = workload.prefill[several], workload.prefill_weights[several]
    return _prefill_grid(space, costs, (rows, *_prefill_sizes(space, workload, costs)), shapes, weights)


def _prefill_sizes(space: ShapeLimits, workload: Workload, costs: Costs) -> tuple[Ints, Ints]:
    """Of tokens and context."""
    seen, weights = workload.prefill, workload.prefill_weights
    sizes = np.minimum(space.block * _sizes(1, -(-space.longest // space.block)), space.longest)
    contexts = _sizes(0, space.context_blocks(1))
    tokens = _levels(sizes, TOKENS, seen[:, 1], weights, lambda tokens: costs.prefill(1, tokens, 0))
    return tokens, _levels(contexts, CONTEXT, seen[:, 2], weights)


def _prefill_grid(
    space: ShapeLimits, costs: Costs, sizes: tuple[list[int], Ints, Ints], shapes: Ints, weights: Floats
) -> Grid:
    rows, tokens, context = np.array(sizes[0], np.int64), *sizes[1:]
    r, t, c = rows[:, None, None], tokens[None, :, None], context[None, None, :]
    fewest = _before(tokens)[None, :, None] + 1
    shortest = np.concatenate([[0], context[:-1] + 1])[None, None, :]
    longest = np.array([space.context_blocks(size) for size in fewest.ravel().tolist()])[None, :, None]
    alone = (r == 1) & np.ones((1, len(tokens), len(context)), bool)
    return Grid(
        levels=(rows, tokens, context),
        mass=_mass((rows, tokens, context), shapes, weights),
        price=np.where(alone | (r * t <= space.prefill_tokens), costs.prefill(r, t, c), np.inf),
        least=costs.prefill(r // 2 + 1, fewest, shortest),
        needed=alone & (shortest <= longest),
        unbound=alone,
    )


def decode_buckets(grid: Grid, cells: Sequence[Cell], space: ShapeLimits) -> Iterator[Bucket]:
    """Of these cells."""
    rows, _, blocks = grid.levels
    for (_, row), _, (_, block) in cells:
        yield space.clipped(Bucket(int(rows[row]), 1, int(blocks[block])))


def prefill_buckets(grid: Grid, cells: Sequence[Cell], space: ShapeLimits) -> Iterator[Bucket]:
    """Of these cells, without context that so many tokens cannot have."""
    rows, tokens, context = grid.levels
    for (_, row), (first, last), (_, block) in cells:
        fewest = int(tokens[first - 1]) + 1 if first else 1
        blocks = min(int(context[block]), space.context_blocks(fewest))
        yield Bucket(int(rows[row]), int(tokens[last]), blocks, prefill=True)


def _levels(
    sizes: Ints,
    count: int,
    seen: Ints,
    weights: Floats,
    cost: Callable[[Ints], Any] = lambda sizes: sizes + FLAT,
) -> Ints:
    """At most so many of the sizes: half of them even in log(cost), half in the weight of what is seen."""
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
    """From first to last; where these are very many, some of them, with gaps that grow evenly."""
    count = last - first + 1
    if count <= CANDIDATES:
        return np.arange(first, last + 1)
    sizes: Ints = np.unique(np.geomspace(1, count, CANDIDATES).round().astype(np.int64))
    return sizes + (first - 1)


def _before(levels: Ints) -> Ints:
    return np.concatenate([np.zeros(1, np.int64), levels[:-1]])


def _mass(levels: tuple[Ints, Ints, Ints], shapes: Ints, weights: Floats) -> Floats:
    """Weights of the shapes by the levels that they are padded to."""
    mass = np.zeros([len(sizes) for sizes in levels])
    places = tuple(np.searchsorted(sizes, of) for sizes, of in zip(levels, shapes.T, strict=True))
    np.add.at(mass, places, weights)
    return mass
