"""State that a rank's host keeps per lane between steps: block tables and sampling parameters.

The lane after the last one that the server knows stands in for padding: its tables are block 0, and its
parameters neutral.
"""

import numpy as np
import numpy.typing as npt

from tgi.protocol import LaneParams, Step, unpack_ints
from tgi.sampling import COLUMNS, FLOATS, INTS, NEUTRAL

Ints = npt.NDArray[np.int32]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
DRAW_BITS = 26
"""Bits in each of the two halves of a random number."""


class Lanes:
    """The lanes of one rank."""

    def __init__(self, count: int, groups: int = 1) -> None:
        self.count = count
        """Number of lanes, and the index of the padding lane."""
        self.tables = [np.zeros((count + 1, 64), np.int32) for _ in range(groups)]
        """Block tables of each group of layers, [lanes, entries]; they grow to the right. Entries beyond a
        lane's own are left over from before."""
        self.prompt_lengths = np.zeros(count + 1, np.int32)
        """Tokens in the sequence's prompt."""
        self.min_tokens = np.zeros(count + 1, np.int32)
        self.seeds = np.zeros(count + 1, np.uint64)
        self.floats = np.tile(np.array([NEUTRAL[name] for name in FLOATS], np.float32), (count + 1, 1))
        """[lanes, len(FLOATS)]"""
        self.ints = np.tile(np.array([NEUTRAL[name] for name in INTS], np.int32), (count + 1, 1))
        """[lanes, len(INTS)]"""

    def update(self, step: Step) -> None:
        """Take over the changes of a step: new entries of block tables, parameters of new sequences."""
        columns = (step.table_lanes, step.table_starts, step.table_counts)
        lanes, starts, counts = (unpack_ints(column).tolist() for column in columns)
        groups = unpack_ints(step.table_groups).tolist() or [0] * len(lanes)
        blocks = unpack_ints(step.table_blocks)
        used = 0
        for group, lane, start, count in zip(groups, lanes, starts, counts, strict=True):
            self._reserve(group, start + count)
            self.tables[group][lane, start : start + count] = blocks[used : used + count]
            used += count
        if step.params:
            ends = unpack_ints(step.starts) + unpack_ints(step.lengths)
            reached = dict(zip(unpack_ints(step.lanes).tolist(), ends.tolist(), strict=True))
            for params in step.params:
                self._set_params(params, reached.get(params.lane, 0))

    def draw(self, lanes: Ints, draws: Ints) -> tuple[Ints, Ints]:
        """Return a uniform random number per row as two halves of DRAW_BITS bits, the high one first.

        The generator is counter-based: the `draw`-th output of splitmix64 (Steele, Lea and Flood 2014) from a
        state hashed from the seed. It depends on (seed, draw) alone.
        """
        with np.errstate(over="ignore"):
            state = _mix(self.seeds[lanes] + _GOLDEN)
            bits = _mix(state + (draws.astype(np.uint64) + np.uint64(1)) * _GOLDEN) >> np.uint64(
                64 - 2 * DRAW_BITS
            )
        low = bits & np.uint64((1 << DRAW_BITS) - 1)
        return (bits >> np.uint64(DRAW_BITS)).astype(np.int32), low.astype(np.int32)

    def _set_params(self, params: LaneParams, reached: int) -> None:
        lane, sampling = params.lane, params.sampling
        self.floats[lane] = [COLUMNS[name].column(sampling) for name in FLOATS]
        self.ints[lane] = [COLUMNS[name].column(sampling) for name in INTS]
        self.min_tokens[lane] = sampling.min_tokens
        self.seeds[lane] = sampling.seed
        self.prompt_lengths[lane] = params.prompt_length or reached

    def _reserve(self, group: int, entries: int) -> None:
        width = self.tables[group].shape[1]
        if entries > width:
            more = max(width, entries - width)
            self.tables[group] = np.pad(self.tables[group], ((0, 0), (0, more)))


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finish splitmix64: a bijection whose every output bit depends on every input bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
