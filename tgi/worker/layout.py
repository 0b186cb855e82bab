"""Where the columns of a bucket's steps are in its one packed tensor: the same on both sides of the copy."""

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.protocol import Bucket
from tgi.sampling import FLOATS, NEUTRAL

INLINE_BIAS, INLINE_ENDS = 64, 16
"""Tokens with a bias, and tokens that end the text, that a sequence can bring with its first step."""
NO_PROMPT_END = 2**30
_FLOATS = frozenset((*FLOATS, "bias"))


@attrs.frozen
class Sizes:
    """What all programs of a rank have in common."""

    block_size: int
    lanes: int
    """The padding's lane has this number."""
    mask_words: int
    flat: bool
    """Decode steps list the blocks of all rows together."""
    window: int | None = None
    """How many tokens a token sees, in any layer; None: all before it."""


@attrs.frozen(eq=False)
class Layout:
    """Made by `of`."""

    places: Mapping[str, slice]
    template: npt.NDArray[np.int32]
    """What a step without rows looks like."""

    @classmethod
    def of(cls, bucket: Bucket, sizes: Sizes) -> "Layout":
        """The columns of a bucket, each with its padding."""
        columns = _row_columns(bucket, sizes)
        columns |= _prompt_columns(bucket, sizes) if bucket.prefill else _decode_columns(bucket, sizes)
        places, parts, begin = {}, [], 0
        for name, column in columns.items():
            part = np.ascontiguousarray(column, np.float32 if name in _FLOATS else np.int32).view(np.int32)
            places[name] = slice(begin, begin + len(part))
            parts.append(part)
            begin += len(part)
        return cls(places, np.concatenate(parts))

    def pack(self, columns: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.int32]:
        """One array. Columns may be shorter than their places; those that have none are left out."""
        packed = self.template.copy()
        for name, column in columns.items():
            place = self.places.get(name)
            if place is not None:
                target = packed[place].view(np.float32) if name in _FLOATS else packed[place]
                target[: column.size] = column.reshape(-1)
        return packed

    def unpack(self, packed: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of the packed tensor, int32 or float32."""
        return {
            name: packed[place].view(torch.float32) if name in _FLOATS else packed[place]
            for name, place in self.places.items()
        }


def _row_columns(bucket: Bucket, sizes: Sizes) -> dict[str, npt.NDArray[np.generic]]:
    rows = bucket.rows
    return {
        "lanes": np.full(rows, sizes.lanes),
        "sampled_lanes": np.full(rows, sizes.lanes),
        "lengths": np.ones(rows),
        "draw_high": np.zeros(rows),
        "draw_low": np.zeros(rows),
        "barred": np.zeros(rows),
        **{name: np.full(rows, value) for name, value in NEUTRAL.items()},
        "masks": np.full(rows * sizes.mask_words, -1),
        "positions": np.zeros(bucket.rows * bucket.tokens),
        "contexts": np.zeros(bucket.rows * bucket.tokens),
        "slots": np.arange(bucket.rows * bucket.tokens) % sizes.block_size,  # of block 0
    }


def _decode_columns(bucket: Bucket, sizes: Sizes) -> dict[str, npt.NDArray[np.generic]]:
    if not sizes.flat:
        return _table_columns(bucket, sizes)
    count = bucket.blocks
    return {
        "block_ids": np.zeros(count),
        "block_rows": np.full(count, bucket.rows),
        "block_tokens": np.ones(count),
    }


def _table_columns(bucket: Bucket, sizes: Sizes) -> dict[str, npt.NDArray[np.generic]]:
    bases = {} if sizes.window is None else {"bases": np.zeros(bucket.rows)}
    return {"tables": np.zeros(bucket.rows * bucket.blocks), **bases}


def _prompt_columns(bucket: Bucket, sizes: Sizes) -> dict[str, npt.NDArray[np.generic]]:
    rows = bucket.rows
    return {
        "tokens": np.zeros(bucket.rows * bucket.tokens),
        "targets": np.full(bucket.rows * bucket.tokens, -1),
        **_table_columns(bucket, sizes),
        "row_lengths": np.ones(rows),
        "prompt_ends": np.full(rows, NO_PROMPT_END),
        "cleared": np.full(rows, sizes.lanes),
        "marked": np.full(rows, sizes.lanes),
        "history": np.full(rows * bucket.blocks * sizes.block_size, -1),
        "biased_ids": np.full(rows * INLINE_BIAS, -1),
        "bias": np.zeros(rows * INLINE_BIAS),
        "ends": np.full(rows * INLINE_ENDS, -1),
    }
