"""From a Step to columns of numbers, on the host: lanes, positions, slots, sampling parameters.

Rows are in the order of the step. Where shapes must not depend on the step there are as many rows as the
bucket has, and every row has the same number of tokens; what is left over is padding.
"""

import attrs
import numpy as np
import numpy.typing as npt

from tgi.device.base import Device
from tgi.protocol import Step, unpack_ints
from tgi.sampling import FLOATS, INTS

from .lanes import Lanes

Ints = npt.NDArray[np.int32]
Columns = dict[str, npt.NDArray[np.generic]]


@attrs.frozen
class Rows:
    """Where the tokens of a step's rows go among the T of its batch."""

    total: int
    """T"""
    count: int
    """Rows, padding included."""
    lanes: Ints
    """[count]"""
    starts: Ints
    lengths: Ints
    """[real rows]"""
    offsets: Ints
    """[real rows]: of the first token of each."""

    @classmethod
    def of(cls, step: Step, lanes: Lanes, device: Device) -> "Rows":
        """Those of a step on this kind of device."""
        real, starts = unpack_ints(step.lanes), unpack_ints(step.starts)
        lengths = unpack_ints(step.lengths)
        count = step.bucket.rows
        if not step.bucket.prefill:
            count = max(count, device.least_tokens)
            total, offsets = count, np.arange(len(real), dtype=np.int32)
        elif not device.compiles:
            ends = np.cumsum(lengths, dtype=np.int32)
            count, total, offsets = len(real), max(int(ends[-1]), device.least_tokens), ends - lengths
        else:
            total, offsets = (
                count * step.bucket.tokens,
                np.arange(len(real), dtype=np.int32) * step.bucket.tokens,
            )
        padded = np.full(count, lanes.count, np.int32)
        padded[: len(real)] = real
        return cls(total, count, padded, starts, lengths, offsets)

    @property
    def real_lanes(self) -> Ints:
        """[real rows]"""
        return self.lanes[: len(self.lengths)]

    @property
    def places(self) -> Ints:
        """[sum of lengths]: index among the T of every real token."""
        return np.repeat(self.offsets, self.lengths) + self.within

    @property
    def within(self) -> Ints:
        """[sum of lengths]: index of every real token within its row."""
        ends = np.cumsum(self.lengths)
        return np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - self.lengths, self.lengths)

    def place(self, values: Ints, padding: int = 0) -> Ints:
        """[T] of a value for each real token."""
        column = np.full(self.total, padding, np.int32)
        column[self.places] = values
        return column


def token_columns(step: Step, rows: Rows, lanes: Lanes, block_size: int) -> Columns:
    """What the model takes of each token; padding has token, position and slot 0."""
    positions = np.repeat(rows.starts, rows.lengths) + rows.within
    prompts = np.repeat(_prompt_lengths(step, rows, lanes), rows.lengths)
    blocks = lanes.tables[np.repeat(rows.real_lanes, rows.lengths), positions // block_size]
    columns: Columns = {
        "positions": rows.place(positions),
        "contexts": rows.place(np.where(positions < prompts, prompts, positions + 1)),
        "slots": rows.place(blocks * block_size + positions % block_size),
        "lanes": rows.lanes,
    }
    if step.bucket.prefill:
        columns["tokens"] = rows.place(unpack_ints(step.tokens))
    if step.targets:
        columns["targets"] = rows.place(unpack_ints(step.targets), -1)
    return columns


def first_blocks(rows: Rows, block_size: int, window: int | None) -> Ints:
    """[real rows]: number of the first block that a token of the row sees; those before may be others'."""
    if window is None:
        return np.zeros_like(rows.starts)
    return np.maximum(rows.starts + 1 - window, 0) // block_size


def table_columns(rows: Rows, lanes: Lanes, blocks: int, block_size: int, window: int | None) -> Columns:
    """The entries of each row's block table [count * blocks] from the first that it sees, and where that is;
    the padding block beyond its tokens, for what a lane's table has there is of others, and what is masked is
    read nevertheless."""
    first, real = first_blocks(rows, block_size, window), len(rows.starts)
    used = -(-(rows.starts + rows.lengths) // block_size)
    entries = first[:, None] + np.arange(blocks, dtype=np.int32)
    known = lanes.tables[rows.real_lanes[:, None], np.minimum(entries, lanes.tables.shape[1] - 1)]
    tables = np.zeros((rows.count, blocks), np.int32)
    tables[:real] = np.where(entries < used[:, None], known, 0)
    columns: Columns = {"tables": tables.reshape(-1)}
    if window is not None:
        columns["bases"] = np.zeros(rows.count, np.int32)
        columns["bases"][:real] = first * block_size
    return columns


def _prompt_lengths(step: Step, rows: Rows, lanes: Lanes) -> Ints:
    """Of the real rows. Where the server does not say, the prompt is taken to end with this step."""
    said = lanes.prompt_lengths[rows.real_lanes]
    reached = rows.starts + rows.lengths if step.bucket.prefill else np.zeros_like(rows.starts)
    return np.where(said > 0, said, reached)


def sampler_columns(step: Step, rows: Rows, lanes: Lanes, dynamic: bool) -> tuple[Columns, Ints]:
    """What the sampler takes, and which row of the step each of its rows is, -1: padding.

    Rows that are not sampled are left out where shapes are cheap, else padding.
    """
    draws = np.where(unpack_ints(step.samples) > 0, unpack_ints(step.draws), -1)
    keep = np.flatnonzero(draws >= 0).astype(np.int32)
    numbers = keep if dynamic else np.arange(rows.count, dtype=np.int32)
    real = numbers < len(draws)
    index = np.where(real, numbers, 0)
    sampled = real & (draws[index] >= 0)
    row_lanes = np.where(sampled, rows.lanes[numbers], lanes.count).astype(np.int32)
    lengths = np.where(sampled, rows.starts[index] + rows.lengths[index], 1)
    ends = np.where(real, rows.offsets[index] + rows.lengths[index] - 1, 0)
    drawn = np.where(sampled, draws[index], 0).astype(np.int32)
    high, low = lanes.draw(row_lanes, drawn)
    floats, ints = lanes.floats[row_lanes], lanes.ints[row_lanes]
    columns: Columns = {
        "last": ends,
        "sampled_lanes": row_lanes,
        "lengths": lengths,
        "draw_high": high,
        "draw_low": low,
        "barred": drawn < lanes.min_tokens[row_lanes],
        **{name: ints[:, i] for i, name in enumerate(INTS)},
        **{name: floats[:, i] for i, name in enumerate(FLOATS)},
    }
    return columns, np.where(sampled, numbers, -1).astype(np.int32)
