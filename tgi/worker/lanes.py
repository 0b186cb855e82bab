"""What a rank's host keeps per lane between steps: block table and sampling parameters, as numpy columns.

One lane more than the server knows stands in for padding rows: its table is block 0, its parameters neutral.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from tgi.protocol import LaneParams, Step, unpack_ints
from tgi.sampling import COLUMNS, FLOATS, INTS, NEUTRAL

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
DRAW_BITS = 26
"""Bits in each of the two halves of a random number."""


class Lanes:
    """The lanes of one rank; `count` is the index of the padding lane."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.tables = np.zeros((count + 1, 64), np.int32)
        """[lanes, entries]; grows to the right. Entries beyond a lane's own are left over from before."""
        self.prompt_lengths = np.zeros(count + 1, np.int32)
        """Tokens in the sequence's prompt; 0 where the server does not say."""
        self.min_tokens = np.zeros(count + 1, np.int32)
        self.seeds = np.zeros(count + 1, np.uint64)
        self.floats = np.tile(np.array([NEUTRAL[name] for name in FLOATS], np.float32), (count + 1, 1))
        """[lanes, len(FLOATS)]"""
        self.ints = np.tile(np.array([NEUTRAL[name] for name in INTS], np.int32), (count + 1, 1))
        """[lanes, len(INTS)]"""

    def update(self, step: Step) -> None:
        """Take over what the step changes: new entries of block tables, parameters of new sequences."""
        columns = (step.table_lanes, step.table_starts, step.table_counts)
        blocks = unpack_ints(step.table_blocks)
        used = 0
        for lane, start, count in zip(*(unpack_ints(column).tolist() for column in columns), strict=True):
            self._reserve(start + count)
            self.tables[lane, start : start + count] = blocks[used : used + count]
            used += count
        self._set_params(step.params)

    def draw(
        self, lanes: npt.NDArray[np.int32], draws: npt.NDArray[np.int32]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """A uniform random number per row as two halves of DRAW_BITS bits, the high one first.

        A counter-based generator: the `draw`-th output of splitmix64 (Steele, Lea and Flood 2014) from a
        state hashed from the seed. It depends on (seed, draw) alone.
        """
        with np.errstate(over="ignore"):
            state = _mix(self.seeds[lanes] + _GOLDEN)
            bits = _mix(state + (draws.astype(np.uint64) + np.uint64(1)) * _GOLDEN) >> np.uint64(
                64 - 2 * DRAW_BITS
            )
        low = bits & np.uint64((1 << DRAW_BITS) - 1)
        return (bits >> np.uint64(DRAW_BITS)).astype(np.int32), low.astype(np.int32)

    def _set_params(self, params: Iterable[LaneParams]) -> None:
        for new in params:
            self.floats[new.lane] = [COLUMNS[name].column(new.sampling) for name in FLOATS]
            self.ints[new.lane] = [COLUMNS[name].column(new.sampling) for name in INTS]
            self.min_tokens[new.lane] = new.sampling.min_tokens
            self.seeds[new.lane] = new.sampling.seed
            self.prompt_lengths[new.lane] = new.prompt_length

    def _reserve(self, entries: int) -> None:
        width = self.tables.shape[1]
        if entries > width:
            more = max(width, entries - width)
            self.tables = np.pad(self.tables, ((0, 0), (0, more)))


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64: a bijection whose every output bit depends on every input bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
