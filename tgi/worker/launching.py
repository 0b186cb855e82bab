"""Carries steps through a rank's programs: pack, upload, run, fetch, unpack.

A step takes a program of the model, one for each bucket, and a program of the sampler, one for each number of
samples and each amount of work: that of greedy rows, of plain draws, or everything. It is launched, and its
result waited for, apart from one another, so that the next can be launched first.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
import torch

from tgi.device.costs import PROMPT_SLICE
from tgi.device.graphs import Program, Run
from tgi.limits import span
from tgi.protocol import Bucket, LaneParams, Step, unpack_ints
from tgi.sampling import SamplingParams
from tgi.weights import Shard, Stage

from .lanes import Ints, Lanes, entries_of
from .layout import (
    Array,
    Dimensions,
    Layout,
    Rows,
    Sizes,
    first_blocks,
    model_layout,
    sample_layout,
    step_columns,
)
from .programs import EnterProgram, ModelProgram, PromptProgram, SampleProgram, StepContext, Variant
from .sampler import ALL_NEEDS, DRAW_NEEDS, Needs, needs_of

MAX_ENTRIES = 256
"""Tokens that one run of `EnterProgram` writes on a device that compiles."""
COMPILED_NEEDS: tuple[Needs, ...] = (frozenset(), DRAW_NEEDS, ALL_NEEDS)
"""Needs of the programs that a device that compiles has for the sampler, as `Step.least_sampler` counts them.

