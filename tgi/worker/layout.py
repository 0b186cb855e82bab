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


@attrs.frozen(eq=False)
class Runs:
    """Indices that follow from the numbers of query tokens and samples of a step's rows alone."""

    owners: Ints
    """[sum of lengths]: row of each token."""
    within: Ints
    """[sum of lengths]: index of each token among those of its row."""
    places: Ints
    """[sum of lengths]: index of each token among those of the program, padding included."""
    sample_owners: Ints
    """[samples]: row of each sample."""
    later: Ints
    """[samples]: index of each sample among those of its row."""
    sampled: Ints
    """[samples]: index of each sampled token among the tokens without padding."""
    ends: npt.NDArray[np.bool_]
    """[samples]: whether the sampled token is the last one of its row."""
    answers: Ints
    """[samples]: index of each sample among those of the program, padding included."""

    @staticmethod
    @lru_cache(maxsize=8)  # most steps have those of the step before
    def of(lengths: bytes, samples: bytes, width: int) -> "Runs":
        """Take the columns of a step. `width` is the number of places of a row; 0: one for each token."""
        owners, within = _spread(unpack_ints(lengths))
        sample_owners, later = _spread(unpack_ints(samples))
        last = np.cumsum(unpack_ints(lengths), dtype=np.int32)[sample_owners] - 1
        sampled = last + 1 - unpack_ints(samples)[sample_owners] + later
        return Runs(
            owners=owners,
            within=within,
            places=owners * width + within if width else np.arange(len(owners), dtype=np.int32),
            sample_owners=sample_owners,
            later=later,
            sampled=sampled,
            ends=sampled == last,
            answers=sample_owners if width else np.arange(len(sample_owners), dtype=np.int32),
        )


@attrs.frozen(eq=False)
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
    draws: Ints
    """[rows]: index of the first generated token."""
    positions: Ints
    """[sum of lengths]: position in the sequence of each token."""
    runs: Runs

    @classmethod
    def of(cls, step: Step, *, padded: bool) -> "Rows":
        """Read a step, whose program has room for a whole bucket if `padded`."""
        runs = Runs.of(step.lengths, step.samples, step.bucket.tokens if padded else 0)
        lanes, starts, lengths, draws = map(unpack_ints, (step.lanes, step.starts, step.lengths, step.draws))
        return cls(padded, lanes, starts, lengths, draws, starts[runs.owners] + runs.within, runs)

    def place(self, places: Ints, values: Ints, size: int, padding: int = 0) -> Ints:
        """Return a column of `size` with the values in their places."""
        if len(values) == size and not self.padded:
            return values  # they are in order
        return _place(places, values, size, padding)


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


def _place(places: Ints, values: Ints, size: int, padding: int) -> Ints:
    column = np.full(size, padding, np.int32)
    column[places] = values
    return column


def _token_columns(step: Step, rows: Rows, lanes: Lanes, dimensions: Dimensions) -> Columns:
    tokens, positions, own = unpack_ints(step.tokens), rows.positions, rows.lanes[rows.runs.owners]
    prompts = lanes.prompt_lengths[own]
    # A token that is still on the device is named by its lane.
    last = -1 - own if lanes.last_tokens is None else lanes.last_tokens[own]
    columns = {
        "tokens": np.where(tokens < 0, last, tokens),
        "positions": positions,
        "contexts": np.where(positions < prompts, prompts, positions + 1),
    }
    placed: Columns = {
        name: rows.place(rows.runs.places, c, dimensions.tokens) for name, c in columns.items()
    }
    if step.loras:
        placed["loras"] = rows.place(
            rows.runs.places, unpack_ints(step.loras)[rows.runs.owners], dimensions.tokens, -1
        )
    return placed | {"starts": rows.starts, "lengths": rows.lengths}


def _sample_columns(tokens: Columns, rows: Rows, lanes: Lanes, dimensions: Dimensions) -> Columns:
    own, count = rows.lanes[rows.runs.sample_owners], dimensions.samples
    sample_lanes = rows.place(rows.runs.answers, own, count, lanes.count)
    last = np.arange(count, dtype=np.int32) * (dimensions.tokens // max(count, 1))
    last[rows.runs.answers] = rows.runs.places[rows.runs.sampled]
    columns: Columns = {
        "last": last,
        "lanes": sample_lanes,
        "next_lanes": rows.place(rows.runs.answers[rows.runs.ends], own[rows.runs.ends], count, lanes.count),
    }
    if not lanes.changed[sample_lanes].any():
        return columns  # with neutral parameters, nothing else is looked at
    draws = rows.place(rows.runs.answers, rows.draws[rows.runs.sample_owners] + rows.runs.later, count)
    return columns | {
        "counts": tokens["positions"][last] + 1,
        "previous": tokens["tokens"][last],
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
    owner_lanes, positions = rows.lanes[rows.runs.owners], rows.positions
    slots = tables[owner_lanes, positions // size] * size + positions % size
    columns: Columns = {f"slots{group}": rows.place(rows.runs.places, slots, dimensions.tokens)}
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
    masked = rows.runs.answers[unpack_ints(step.masked)]
    words = unpack_ints(step.masks).reshape(-1, sizes.mask_words)
    if not rows.padded:
        return {"masked": masked, "masks": words}
    every = np.full((samples, sizes.mask_words), -1, np.int32)
    every[masked] = words
    return {"masks": every}
