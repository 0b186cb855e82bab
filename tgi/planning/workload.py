"""The frequency of each shape of step: assumed, or counted while serving."""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
import trio

from tgi.config import OptionError, Options
from tgi.plugins import DeviceSpec
from tgi.protocol import Bucket

from .shapes import ShapeLimits

QUANTILES = 32
"""Number of sizes that stand for all between two bounds."""
CONTEXTS = 8
"""Number of sizes that stand for all contexts."""
ROWS = 256
"""Number of sizes that stand for all numbers of rows."""
SIGNIFICANT = 6
"""Binary digits to which counted sizes are rounded up: few counts, and at most 3 % too large."""
ASSUMED = 0.05
"""Share of the uniform distribution that is mixed with the counted shapes, so that nothing is impossible."""
JOINED = (1, 2, 4, 8)
"""Multiples of the rows of a counted prefill that count as likely too, by the inverse of the square: rows may
have come one by one because there was no bucket for several."""
log = logging.getLogger(__name__)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(gt=0)]


class ShapesError(OptionError):
    """Raised for a file of shapes that cannot be used; the message is one line for people."""


@attrs.frozen(eq=False)
class Workload:
    """Shapes of steps before padding, with their weights in any unit."""

    decode: Ints
    """[n, 2]: rows and blocks of decode steps."""
    decode_weights: Floats
    """[n]: weights of `decode`."""
    prefill: Ints
    """[m, 3]: rows, tokens and blocks of context of prefill steps."""
    prefill_weights: Floats
    """[m]: weights of `prefill`."""

    @classmethod
    def uniform(cls, limits: ShapeLimits) -> "Workload":
        """Assume that everything is equally likely.

        Decode: any number of rows, whose contexts have any length on average, as far as there are blocks for
        them. Prefill: any (rows, tokens) that a bucket may have, half of them with no context and
        half with one of any length. Half of all tokens are generated, in decode steps of half of the rows.
        """
        decode, prefill = [], []
        for rows in quantiles(1, limits.max_batch_size, ROWS):
            blocks = quantiles(rows, limits.likely_blocks(rows), QUANTILES)
            decode += [(rows, size, 1 / len(blocks)) for size in blocks]
        for rows in quantiles(1, limits.prefill_rows, ROWS):
            longest = limits.joint_tokens(rows)
            sizes = quantiles(1, longest, QUANTILES)
            for tokens in sizes:
                contexts = quantiles(1, limits.context_blocks(tokens), CONTEXTS)
                contexts = [0] * max(1, len(contexts)) + contexts
                weight = longest / len(sizes) / len(contexts)
                prefill += [(rows, tokens, context, weight) for context in contexts]
        *decode_shapes, decode_weights = np.array(decode).T
        *prefill_shapes, prefill_weights = np.array(prefill).T
        prefill_weights /= prefill_weights.sum()
        prefill_tokens = (prefill_shapes[0] * prefill_shapes[1] * prefill_weights).sum()
        return cls(
            np.array(decode_shapes, np.int64).T,
            decode_weights * prefill_tokens / (limits.max_batch_size / 2) / decode_weights.sum(),
            np.array(prefill_shapes, np.int64).T,
            prefill_weights,
        )

    @classmethod
    def counted(cls, counts: Mapping[Bucket, float], limits: ShapeLimits) -> "Workload":
        """Take what was counted, with a little of everything else."""
        assumed = cls.uniform(limits)
        total = sum(counts.values())
        if not total:
            return assumed
        clipped = [(limits.clipped(shape), count / total) for shape, count in counts.items()]
        decode = [([s.rows, s.blocks], count) for s, count in clipped if not s.prefill]
        prefill = [
            ([shape.rows * times, shape.tokens, shape.blocks], count / times**2)
            for shape, count in clipped
            for times in JOINED
            if shape.prefill and (times == 1 or _fits(limits, shape.rows * times, shape.tokens))
        ]
        share = ASSUMED / (1 - ASSUMED) / (assumed.decode_weights.sum() + assumed.prefill_weights.sum())
        return cls(
            np.array([*assumed.decode.tolist(), *(shape for shape, _ in decode)]),
            np.array([*(assumed.decode_weights * share), *(count for _, count in decode)]),
            np.array([*assumed.prefill.tolist(), *(shape for shape, _ in prefill)]),
            np.array([*(assumed.prefill_weights * share), *(count for _, count in prefill)]),
        )


def _fits(limits: ShapeLimits, rows: int, tokens: int) -> bool:
    return rows <= limits.prefill_rows and rows * tokens <= limits.max_batch_prefill_tokens


