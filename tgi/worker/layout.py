"""Inputs of a step: from the message and the state of its lanes to columns of numbers per token, row and
sample, and their layout in packed arrays, integers and floats apart: one for the model, two for the sampler.

On a device that compiles, layouts follow from the bucket. On any other, they are as large as the step.
"""

from collections.abc import Mapping
from functools import lru_cache

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.protocol import Step, unpack_ints
from tgi.sampling import FLOATS, INTS, NEUTRAL

from .lanes import Ints, Lanes

Array = npt.NDArray[np.generic]
Columns = dict[str, Array]
"""Columns of a step by name. A column may be shorter than its place in the layout: the rest is padding."""


@attrs.frozen
class Dimensions:
    """Sizes of a step's columns."""

    rows: int
    tokens: int
    """Query tokens of all rows, padding included."""
    samples: int
    blocks: tuple[int, ...]
    """Entries of each row's block table, for each group of layers; of the one list of all rows if `flat`."""
    flat: bool
    loras: bool = False
    """Whether a row has a LoRA adapter."""


@attrs.frozen
class Sizes:
    """Sizes that all steps of a rank share."""

    block_size: int
    lanes: int
    """Number of lanes, and the index of the padding lane."""
    vocabulary: int
    """Number of token ids."""
    windows: tuple[int | None, ...]
    """Tokens that a token sees, for each group of layers; None: all before it."""
    contiguous: bool = False
    """`Limits.contiguous`."""

    @property
    def mask_words(self) -> int:
        """int32 words of a mask: one bit per token of the vocabulary."""
        return -(-self.vocabulary // 32)


@attrs.frozen(eq=False)
class Layout:
    """Places of columns. Made by `of`."""

    ints: npt.NDArray[np.int32]
    """Packed integers of a step without rows."""
    floats: npt.NDArray[np.float32]
    """Packed floats of a step without rows."""
    places: Mapping[str, tuple[int, slice, tuple[int, ...]]]
    """Number of the packed tensor (0: integers, 1: floats), place and shape of each column."""

    @classmethod
    def of(cls, columns: Columns) -> "Layout":
        """Lay out columns that are filled with padding."""
        places = {}
        packed: tuple[list[Array], list[Array]] = [], []
        ends = [0, 0]
        for name, column in columns.items():
            kind = int(name == "floats")  # a bool is no index to the tracer of torch 2.11
            begin = ends[kind]
            ends[kind] = begin + column.size
            places[name] = kind, slice(begin, ends[kind]), column.shape
            packed[kind].append(column.reshape(-1))
        ints, numbers = (np.concatenate(kind) if kind else np.zeros(0) for kind in packed)
        return cls(ints.astype(np.int32), numbers.astype(np.float32), places)

    def pack(self, columns: Columns) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Copy the columns that have a place here to it, in new arrays."""
        packed = self.ints.copy(), self.floats.copy()
        for name, (kind, place, shape) in self.places.items():
            column = columns.get(name)
            if column is None:
                continue
            if column.ndim == 1:
                packed[kind][place.start : place.start + column.size] = column
            else:
                height, width = column.shape
                packed[kind][place].reshape(shape)[:height, :width] = column
        return packed

    def unpack(self, *packed: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of the packed tensors, integers and perhaps floats, by column."""
        return {name: packed[kind][place].view(shape) for name, (kind, place, shape) in self.places.items()}


@lru_cache(maxsize=256)
def model_layout(dimensions: Dimensions, sizes: Sizes) -> Layout:
    """Return the layout of what the model takes in steps of these dimensions: integers only."""
    rows, tokens, samples = dimensions.rows, dimensions.tokens, dimensions.samples
    columns: Columns = {
        "tokens": np.zeros(tokens),
        "positions": np.zeros(tokens),
        "contexts": np.zeros(tokens),
        "starts": np.zeros(rows),
        "lengths": np.ones(rows),
        "last": np.arange(samples) * (tokens // max(samples, 1)),
    }
    if dimensions.loras:
        columns["loras"] = np.full(tokens, -1)
    slots = np.arange(tokens) % sizes.block_size  # of block 0, rarely the same one twice
    for group, (blocks, window) in enumerate(zip(dimensions.blocks, sizes.windows, strict=True)):
        columns[f"slots{group}"] = slots
        if dimensions.flat:
            if not sizes.contiguous:
                columns[f"ids{group}"] = np.zeros(blocks)
            columns[f"rows{group}"] = np.full(blocks, rows)
            columns[f"tokens{group}"] = np.ones(blocks)
        else:
            columns[f"tables{group}"] = np.zeros((rows, blocks))
            if window is not None:
                columns[f"bases{group}"] = np.zeros(rows)
    return Layout.of(columns)


@lru_cache(maxsize=256)
def sample_layout(samples: int, masks: int, sizes: Sizes) -> Layout:
    """Return the layout of what the sampler takes for that many samples, `masks` of which have masks."""
    columns: Columns = {
        "lanes": np.full(samples, sizes.lanes),
        "next_lanes": np.full(samples, sizes.lanes),
        "counts": np.ones(samples),
        "previous": np.zeros(samples),
        "draws": np.zeros(samples),
        "barred": np.zeros(samples),
        "ints": np.tile([[NEUTRAL[name]] for name in INTS], samples),
        "floats": np.tile([[NEUTRAL[name]] for name in FLOATS], samples),
    }
    if masks:
        if masks < samples:
            columns["masked"] = np.zeros(masks)
        columns["masks"] = np.full((masks, sizes.mask_words), -1)
    return Layout.of(columns)


@attrs.frozen
class Rows:
    """The rows of a step without padding, and their places among the tokens and samples of its program."""

    padded: bool
    """Whether each row has the places that the bucket gives it, also for a sample."""
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
        """Read a step, whose program has room for a whole bucket if `padded`."""
        columns = (step.lanes, step.starts, step.lengths, step.samples, step.draws)
        lanes, starts, lengths, samples, draws = map(unpack_ints, columns)
        owners, within = _spread(lengths)
        sample_owners, later = _spread(samples)
        ends = np.cumsum(lengths, dtype=np.int32)
        return cls(
            padded=padded,
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
    """Return the row of each thing, of which row i has `counts[i]`, and its index among those of the row."""
    owners = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    begins = np.cumsum(counts, dtype=np.int32) - counts
    return owners, np.arange(len(owners), dtype=np.int32) - begins[owners]


def step_columns(step: Step, rows: Rows, lanes: Lanes, dimensions: Dimensions, sizes: Sizes) -> Columns:
    """Compute every column of a step whose changes `lanes` knows already."""
    columns = _token_columns(step, rows, lanes, dimensions)
    columns |= _sample_columns(columns, rows, lanes, dimensions)
    for group, window in enumerate(sizes.windows):
        columns |= _group_columns(group, window, rows, lanes, dimensions, sizes)
    if step.masks:
        columns |= _mask_columns(step, rows, dimensions.samples, sizes)
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
    if step.loras:
        placed["loras"] = _place(rows.places, unpack_ints(step.loras)[rows.owners], dimensions.tokens, -1)
    return placed | {"starts": rows.starts, "lengths": rows.lengths}


def _sample_columns(tokens: Columns, rows: Rows, lanes: Lanes, dimensions: Dimensions) -> Columns:
    owners = rows.owners[rows.sampled]
    count = dimensions.samples
    sample_lanes = _place(rows.answers, rows.lanes[owners], count, lanes.count)
    draws = _place(rows.answers, rows.draws, count)
    last_of_row = rows.sampled == np.cumsum(rows.lengths)[owners] - 1
    last = np.arange(count, dtype=np.int32) * (dimensions.tokens // max(count, 1))
    last[rows.answers] = rows.places[rows.sampled]
    return {
        "last": last,
        "counts": tokens["positions"][last] + 1,
        "previous": tokens["tokens"][last],
        "lanes": sample_lanes,
        "next_lanes": _place(rows.answers[last_of_row], rows.lanes[owners[last_of_row]], count, lanes.count),
        "draws": lanes.draw(sample_lanes, draws),
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
        entries = first[owners] + within
        ids, tokens = tables[rows.lanes[owners], entries], rows.starts[owners] + 1 - entries * size
        if sizes.contiguous:
            assert ids.max() < blocks, "a block beyond the bucket"
            return columns | {
                f"rows{group}": _place(ids, owners, blocks, dimensions.rows),
                f"tokens{group}": _place(ids, tokens, blocks, 1),
            }
        assert len(owners) <= blocks, "more blocks than the bucket has"
        return columns | {f"ids{group}": ids, f"rows{group}": owners, f"tokens{group}": tokens}
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


def _mask_columns(step: Step, rows: Rows, samples: int, sizes: Sizes) -> Columns:
    """Lay out the masks: of the masked samples alone, or one per sample where shapes are fixed."""
    masked = rows.answers[unpack_ints(step.masked)]
    words = unpack_ints(step.masks).reshape(-1, sizes.mask_words)
    if not rows.padded:
        return {"masked": masked, "masks": words}
    every = np.full((samples, sizes.mask_words), -1, np.int32)
    every[masked] = words
    return {"masks": every}
