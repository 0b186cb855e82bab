"""Runs steps on a device that compiles: a program per bucket, one copy in, one copy out.

A step is launched, and its result waited for, apart from one another, so that the next can be launched first.
"""

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.footprint import PROMPT_SLICE
from tgi.layers import Head
from tgi.protocol import Bucket, LaneParams, Step, unpack_ints
from tgi.sampling import SamplingParams

from .columns import Columns, Ints, Rows, first_blocks, sampler_columns, table_columns, token_columns
from .lanes import Lanes
from .layout import INLINE_BIAS, INLINE_ENDS, NO_PROMPT_END, Layout, Sizes
from .program import MarkProgram, Parts, PromptProgram, StepProgram
from .tables import dense_bias, dense_counts, dense_ends

Run = Callable[[torch.Tensor], torch.Tensor]


@attrs.frozen(eq=False)
class CompiledBucket:
    """The layout and the program of one bucket."""

    layout: Layout
    run: Run


class Programs:
    """All programs of a rank."""

    def __init__(self, parts: Parts, lanes: Lanes, vocab_size: int, head: Head | None) -> None:
        """Builds, and runs once, what is not of a bucket: nothing of it may be compiled later."""
        self._parts, self._lanes, self._vocab_size = parts, lanes, vocab_size
        self._buckets: dict[Bucket, CompiledBucket] = {}
        self._sealed = False
        device = parts.device
        self._mark = device.graph(MarkProgram(parts.sampler.tables, vocab_size))
        self._prompt = device.graph(PromptProgram(head, parts)) if head is not None else None
        positions = range(0, len(parts.prompt.targets), PROMPT_SLICE)
        self._slices = [device.upload(np.array([begin], np.int32)) for begin in positions]
        for _ in range(2):  # the first time they are compiled, the second they run as they will
            self._replace(LaneParams(lane=lanes.count, sampling=SamplingParams()), 0)
            if self._prompt is not None:
                self._prompt(self._slices[0])
                device.fetch(parts.prompt.answers)()

    def seal(self) -> None:
        """From now on every bucket that is new is a miss."""
        self._sealed = True

    def launch(self, step: Step) -> tuple[bool, Callable[[], dict[str, bytes]]]:
        """Start a step, with which `lanes` have been updated: whether it was a miss, and what waits for it.

        The latter gives the columns of a `Result`.
        """
        shape = step.bucket
        missed = self._sealed and shape not in self._buckets
        bucket = self._bucket(shape)
        device = self._parts.device
        rows = Rows.of(step, self._lanes, device)
        columns, numbers = sampler_columns(step, rows, self._lanes, not device.compiles)
        columns |= self._columns(step, rows)
        out = device.fetch(bucket.run(device.upload(bucket.layout.pack(columns))))
        answers = np.flatnonzero(numbers >= 0)
        asked = self._ask(step, rows) if step.targets else None

        def wait() -> dict[str, bytes]:
            results = _sampled_columns(out()[answers], step.top, self._parts.top)
            return results | asked() if asked else results

        return missed, wait

    def _bucket(self, shape: Bucket) -> CompiledBucket:
        found = self._buckets.get(shape)
        if found is None:
            parts = self._parts
            layout = Layout.of(shape, parts.sizes)
            run = parts.device.graph(StepProgram(shape, layout, parts))
            found = self._buckets[shape] = CompiledBucket(layout, run)
        return found

    def _columns(self, step: Step, rows: Rows) -> Columns:
        sizes, lanes = self._parts.sizes, self._lanes
        columns = token_columns(step, rows, lanes, sizes.block_size)
        if step.masks:
            masks = np.full((rows.count, sizes.mask_words), -1, np.int32)
            sampled = np.flatnonzero(unpack_ints(step.samples))
            masks[sampled[unpack_ints(step.masked)]] = unpack_ints(step.masks).reshape(-1, sizes.mask_words)
            columns["masks"] = masks
        if step.bucket.prefill:
            self._check(step, rows)
            return columns | self._prompt_columns(step, rows) | self._table_columns(step, rows)
        if sizes.flat:
            return columns | flat_columns(rows, lanes, sizes, step.bucket.blocks)
        return columns | self._table_columns(step, rows)

    def _table_columns(self, step: Step, rows: Rows) -> Columns:
        sizes = self._parts.sizes
        return table_columns(rows, self._lanes, step.bucket.blocks, sizes.block_size, sizes.window)

    def _check(self, step: Step, rows: Rows) -> None:
        """What the server must not ask for."""
        sizes = self._parts.sizes
        blocks = -(-rows.starts // sizes.block_size) - first_blocks(rows, sizes.block_size, sizes.window)
        assert blocks.max(initial=0) <= step.bucket.blocks, "a context beyond the bucket"
        assert rows.total <= len(self._parts.prompt.targets), "a prefill step beyond Load.prefill_tokens"

    def _prompt_columns(self, step: Step, rows: Rows) -> Columns:
        """What sequences bring that enter lanes with this step, and how long rows are."""
        lanes, count = self._lanes, len(rows.lengths)
        ends = lanes.prompt_lengths[rows.real_lanes]
        entered = np.full(count, lanes.count, np.int32)
        marked = entered.copy()
        history = np.full((count, step.bucket.blocks * self._parts.sizes.block_size), -1, np.int32)
        biased = np.full((count, INLINE_BIAS), -1, np.int32)
        bias = np.zeros((count, INLINE_BIAS), np.float32)
        ending = np.full((count, INLINE_ENDS), -1, np.int32)
        places = {lane: row for row, lane in enumerate(rows.real_lanes.tolist())}
        for params in step.params:
            row = places[params.lane]
            known = unpack_ints(params.history)[: rows.starts[row]]
            values, ids, end_ids = self._marks(params)
            if len(ids) > INLINE_BIAS or len(end_ids) > INLINE_ENDS or len(known) > history.shape[1]:
                self._replace(params, len(known))
                continue
            entered[row] = marked[row] = params.lane
            history[row, : len(known)] = known
            biased[row, : len(ids)], bias[row, : len(ids)] = ids, values[ids]
            ending[row, : len(end_ids)] = end_ids
        return {
            "row_lengths": rows.lengths,
            "prompt_ends": np.where(ends > 0, ends, NO_PROMPT_END),
            "cleared": entered,
            "marked": marked,
            "history": history,
            "biased_ids": biased,
            "bias": bias,
            "ends": ending,
        }

    def _marks(self, params: LaneParams) -> tuple[npt.NDArray[np.float32], Any, Any]:
        """Its bias [vocab], and which tokens have one, and which are ends."""
        values = (
            dense_bias(params, self._vocab_size) if params.sampling.logit_bias else np.zeros(0, np.float32)
        )
        ends = dense_ends(params, self._vocab_size) if params.sampling.ends else np.zeros(0, np.bool_)
        return values, np.flatnonzero(values), np.flatnonzero(ends)

    def _replace(self, params: LaneParams, known: int) -> None:
        """Send the whole rows of a sequence with much bias, many ends or a history beyond the bucket: under a
        window a step has fewer blocks than the sequence has tokens."""
        size = self._vocab_size
        floats = (*dense_counts(params, size, known), dense_bias(params, size))
        rows = (*(row.view(np.int32) for row in floats), dense_ends(params, size).astype(np.int32))
        self._mark(self._parts.device.upload(np.concatenate((np.array([params.lane], np.int32), *rows))))

    def _ask(self, step: Step, rows: Rows) -> Callable[[], dict[str, bytes]]:
        """Log-probabilities of the prompt, slice by slice, from what the step has left."""
        assert self._prompt is not None, "the model has no Head"
        for place in self._slices[: -(-rows.total // PROMPT_SLICE)]:
            self._prompt(place)
        out = self._parts.device.fetch(self._parts.prompt.answers)
        most, top = self._parts.top, step.prompt_top

        def wait() -> dict[str, bytes]:
            table = out()[rows.places]
            return {
                "prompt_logprobs": table[:, 0].tobytes(),
                "prompt_top_tokens": table[:, 1 : 1 + top].tobytes(),
                "prompt_top_logprobs": table[:, 1 + most : 1 + most + top].tobytes(),
            }

        return wait


def flat_columns(rows: Rows, lanes: Lanes, sizes: Sizes, blocks: int) -> dict[str, Any]:
    """The blocks that the rows of a decode step see, in the order of rows, as `FlatBlocks` has them."""
    tokens = rows.starts + 1
    first = first_blocks(rows, sizes.block_size, sizes.window)
    counts = -(-tokens // sizes.block_size) - first
    owner = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    entry = np.arange(len(owner), dtype=np.int32) + np.repeat(first + counts - np.cumsum(counts), counts)
    assert len(owner) <= blocks, "more blocks than the bucket has"
    return {
        "block_ids": lanes.tables[rows.lanes[owner], entry],
        "block_rows": owner,
        "block_tokens": tokens[owner] - entry * sizes.block_size,
    }


def _sampled_columns(table: Ints, top: int, most: int) -> dict[str, bytes]:
    """Of the rows that the server asked for; the step may want fewer of the likeliest than there are."""
    assert top <= most, "more of the likeliest tokens than Load.top"
    return {
        "tokens": table[:, 0].tobytes(),
        "logprobs": table[:, 1].tobytes(),
        "top_tokens": table[:, 2 : 2 + top].tobytes(),
        "top_logprobs": table[:, 2 + most : 2 + most + top].tobytes(),
    }