def quantiles(first: int, last: int, count: int) -> list[int]:
    """Return up to `count` sizes that stand for equal shares of first..last; none if last is smaller."""
    count = min(count, last - first + 1)
    return [first + ((2 * index + 1) * (last - first + 1)) // (2 * count) for index in range(count)]


class _ShapesFile(msgspec.Struct):
    """Content of a file of shapes: rows, tokens unless they are 1, blocks, and the number of steps."""

    block_size: _Positive
    decode: list[tuple[_Positive, _Count, _Positive]]
    prefill: list[tuple[_Positive, _Positive, _Count, _Positive]]


@attrs.define
class ShapeCounts:
    """Counts of the shapes of steps: those of a file, or those to be added to one."""

    block_size: int
    """Number of tokens in a block."""
    counts: dict[Bucket, int] = attrs.field(factory=dict)
    """Number of steps of each rounded shape."""

    @classmethod
    def read(cls, path: Path, block_size: int) -> "ShapeCounts":
        """Read the counts of a file. Raises ShapesError."""
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_ShapesFile)
        except (OSError, msgspec.DecodeError) as error:
            raise ShapesError(f"{path} holds no shapes of steps: {error}") from error
        if file.block_size != block_size:
            size = file.block_size
            raise ShapesError(f"{path} counts blocks of {size} tokens, and this device has {block_size}")
        counts = {Bucket(rows, 1, blocks): count for rows, blocks, count in file.decode}
        counts |= {Bucket(*shape[:3], prefill=True): shape[3] for shape in file.prefill}
        return cls(block_size, counts)

    def add(self, shape: Bucket) -> None:
        """Count one step."""
        key = Bucket(rounded(shape.rows), rounded(shape.tokens), rounded(shape.blocks), shape.prefill)
        self.counts[key] = self.counts.get(key, 0) + 1

    def take(self) -> "ShapeCounts":
        """Return what was counted so far, and start over."""
        taken, self.counts = ShapeCounts(self.block_size, self.counts), {}
        return taken

    def merge(self, other: "ShapeCounts") -> None:
        """Add the counts of the other."""
        for shape, count in other.counts.items():
            self.counts[shape] = self.counts.get(shape, 0) + count

    def add_to(self, path: Path) -> None:
        """Add the counts to those of a file, which other servers may do at the same time.

        The file is replaced in one step. Raises ShapesError.
        """
        try:
            with _locked(path.parent):
                whole = self.read(path, self.block_size) if path.exists() else ShapeCounts(self.block_size)
                whole.merge(self)
                whole.write(path)
        except OSError as error:
            raise ShapesError(f"{path} cannot be written: {error.strerror}") from error

    def write(self, path: Path) -> None:
        """Replace the file in one step. Raises OSError."""
        shapes = sorted(self.counts.items())
        file = _ShapesFile(
            block_size=self.block_size,
            decode=[(s.rows, s.blocks, count) for s, count in shapes if not s.prefill],
            prefill=[(s.rows, s.tokens, s.blocks, count) for s, count in shapes if s.prefill],
        )
        new = path.with_name(path.name + ".new")
        new.write_bytes(msgspec.json.encode(file) + b"\n")
        new.replace(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes that lock the folder waiting while the body runs. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@attrs.define
class Recording:
    """Counts that are added to a file now and then."""

    path: Path
    counts: ShapeCounts

    @classmethod
    def open(cls, path: Path, block_size: int) -> "Recording":
        """Begin to count. Raises ShapesError for a file that cannot be read or written."""
        counts = ShapeCounts(block_size)
        counts.add_to(path)
        return cls(path, counts)

    async def save(self) -> None:
        """Add the counts to the file; log a failure, and keep them for the next time."""
        taken = self.counts.take()
        try:
            await trio.to_thread.run_sync(taken.add_to, self.path)
        except ShapesError as error:
            log.error("the shapes of steps could not be saved: %s", error)
            self.counts.merge(taken)


def open_recording(options: Options, device: DeviceSpec) -> Recording | None:
    """Open the file of --record-shapes; None if nothing is recorded. Raises ShapesError."""
    path = options.record_shapes
    if path is not None and not (device.compiles and device.flat):
        log.warning("--record-shapes has no effect: shapes do not matter on %s", device.name)
        path = None
    return None if path is None else Recording.open(path, device.block_size)


def rounded(size: int) -> int:
    """Round up to SIGNIFICANT binary digits."""
    unit = 1 << max(size.bit_length() - SIGNIFICANT, 0)
    return -(-size // unit) * unit
