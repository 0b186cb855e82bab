"""The columns of a step on the host: from the message and what is kept of each lane to numbers per token,
row and sample."""

import attrs
import numpy as np
import numpy.typing as npt

from tgi.protocol import Step, unpack_ints

from .lanes import Lanes
from .layout import Columns, Dimensions, Sizes

Ints = npt.NDArray[np.int32]


@attrs.frozen
class Rows:
    """The rows of a step without padding, and their places among the tokens and samples of its program."""

    lanes: Ints
    """[rows]"""
    starts: Ints
    """[rows]: position of the first query token."""
    lengths: Ints
    """[rows]: query tokens."""
    owners: Ints
    """[sum of lengths]: row of each token."""
    positions: Ints
    """[sum of lengths]: position in the sequence of each token."""
    places: Ints
    """[sum of lengths]: index of each token among those of the program, padding included."""
    sampled: Ints
    """[samples]: index of each sampled token among the tokens without padding."""
    draws: Ints
    """[samples]: index of the generated token."""
    answers: Ints
    """[samples]: index of each sample among those of the program, padding included."""

    @classmethod
    def of(cls, step: Step, *, padded: bool) -> "Rows":
        """Read a step. `padded`: each row has the places that the bucket gives it, also for a sample."""
        columns = (step.lanes, step.starts, step.lengths, step.samples, step.draws)
        lanes, starts, lengths, samples, draws = map(unpack_ints, columns)
        owners, within = _spread(lengths)
        sample_owners, later = _spread(samples)
        ends = np.cumsum(lengths, dtype=np.int32)
        return cls(
            lanes=lanes,
            starts=starts,
            lengths=lengths,
            owners=owners,
            positions=starts[owners] + within,
            places=owners * step.bucket.tokens + within if padded else np.arange(len(owners), dtype=np.int32),
            sampled=(ends - samples)[sample_owners] + later,
            draws=draws[sample_owners] + later,
            answers=sample_owners if padded else np.arange(len(sample_owners), dtype=np.int32),
        )


def _spread(counts: Ints) -> tuple[Ints, Ints]:
    """For `counts[i]` things of each row i, return the row of each and its index among those of the row."""
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    begins = np.cumsum(counts, dtype=np.int32) - counts
    return owners, np.arange(len(owners), dtype=np.int32) - begins[owners]


def step_columns(step: Step, rows: Rows, lanes: Lanes, dimensions: Dimensions, sizes: Sizes) -> Columns:
    """Compute every column of a step whose changes `lanes` knows already."""
    columns = _token_columns(step, rows, lanes, dimensions)
    columns |= _sample_columns(rows, lanes, dimensions)
    for group, window in enumerate(sizes.windows):
        columns |= _group_columns(group, window, rows, lanes, dimensions, sizes)
    if step.masks:
        columns |= _mask_columns(step, rows, dimensions, sizes)
    return columns


def _place(places: Ints, values: Ints, size: int, padding: int = 0) -> Ints:
    """Return a column of `size` with the values in their places."""
    column = np.full(size, padding, np.int32)
    column[places] = values
    return column


def _token_columns(step: Step, rows: Rows, lanes: Lanes, dimensions: Dimensions) -> Columns:
    tokens, positions = unpack_ints(step.tokens), rows.positions
    prompts = lanes.prompt_lengths[rows.lanes][rows.owners]
    columns = {
        # A token that is still on the device is named by its lane.
        "tokens": np.where(tokens < 0, -1 - rows.lanes[rows.owners], tokens),
        "positions": positions,
        "contexts": np.where(positions < prompts, prompts, positions + 1),
    }
    placed: Columns = {name: _place(rows.places, c, dimensions.tokens) for name, c in columns.items()}
    return placed | {"starts": rows.starts, "lengths": rows.lengths}


def _sample_columns(rows: Rows, lanes: Lanes, dimensions: Dimensions) -> Columns:
    owners = rows.owners[rows.sampled]
    count = dimensions.samples
    sample_lanes = _place(rows.answers, rows.lanes[owners], count, lanes.count)
    draws = _place(rows.answers, rows.draws, count)
    last_of_row = rows.sampled == np.cumsum(rows.lengths)[owners] - 1
    high, low = lanes.draw(sample_lanes, draws)
    last = np.arange(count, dtype=np.int32) * (dimensions.tokens // max(count, 1))
    last[rows.answers] = rows.places[rows.sampled]
    return {
        "last": last,
        "lanes": sample_lanes,
        "next_lanes": _place(rows.answers[last_of_row], rows.lanes[owners[last_of_row]], count, lanes.count),
        "draw_high": high,
        "draw_low": low,
        "barred": draws < lanes.min_tokens[sample_lanes],
        "ints": lanes.ints[sample_lanes].T,
        "floats": lanes.floats[sample_lanes].T,
    }


def _group_columns(
    group: int, window: int | None, rows: Rows, lanes: Lanes, dimensions: Dimensions, sizes: Sizes
) -> Columns:
    """Compute the slots of the tokens, and the blocks that the rows see."""
    size, blocks, tables = sizes.block_size, dimensions.blocks[group], lanes.tables[group]
    owner_lanes, positions = rows.lanes[rows.owners], rows.positions
    slots = tables[owner_lanes, positions // size] * size + positions % size
    columns: Columns = {f"slots{group}": _place(rows.places, slots, dimensions.tokens)}
    first = first_blocks(rows.starts, window, size)
    ends = -(-(rows.starts + rows.lengths) // size)
    if dimensions.flat:
        owners, within = _spread(ends - first)
        assert len(owners) <= blocks, "more blocks than the bucket has"
        entries = first[owners] + within
        return columns | {
            f"ids{group}": tables[rows.lanes[owners], entries],
            f"rows{group}": owners,
            f"tokens{group}": rows.starts[owners] + 1 - entries * size,
        }
    # Entries beyond a row's tokens are block 0: stale ids would be read even though they are masked.
    seen = first[:, None] + np.arange(blocks, dtype=np.int32)
    known = tables[rows.lanes[:, None], np.minimum(seen, tables.shape[1] - 1)]
    columns[f"tables{group}"] = np.where(seen < ends[:, None], known, 0)
    if window is not None:
        columns[f"bases{group}"] = first * size
    return columns


def first_blocks(starts: Ints, window: int | None, block_size: int) -> Ints:
    """Return the number of the first block that each row sees; those before may be other rows'."""
    if window is None:
        return np.zeros_like(starts)
    return np.maximum(starts + 1 - window, 0) // block_size


def _mask_columns(step: Step, rows: Rows, dimensions: Dimensions, sizes: Sizes) -> Columns:
    """Lay out the masks: of the masked samples alone, or one per sample if the program has room for all."""
    masked = rows.answers[unpack_ints(step.masked)]
    words = unpack_ints(step.masks).reshape(-1, sizes.mask_words)
    if dimensions.masks < dimensions.samples:
        return {"masked": masked, "masks": words}
    every = np.full((dimensions.masks, sizes.mask_words), -1, np.int32)
    every[masked] = words
    return {"masks": every}
