"""How often steps of which shape come up: supposed, or counted while serving."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from tgi.config import OptionError
from tgi.protocol import Bucket

from .shapes import ShapeLimits

QUANTILES = 32
"""Sizes that stand for all between two bounds."""
CONTEXTS = 8
"""The same for contexts, which are one more dimension,"""
ROWS = 256
"""and for rows."""
SIGNIFICANT = 6
"""Sizes are counted rounded up to so many binary digits: few counts, and at most 3 % too large."""
SUPPOSED = 0.05
"""Share of the uniform distribution that is mixed with what was counted: nothing is impossible."""
JOINED = (1, 2, 4, 8)
"""Rows of a prefill that came one by one may have done so because there was no bucket for several: so many
times as many are supposed to be likely too, by the inverse of the square."""
log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class ShapesError(OptionError):
    """A file of shapes that cannot be used; the message is one line for people."""


@attrs.frozen(eq=False)
class Workload:
    """Shapes of steps before padding, and how many there are of each, in any unit."""

    decode: Ints
    """[n, 2]: rows, blocks."""
    decode_weights: Floats
    prefill: Ints
    """[m, 3]: rows, tokens, blocks of context."""
    prefill_weights: Floats

    @classmethod
    def uniform(cls, space: ShapeLimits) -> "Workload":
        """Everything is equally likely: for when nothing is known.

        Decode: any number of rows, whose contexts have any length on average, as far as there are blocks for
        them. Prefill: any (rows, tokens) that there can be a bucket for, half of them with no context and
        half with one of any length. Half of all tokens are generated, in decode steps of half of the rows.
        """
        decode, prefill = [], []
        for rows in quantiles(1, space.rows, ROWS):
            blocks = quantiles(rows, space.likely_blocks(rows), QUANTILES)
            decode += [(rows, size, 1 / len(blocks)) for size in blocks]
        for rows in quantiles(1, space.prefill_rows, ROWS):
            longest = space.joint_tokens(rows)
            sizes = quantiles(1, longest, QUANTILES)
            for tokens in sizes:
                contexts = quantiles(1, space.context_blocks(tokens), CONTEXTS)
                contexts = [0] * max(1, len(contexts)) + contexts
                weight = longest / len(sizes) / len(contexts)
                prefill += [(rows, tokens, context, weight) for context in contexts]
        *shapes, weights = np.array(decode).T
        *prompts, chances = np.array(prefill).T
        chances /= chances.sum()
        steps = (prompts[0] * prompts[1] * chances).sum() / (space.rows / 2)
        return cls(
            np.array(shapes, np.int64).T,
            weights * steps / weights.sum(),
            np.array(prompts, np.int64).T,
            chances,
        )

    @classmethod
    def counted(cls, counts: Mapping[Bucket, float], space: ShapeLimits) -> "Workload":
        """What was counted, with a little of everything else, so that nothing is impossible."""
        supposed = cls.uniform(space)
        total = sum(counts.values())
        if not total:
            return supposed
        clipped = [(space.clipped(shape), count / total) for shape, count in counts.items()]
        decode = [([s.rows, s.blocks], count) for s, count in clipped if not s.prefill]
        prefill = [
            ([shape.rows * times, shape.tokens, shape.blocks], count / times**2)
            for shape, count in clipped
            for times in JOINED
            if shape.prefill and (times == 1 or _fits(space, shape.rows * times, shape.tokens))
        ]
        share = SUPPOSED / (1 - SUPPOSED) / (supposed.decode_weights.sum() + supposed.prefill_weights.sum())
        return cls(
            np.array([*supposed.decode.tolist(), *(shape for shape, _ in decode)]),
            np.array([*(supposed.decode_weights * share), *(count for _, count in decode)]),
            np.array([*supposed.prefill.tolist(), *(shape for shape, _ in prefill)]),
            np.array([*(supposed.prefill_weights * share), *(count for _, count in prefill)]),
        )


def _fits(space: ShapeLimits, rows: int, tokens: int) -> bool:
    return rows <= space.prefill_rows and rows * tokens <= space.prefill_tokens


def quantiles(first: int, last: int, most: int) -> list[int]:
    """Up to `most` sizes that stand for equal shares of first..last; none where last is smaller."""
    count = min(most, last - first + 1)
    return [first + ((2 * index + 1) * (last - first + 1)) // (2 * count) for index in range(count)]


@attrs.define
class ShapeCounts:
    """Counts the shapes of steps, on top of those that a file has already."""

    block_size: int
    counts: dict[Bucket, int] = attrs.field(factory=dict)
    path: Path | None = None
    """Where they are kept."""

    @classmethod
    def open(cls, path: Path, block_size: int) -> "ShapeCounts":
        """The counts of a file, which is made if there is none. Raises ShapesError."""
        opened = cls.read(path, block_size) if path.exists() else cls(block_size)
        opened.path = path
        try:
            opened.write(path)
        except OSError as error:
            raise ShapesError(f"{path} cannot be written: {error.strerror}") from error
        return opened

    def save(self) -> None:
        """Write them where they are kept; if that fails, it is logged."""
        assert self.path is not None
        try:
            self.write(self.path)
        except OSError as error:
            log.error("the shapes of steps could not be written to %s: %s", self.path, error.strerror)

    @classmethod
    def read(cls, path: Path, block_size: int) -> "ShapeCounts":
        """The counts of a file. Raises ShapesError."""
        try:
            data = json.loads(path.read_text("utf-8"))
            counts = {Bucket(r, 1, b): n for r, b, n in data["decode"]}
            counts |= {Bucket(r, t, b, prefill=True): n for r, t, b, n in data["prefill"]}
            size = data["block_size"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ShapesError(f"{path} holds no shapes of steps: {error!r}") from error
        if size != block_size:
            raise ShapesError(f"{path} counts blocks of {size} tokens, and this device has {block_size}")
        numbers = [number for s, n in counts.items() for number in (s.rows, s.tokens, s.blocks + 1, n)]
        if not all(type(number) is int and number > 0 for number in numbers):
            raise ShapesError(f"{path} has a size or a count that is no positive whole number")
        return cls(size, counts)

    def add(self, shape: Bucket) -> None:
        """Count one step."""
        key = Bucket(rounded(shape.rows), rounded(shape.tokens), rounded(shape.blocks), shape.prefill)
        self.counts[key] = self.counts.get(key, 0) + 1

    def write(self, path: Path) -> None:
        """Replace the file at once. Raises OSError."""
        lines: dict[str, Any] = {"block_size": self.block_size, "decode": [], "prefill": []}
        for shape, count in sorted(self.counts.items()):
            if shape.prefill:
                lines["prefill"].append([shape.rows, shape.tokens, shape.blocks, count])
            else:
                lines["decode"].append([shape.rows, shape.blocks, count])
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(lines) + "\n", "utf-8")
        new.replace(path)


def rounded(size: int) -> int:
    """Up, to SIGNIFICANT binary digits."""
    unit = 1 << max(size.bit_length() - SIGNIFICANT, 0)
    return -(-size // unit) * unit
