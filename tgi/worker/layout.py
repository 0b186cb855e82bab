"""Layout of a step's inputs in two packed tensors, one of integers and one of floats.

On a device that compiles, the layout follows from the bucket. On any other, it is as large as the step.
"""

from collections.abc import Mapping
from functools import lru_cache

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.sampling import FLOATS, INTS, NEUTRAL

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
    masks: int
    """Samples with a mask of their own. Equal to `samples` if the program does not depend on their number."""
    blocks: tuple[int, ...]
    """Entries of each row's block table, for each group of layers; of the one list of all rows if `flat`."""
    flat: bool


@attrs.frozen
class Sizes:
    """Sizes that all steps of a rank share."""

    block_size: int
    lanes: int
    """Number of lanes, and the index of the padding lane."""
    mask_words: int
    """int32 words of a mask: one bit per token of the vocabulary."""
    windows: tuple[int | None, ...]
    """Tokens that a token sees, for each group of layers; None: all before it."""


@attrs.frozen(eq=False)
class Layout:
    """Places of the columns. Made by `of`."""

    ints: npt.NDArray[np.int32]
    """Packed integers of a step without rows."""
    floats: npt.NDArray[np.float32]
    """Packed floats of a step without rows."""
    places: Mapping[str, tuple[bool, slice, tuple[int, ...]]]
    """Whether the column is of floats, its place, and its shape."""

    @classmethod
    @lru_cache(maxsize=256)
    def of(cls, dimensions: Dimensions, sizes: Sizes) -> "Layout":
        """Lay out the columns of steps of these dimensions."""
        places = {}
        packed: tuple[list[Array], list[Array]] = [], []
        ends = [0, 0]
        for name, column in _padding(dimensions, sizes).items():
            floats = name == "floats"
            begin = ends[floats]
            ends[floats] = begin + column.size
            places[name] = floats, slice(begin, ends[floats]), column.shape
            packed[floats].append(column.reshape(-1))
        ints, numbers = map(np.concatenate, packed)
        return cls(ints.astype(np.int32), numbers.astype(np.float32), places)

    def pack(self, columns: Columns) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Copy the columns to their places in new arrays."""
        packed = self.ints.copy(), self.floats.copy()
        for name, column in columns.items():
            floats, place, shape = self.places[name]
            if column.ndim == 1:
                packed[floats][place.start : place.start + column.size] = column
            else:
                height, width = column.shape
                packed[floats][place].reshape(shape)[:height, :width] = column
        return packed

    def unpack(self, ints: torch.Tensor, floats: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of the packed tensors, by column."""
        packed = ints, floats
        return {name: packed[kind][place].view(shape) for name, (kind, place, shape) in self.places.items()}


def _padding(dimensions: Dimensions, sizes: Sizes) -> dict[str, Array]:
    """Return every column of a step, filled with padding."""
    rows, tokens, samples = dimensions.rows, dimensions.tokens, dimensions.samples
    columns: dict[str, Array] = {
        "tokens": np.zeros(tokens),
        "positions": np.zeros(tokens),
        "contexts": np.zeros(tokens),
        "starts": np.zeros(rows),
        "lengths": np.ones(rows),
    }
    slots = np.arange(tokens) % sizes.block_size  # of block 0, seldom the same one twice
    for group, (blocks, window) in enumerate(zip(dimensions.blocks, sizes.windows, strict=True)):
        columns[f"slots{group}"] = slots
        if dimensions.flat:
            columns[f"ids{group}"] = np.zeros(blocks)
            columns[f"rows{group}"] = np.full(blocks, rows)
            columns[f"tokens{group}"] = np.ones(blocks)
        else:
            columns[f"tables{group}"] = np.zeros((rows, blocks))
            if window is not None:
                columns[f"bases{group}"] = np.zeros(rows)
    columns |= {
        "last": np.arange(samples) * (tokens // max(samples, 1)),
        "lanes": np.full(samples, sizes.lanes),
        "next_lanes": np.full(samples, sizes.lanes),
        "draw_high": np.zeros(samples),
        "draw_low": np.zeros(samples),
        "barred": np.zeros(samples),
        "ints": np.tile([[NEUTRAL[name]] for name in INTS], samples),
        "floats": np.tile([[NEUTRAL[name]] for name in FLOATS], samples),
    }
    if dimensions.masks:
        if dimensions.masks < samples:
            columns["masked"] = np.zeros(dimensions.masks)
        columns["masks"] = np.full((dimensions.masks, sizes.mask_words), -1)
    return columns