Only the last has masks, sorts the vocabulary, and reports the most likely tokens."""
_MAX_EAGER = 64
"""Programs that are kept where they cost nothing to make."""
Wait = Callable[[], dict[str, bytes]]
"""Waits for results, and returns them as columns of a `Result`."""


@attrs.frozen(eq=False)
class Compiled:
    """A program, and the layout of what it takes."""

    layout: Layout
    run: Run


class Programs:
    """All programs of a rank."""

    def __init__(
        self,
        context: StepContext,
        lanes: Lanes,
        sizes: Sizes,
        top: int,
        shard: Shard,
        stage: Stage,
    ) -> None:
        """Run the programs that belong to no bucket, on a device that compiles, so that they are compiled.

        There, a step that reports most likely tokens reports `top` of them.
        """
        self._context, self._lanes, self._sizes, self._top = context, lanes, sizes, top
        self._shard, self._stage = shard, stage
        self._device = context.device
        self._compiled: dict[object, Compiled] = {}
        self._sealed = False
        self._prompts: dict[int, Run] = {}
        """Programs of questions, by the number of most likely tokens that they report."""
        if self._device.immediate:
            lanes.last_tokens = context.last_tokens.numpy()
        if context.sampler is None:
            return
        self._enter = self._device.graph(EnterProgram(context.sampler.tables))
        if self._device.compiles:
            for _ in range(2):  # compiled by the first run; the second is like all others
                self._write_tables(LaneParams(lane=lanes.count, sampling=SamplingParams()))
                if context.head is not None:
                    self._ask(np.zeros(1, np.int32), np.zeros(1, np.int32), 0)()

    def seal(self) -> None:
        """Count every step as a miss that needs a new program from now on."""
        self._sealed = True

    def launch(self, step: Step) -> Wait:
        """Start a step whose changes the lanes know already, and return what waits for the result.

        In a stage before the last one, that has no tokens.
        """
        eager, last = not self._device.compiles, self._stage.last
        for params in step.params if last else ():
            if params.history or params.sampling.logit_bias or params.sampling.ends:
                self._write_tables(params)
        rows = Rows.of(step, padded=not eager)
        dimensions = self._dimensions(step, rows)
        columns = step_columns(step, rows, self._lanes, dimensions, self._sizes)
        features = last and (bool(step.targets) if eager else step.bucket.prefill)
        known = len(self._compiled)
        model = self._model_program(dimensions, features=features)
        sampler = self._sample_program(step, dimensions.samples, columns) if last else None
        packed: list[Array] = [model.layout.pack(columns)[0]]
        if sampler is not None:
            packed += sampler.layout.pack(columns)
        if self._sealed and not eager and len(self._compiled) > known:
            self._device.count("graph_misses")
        if eager and features:
            self._context.features = self._context.features.new_empty(
                dimensions.tokens, self._context.features.shape[1]
            )
        ints, *sampled = self._device.upload(*packed)
        done = self._run_model(model.run, ints, dimensions.tokens)
        if sampler is None:
            return self._nothing(self._device.fetch(*done))
        out = self._device.fetch(*sampler.run(*sampled))
        asked = self._ask_of(step, rows) if step.targets else None

        def wait() -> dict[str, bytes]:
            ints, floats = out()
            if ints.ndim == 1 and eager:
                results = {"tokens": ints.tobytes(), "logprobs": floats.tobytes()}
                return results | asked() if asked else results
            ints, floats = (np.atleast_2d(a.T).T[rows.runs.answers, : 1 + step.top] for a in (ints, floats))
            results = {
                "tokens": ints[:, 0].tobytes(),
                "logprobs": floats[:, 0].tobytes(),
                "top_tokens": ints[:, 1:].tobytes(),
                "top_logprobs": floats[:, 1:].tobytes(),
            }
            return results | asked() if asked else results

        return wait

    def _run_model(self, run: Run, ints: torch.Tensor, tokens: int) -> tuple[torch.Tensor, ...]:
        """Run the model on the features [tokens, hidden size] of the stage before, and send on the result."""
        context, device = self._context, self._device
        if context.received is not None:
            if not device.compiles:
                context.received = context.received.new_empty(tokens, context.received.shape[1])
            device.receive(context.received, tokens, self._shard)
        done = run(ints)
        if not self._stage.last:
            outputs = context.outputs[:tokens]
            # Where programs leave them in the same place, the next step overwrites them.
            device.send_on(outputs.clone() if device.compiles else outputs, self._shard)
        return done

    @staticmethod
    def _nothing(done: Callable[[], list[Array]]) -> Wait:
        """Wait until a step without tokens is done."""

        def wait() -> dict[str, bytes]:
            done()
            return {"tokens": b"", "logprobs": b""}

        return wait

    def _model_program(self, dimensions: Dimensions, *, features: bool) -> Compiled:
        return self._program(
            (dimensions, features),
            model_layout(dimensions, self._sizes),
            lambda layout: ModelProgram(self._context, dimensions, layout, features=features),
        )

    def _sample_program(self, step: Step, samples: int, columns: Mapping[str, Any]) -> Compiled:
        needs: Needs = frozenset()
        if "ints" in columns:
            needs = needs_of(columns["ints"], columns["floats"], columns["barred"])
        variant = self._variant(step, samples, needs)
        return self._program(
            variant,
            sample_layout(variant.samples, variant.masks, self._sizes),
            lambda layout: SampleProgram(self._context, layout, variant),
        )

    def _program(self, key: object, layout: Layout, make: Callable[[Layout], Program]) -> Compiled:
        if key in self._compiled:
            return self._compiled[key]
        if not self._device.compiles and len(self._compiled) >= _MAX_EAGER:
            self._compiled.clear()
        compiled = self._compiled[key] = Compiled(layout, self._device.graph(make(layout)))
        return compiled

    def _variant(self, step: Step, samples: int, needs: Needs) -> Variant:
        """Return the sampler's work; on a device that compiles, that of the least program that is enough."""
        if not self._device.compiles:
            return Variant(samples, needs, len(step.masked) // 4, step.top)
        assert step.top <= self._top, "more of the likeliest tokens than Load.top"
        if not (step.masks or step.top):
            for wider in COMPILED_NEEDS[step.least_sampler : -1]:
                if needs <= wider:
                    return Variant(samples, wider, windowed=True)
        return Variant(samples, ALL_NEEDS, samples, self._top)

    def _dimensions(self, step: Step, rows: Rows) -> Dimensions:
        """Return the exact sizes of the step; on a device that compiles, those of its bucket."""
        bucket, sizes = step.bucket, self._sizes

        def seen(window: int | None, ends: Ints) -> int:
            if window is None:
                return -(-int(ends.max()) // sizes.block_size)
            blocks = -(-ends // sizes.block_size) - first_blocks(rows.starts, window, sizes.block_size)
            return int(blocks.max())

        if not self._device.compiles:
            ends = rows.starts + rows.lengths
            return Dimensions(
                rows=len(rows.lanes),
                tokens=max(len(rows.runs.owners), self._device.min_tokens),
                samples=len(rows.runs.answers),
                blocks=tuple(seen(window, ends) for window in sizes.windows),
                flat=False,
                loras=bool(step.loras),
            )
        # A bucket with room for several samples of a row, for speculation, does not exist yet.
        assert unpack_ints(step.samples).max() <= 1, "several samples of a row"
        blocks = tuple(self._listed_blocks(bucket, window) for window in sizes.windows)
        if bucket.prefill:
            contexts = [seen(window, rows.starts) for window in sizes.windows]
            assert all(map(operator.le, contexts, blocks)), "a context beyond the bucket"
            room = len(self._context.features if self._stage.last else self._context.outputs)
            assert bucket.rows * bucket.tokens <= room, "a prefill step beyond Load.prefill_tokens"
        return Dimensions(
            rows=bucket.rows,
            tokens=bucket.rows * bucket.tokens,
            samples=bucket.rows,
            blocks=blocks,
            flat=self._device.flat and not bucket.prefill,
            loras=bool(step.loras),
        )

    def _listed_blocks(self, bucket: Bucket, window: int | None) -> int:
        """Return the entries of a group's block tables, or of its list: the bucket's, if a window needs no
        fewer."""
        if window is None or (self._sizes.contiguous and not bucket.prefill):
            return bucket.blocks
        seen = span(window if self._device.flat else window + bucket.tokens - 1, self._sizes.block_size)
        return min(bucket.blocks, seen if bucket.prefill or not self._device.flat else seen * bucket.rows)

    def _run(self, run: Run, *packed: Array) -> Callable[[], list[Array]]:
        """Upload, run, and begin to fetch the results; what is returned waits for them."""
        return self._device.fetch(*run(*self._device.upload(*packed)))

    def _write_tables(self, params: LaneParams) -> None:
        """Write what a sequence brings into the sampler's tables, a piece at a time if shapes are fixed."""
        ids, numbers = entries_of(params, self._sizes.vocabulary)
        size = max(len(ids), 1) if not self._device.compiles else MAX_ENTRIES
        for begin in range(0, len(ids), size) or (0,):
            piece = ids[begin : begin + size]
            ints = np.full(2 + size, self._sizes.vocabulary, np.int32)
            ints[:2] = params.lane, begin > 0
            ints[2 : 2 + len(piece)] = piece
            floats = np.zeros((4, size), np.float32)
            floats[:, : len(piece)] = numbers[:, begin : begin + size]
            self._enter(*self._device.upload(ints, floats.reshape(-1)))

    def _ask_of(self, step: Step, rows: Rows) -> Wait | None:
        targets = unpack_ints(step.targets)
        asked = np.flatnonzero(targets >= 0)
        return self._ask(rows.runs.places[asked], targets[asked], step.prompt_top) if len(asked) else None

    def _ask(self, places: Ints, targets: Ints, top: int) -> Wait:
        """Ask for the log-probabilities of targets after the places of the step before."""
        reported = top if not self._device.compiles else self._top
        if reported not in self._prompts:
            self._prompts[reported] = self._device.graph(PromptProgram(self._context, reported))
        pieces = []
        for begin in range(0, len(places), PROMPT_SLICE):
            piece = slice(begin, begin + PROMPT_SLICE)
            ints = np.stack((places[piece], targets[piece]))
            if self._device.compiles:
                ints = np.pad(ints, ((0, 0), (0, PROMPT_SLICE - ints.shape[1])))
            pieces.append(self._run(self._prompts[reported], ints.reshape(-1)))

        def wait() -> dict[str, bytes]:
            fetched = [piece() for piece in pieces]
            ints, floats = (np.concatenate(arrays)[: len(places)] for arrays in zip(*fetched, strict=True))
            return {
                "prompt_logprobs": floats[:, 0].tobytes(),
                "prompt_top_tokens": ints[:, :top].tobytes(),
                "prompt_top_logprobs": floats[:, 1 : 1 + top].tobytes(),
            }

        return wait
