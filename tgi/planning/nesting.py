"""The cheapest way to cut a grid of three dimensions into nested cells, by dynamic programming.

The levels of the first dimension are cut into slabs; within each slab, those of the second into pieces;
within each piece, those of the third into cells. A cell costs its mass times the price at its upper corner,
plus a fixed price. With C the cost of the cheapest way to cut a line, all three follow one formula

    C(j) = min over i < j of C(i) + cost of the part from i to j

where the cost of a slab is that of cutting its second dimension, and so on. Levels beyond the last part of a
line are left out, at a cost of their own.
"""

from collections.abc import Iterator
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Cell = tuple[tuple[int, int], ...]
"""First and last level that a cell covers, of each dimension."""


@attrs.frozen(eq=False)
class Grid:
    """Levels of three dimensions, and arrays over all their combinations.

    A combination stands for the shapes that exceed the levels before, but not these.
    """

    levels: tuple[Ints, Ints, Ints]
    mass: Floats
    """Weight of the shapes of each combination."""
    price: Floats
    """Price of a bucket with these sizes; infinite if it is not allowed."""
    least: Floats
    """Price of the smallest of the shapes."""
    needed: Bools
    """Whether any of the shapes must have a bucket."""
    unbound: Bools
    """Whether a cell of this combination alone is always allowed."""


class Cuts:
    """Finds the cheapest cut of a grid for any price of a cell, doing once what does not depend on it."""

    def __init__(self, grid: Grid, order: tuple[int, int, int], max_ratio: float) -> None:
        """`order` has the dimensions, outermost first; a cell costs at most `max_ratio` times its least."""
        self._order = order
        mass, price, least, unbound = (
            np.transpose(array, order) for array in (grid.mass, grid.price, grid.least, grid.unbound)
        )
        self._sizes = price.shape
        slabs, middles = _parts(price.shape[0]), _parts(price.shape[1])
        places = np.indices((len(slabs), len(middles))).reshape(2, -1)
        a, b = slabs[places[0]], middles[places[1]]
        possible = np.isfinite(price[a[:, 1], b[:, 1], 0])
        self._slabs, self._places = slabs, places[:, possible]
        a, b = a[possible], b[possible]
        self._a, self._b, masses = a, b, _box(_sums(mass), a, b)
        corner, single = price[a[:, 1], b[:, 1]][:, None, :], ((a[:, 0] == a[:, 1]) & (b[:, 0] == b[:, 1]))
        alone = single[:, None] & unbound[a[:, 1], b[:, 1]]
        allowed = corner <= max_ratio * least[a[:, 0], b[:, 0]][:, :, None]
        allowed |= alone[:, :, None] & np.eye(price.shape[2], dtype=bool)
        allowed &= np.isfinite(corner)
        costs = (masses[:, None, 1:] - masses[:, :-1, None]) * np.where(np.isfinite(corner), corner, 0.0)
        self._cells = np.where(allowed, costs, np.inf)

    def cheapest(self, each: float, skip: npt.NDArray[Any]) -> tuple[float, list[Cell]]:
        """Return the least cost and its cells, if every cell costs `each` besides.

        `skip` has the cost of leaving out all shapes of each combination.
        """
        sums = _sums(np.transpose(skip, self._order))
        skips = _box(sums, self._a, self._b)
        inner = _Lines(self._cells, skips[:, -1:] - skips, each)
        middles = _parts(self._sizes[1])
        middle_costs = np.full((len(self._slabs), self._sizes[1], self._sizes[1]), np.inf)
        middle_costs[self._places[0], *middles[self._places[1]].T] = inner.total
        total = sums[:, :, -1]
        within = total[self._slabs[:, 1] + 1] - total[self._slabs[:, 0]]
        middle = _Lines(middle_costs, within[:, -1:] - within)
        outer_costs = np.full((1, self._sizes[0], self._sizes[0]), np.inf)
        outer_costs[0, *self._slabs.T] = middle.total
        outer = _Lines(outer_costs, (total[-1:, -1] - total[:, -1])[None])
        lines = {place: line for line, place in enumerate(zip(*self._places.tolist(), strict=True))}
        cells = [
            self._in_order(slab, piece, part)
            for slab in outer.parts(0)
            for piece in middle.parts(_number(slab))
            for part in inner.parts(lines[_number(slab), _number(piece)])
        ]
        return float(outer.total[0]), cells

    def _in_order(self, *parts: tuple[int, int]) -> Cell:
        return tuple(parts[self._order.index(dimension)] for dimension in range(3))


class _Lines:
    """Cheapest cuts of many lines at once.

    `costs` [lines, from, to] are those of a part with both ends; `tails` [lines, levels + 1] those of leaving
    out all from a level on.
    """

    def __init__(self, costs: Floats, tails: Floats, each: float = 0.0) -> None:
        count, size, _ = costs.shape
        lines = np.arange(count)
        reached = np.zeros((count, size + 1))
        self._before = np.zeros((count, size + 1), np.int64)
        for level in range(size):
            ways = reached[:, : level + 1] + costs[:, : level + 1, level]
            best = ways.argmin(1)
            self._before[:, level + 1] = best
            reached[:, level + 1] = ways[lines, best] + each
        ends = reached + tails
        self._ends = ends.argmin(1)
        self.total: Floats = ends[lines, self._ends]

    def parts(self, line: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of one line, the last first."""
        end = int(self._ends[line])
        while end:
            begin = int(self._before[line, end])
            yield begin, end - 1
            end = begin


def _parts(size: int) -> Ints:
    """Return all (first, last) within `size` levels; `_number` is the index of each."""
    return np.array([(first, last) for last in range(size) for first in range(last + 1)], np.int64).reshape(
        -1, 2
    )


def _number(part: tuple[int, int]) -> int:
    first, last = part
    return last * (last + 1) // 2 + first


def _sums(array: npt.NDArray[Any]) -> Floats:
    """Return the sums of everything before each place."""
    sums: Floats = np.pad(array, ((1, 0),) * 3).cumsum(0).cumsum(1).cumsum(2)
    return sums


def _box(sums: Floats, a: Ints, b: Ints) -> Floats:
    """Return the sums of n parts a x b along the third dimension, [n, levels + 1]."""
    (a0, a1), (b0, b1) = a.T, b.T
    box: Floats = sums[a1 + 1, b1 + 1] - sums[a0, b1 + 1] - sums[a1 + 1, b0] + sums[a0, b0]
    return box
