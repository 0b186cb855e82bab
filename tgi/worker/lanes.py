"""State that a rank keeps per lane between steps: on the host block tables and sampling parameters, on the
device tables of the sampler.

The lane after the last one that the server knows stands in for padding: its block tables are block 0, and its
parameters neutral.
"""

import numpy as np
import numpy.typing as npt
import torch

from tgi.device.base import Device
from tgi.protocol import LaneParams, Step, unpack_ints
from tgi.sampling import COLUMNS, FLOATS, INTS, NEUTRAL

Ints = npt.NDArray[np.int32]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MAX_BIAS = 1e4
"""A greater bias has the effect of this one: the scores stay finite in float32."""


class Lanes:
    """The lanes of one rank."""

    def __init__(self, count: int, blocks: int, groups: int = 1) -> None:
        self.count = count
        """Number of lanes, and the index of the padding lane."""
        self.tables = [np.zeros((count + 1, blocks), np.int32) for _ in range(groups)]
        """Block tables of each group of layers, [lanes, blocks of the longest sequence]. Entries beyond a
        lane's own are left over from before."""
        self.prompt_lengths = np.zeros(count + 1, np.int32)
        """Tokens in the sequence's prompt."""
        self.min_tokens = np.zeros(count + 1, np.int32)
        self.seeds = np.zeros(count + 1, np.uint64)
        self.changed = np.zeros(count + 1, bool)
        """Whether a parameter is not neutral, or ends may not come yet."""
        self.floats = np.tile(np.array([NEUTRAL[name] for name in FLOATS], np.float32), (count + 1, 1))
        """[lanes, len(FLOATS)]"""
        self.last_tokens: Ints | None = None
        """[lanes + 1]: the last sampled token of each lane, where `Device.immediate`."""
        self.ints = np.tile(np.array([NEUTRAL[name] for name in INTS], np.int32), (count + 1, 1))
        """[lanes, len(INTS)]"""

    def update(self, step: Step) -> None:
        """Take over the changes of a step: new entries of block tables, parameters of new sequences."""
        if step.table_lanes:
            self._extend_tables(step)
        if step.params:
            ends = unpack_ints(step.starts) + unpack_ints(step.lengths)
            reached = dict(zip(unpack_ints(step.lanes).tolist(), ends.tolist(), strict=True))
            for params in step.params:
                self._set_params(params, reached.get(params.lane, 0))

    def _extend_tables(self, step: Step) -> None:
        columns = (step.table_lanes, step.table_starts, step.table_counts)
        lanes, starts, counts = (unpack_ints(column).tolist() for column in columns)
        groups = unpack_ints(step.table_groups).tolist() or [0] * len(lanes)
        blocks = unpack_ints(step.table_blocks)
        used = 0
        for group, lane, start, count in zip(groups, lanes, starts, counts, strict=True):
            self.tables[group][lane, start : start + count] = blocks[used : used + count]
            used += count

    def draw(self, lanes: Ints, draws: Ints) -> Ints:
        """Return 32 random bits per row.

        The generator is counter-based: they are the upper half of the `draw`-th output of splitmix64 (Steele,
        Lea and Flood 2014) from a state hashed from the seed, and depend on (seed, draw) alone.
        """
        with np.errstate(over="ignore"):
            state = _mix(self.seeds[lanes] + _GOLDEN)
            bits = _mix(state + (draws.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
        return (bits >> np.uint64(32)).astype(np.uint32).view(np.int32)

    def _set_params(self, params: LaneParams, reached: int) -> None:
        lane, sampling = params.lane, params.sampling
        self.floats[lane] = [COLUMNS[name].column(sampling) for name in FLOATS]
        self.ints[lane] = [COLUMNS[name].column(sampling) for name in INTS]
        self.min_tokens[lane] = sampling.min_tokens
        self.changed[lane] = sampling.min_tokens > 0 or not (
            np.array_equal(self.floats[lane], self.floats[-1])
            and np.array_equal(self.ints[lane], self.ints[-1])
        )
        self.seeds[lane] = sampling.seed
        self.prompt_lengths[lane] = params.prompt_length or reached


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Finish splitmix64: a bijection whose every output bit depends on every input bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def entries_of(params: LaneParams, size: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Return what a sequence brings into the tables: token ids [n], each once, and their numbers [4, n].

    The numbers are how often the sequence has the token, how often of these it was generated, the bias, and
    1 if the token would end the text. Ids beyond the vocabulary are left out, and so are ends that would
    leave no token at all.
    """
    history = unpack_ints(params.history)
    generated = history[params.prompt_length or len(history) :]
    biased = [token for token, _ in params.sampling.logit_bias]
    ends = {token for token in params.sampling.ends if token < size}
    if len(ends) == size:
        ends = set()
    ids = np.unique(np.concatenate((history, np.array([*biased, *ends], np.int32))))
    numbers = np.zeros((4, len(ids)), np.float32)
    np.add.at(numbers[0], np.searchsorted(ids, history), 1)
    np.add.at(numbers[1], np.searchsorted(ids, generated), 1)
    for token, bias in params.sampling.logit_bias:
        numbers[2, np.searchsorted(ids, token)] = min(max(bias, -_MAX_BIAS), _MAX_BIAS)
    numbers[3, np.searchsorted(ids, [*ends])] = 1
    known = ids < size
    return ids[known].astype(np.int32), numbers[:, known]


class Tables:
    """The tables of one rank, [lanes * vocab] each.

    Together they take `tgi.device.costs.TABLE_BYTES` for each token of each lane. They are flat because a
    device that compiles may not update a tensor through a view of it.
    """

    def __init__(self, lanes: int, vocab_size: int, device: Device) -> None:
        def table(dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(lanes * vocab_size, dtype=dtype, device=device.torch_device)

        self.size = vocab_size
        # Counts are in float32, since not every device adds integers by index.
        self.counts = table(torch.float32)
        """Number of times that the sequence has the token."""
        self.generated = table(torch.float32)
        """Number of times that the token was generated."""
        self.bias = table(torch.float32)
        """Number added to the token's score."""
        self.ends = table(torch.bool)
        """Whether the token would end the text."""

    def rows(self, table: torch.Tensor, lanes: torch.Tensor) -> torch.Tensor:
        """Read the rows of some lanes [n] from a table, [n, vocab]."""
        return table.view(-1, self.size).index_select(0, lanes)

    def count(self, lanes: torch.Tensor, tokens: torch.Tensor) -> None:
        """Count that the sequences of the lanes [n] go on with generated tokens [n]."""
        places = (lanes * self.size + tokens).long()
        ones = torch.ones_like(places, dtype=torch.float32)
        self.counts.scatter_add_(0, places, ones)
        self.generated.scatter_add_(0, places, ones)

    def enter(self, lane: torch.Tensor, keep: torch.Tensor, ids: torch.Tensor, numbers: torch.Tensor) -> None:
        """Write a lane's [1] rows: `numbers` [4, n] of the tokens `ids` [n], as `entries_of` has them.

        `keep` [1] is 1 to add to the rows, and 0 to replace them. The id of padding is the size of the
        vocabulary.
        """
        rows = numbers.new_zeros(4, self.size + 1).scatter_(1, ids.long().expand(4, -1), numbers)
        places = (lane * self.size + torch.arange(self.size, dtype=torch.int32, device=lane.device)).long()
        for table, row in zip((self.counts, self.generated, self.bias, self.ends), rows, strict=True):
            whole = row[: self.size] + keep * self.rows(table, lane)[0]
            table.index_copy_(0, places, whole.to(table.dtype))
