"""The programs of a rank, and what carries a step through one: pack, upload, run, fetch, unpack.

A step is launched, and its result waited for, apart from one another, so that the next can be launched first.
"""

import operator
from collections.abc import Callable

import attrs
import numpy as np

from tgi.device.graphs import Run
from tgi.footprint import PROMPT_SLICE
from tgi.limits import span
from tgi.protocol import Bucket, LaneParams, Step, unpack_ints
from tgi.sampling import SamplingParams

from .columns import Ints, Rows, first_blocks, step_columns
from .lanes import Lanes
from .layout import Array, Columns, Dimensions, Layout, Sizes
from .program import EnterProgram, PromptProgram, StepContext, StepProgram, Variant
from .sampler import ALL_NEEDS, Needs, needs_of
from .tables import entries_of

MAX_ENTRIES = 256
"""Tokens that one run of `EnterProgram` writes on a device that compiles."""
COMPILED_NEEDS: tuple[Needs, ...] = (ALL_NEEDS,)
"""Needs for which a device that compiles has a program of each bucket, the least first."""
_MAX_EAGER = 64
"""Programs that are kept where they cost nothing to make."""
Wait = Callable[[], dict[str, bytes]]
"""Waits for results, and returns them as columns of a `Result`."""


@attrs.frozen(eq=False)
class CompiledBucket:
    """The program of a bucket, and the layout of what it takes."""

    layout: Layout
    run: Run


class Programs:
    """All programs of a rank."""

    def __init__(self, context: StepContext, lanes: Lanes, sizes: Sizes, top: int) -> None:
        """On a device that compiles, run the programs that belong to no bucket, so that they are compiled.

        There, every step reports `top` of the most likely tokens.
        """
        self._context, self._lanes, self._sizes, self._top = context, lanes, sizes, top
        self._vocab_size = context.sampler.tables.size
        self._device = context.device
        self._compiled: dict[object, CompiledBucket] = {}
        self._sealed = False
        self._enter = self._device.graph(EnterProgram(context.sampler.tables))
        self._prompts: dict[int, Run] = {}
        """Programs of questions, by the number of most likely tokens that they report."""
        if self._device.compiles:
            for _ in range(2):  # compiled by the first run; the second is like all others
                self._write_tables(LaneParams(lane=lanes.count, sampling=SamplingParams()))
                if context.head is not None:
                    self._ask(np.zeros(1, np.int32), np.zeros(1, np.int32), 0)()

    def seal(self) -> None:
        """Count every bucket as a miss that is new from now on."""
        self._sealed = True

    def launch(self, step: Step) -> Wait:
        """Start a step whose changes the lanes know already, and return what waits for the result."""
        eager = not self._device.compiles
        for params in step.params:
            if params.history or params.sampling.logit_bias or params.sampling.ends:
                self._write_tables(params)
        rows = Rows.of(step, padded=not eager)
        dimensions = self._dimensions(step, rows)
        columns = step_columns(step, rows, self._lanes, dimensions, self._sizes)
        variant = self._variant(step, columns)
        key = (dimensions, variant) if eager else (step.bucket, variant)
        if self._sealed and not eager and key not in self._compiled:
            self._device.count("graph_misses")
        compiled = self._compiled.get(key) or self._compile(key, dimensions, variant)
        if eager and variant.features:
            self._context.features = self._context.features.new_empty(
                dimensions.tokens, self._context.features.shape[1]
            )
        out = self._run(compiled.run, *compiled.layout.pack(columns))
        asked = self._ask_of(step, rows) if variant.features and step.targets else None

        def wait() -> dict[str, bytes]:
            ints, floats = (array[rows.answers, : 1 + step.top] for array in out())
            results = {
                "tokens": ints[:, 0].tobytes(),
                "logprobs": floats[:, 0].tobytes(),
                "top_tokens": ints[:, 1:].tobytes(),
                "top_logprobs": floats[:, 1:].tobytes(),
            }
            return results | asked() if asked else results

        return wait

    def _compile(self, key: object, dimensions: Dimensions, variant: Variant) -> CompiledBucket:
        if not self._device.compiles and len(self._compiled) >= _MAX_EAGER:
            self._compiled.clear()
        layout = Layout.of(dimensions, self._sizes)
        run = self._device.graph(StepProgram(self._context, dimensions, layout, variant))
        compiled = self._compiled[key] = CompiledBucket(layout, run)
        return compiled

    def _variant(self, step: Step, columns: Columns) -> Variant:
        """Return the parts that the rows need; on a device that compiles, the least variant that has them."""
        needs = needs_of(columns["ints"], columns["floats"], columns["barred"])
        if not self._device.compiles:
            return Variant(needs, step.top, bool(step.targets))
        assert step.top <= self._top, "more of the likeliest tokens than Load.top"
        compiled = next(compiled for compiled in COMPILED_NEEDS if needs <= compiled)
        return Variant(compiled, self._top, step.bucket.prefill)

    def _dimensions(self, step: Step, rows: Rows) -> Dimensions:
        """Return the exact sizes of the step; on a device that compiles, those of its bucket."""
        bucket, sizes = step.bucket, self._sizes
        firsts = [first_blocks(rows.starts, window, sizes.block_size) for window in sizes.windows]
        if not self._device.compiles:
            ends = -(-(rows.starts + rows.lengths) // sizes.block_size)
            return Dimensions(
                rows=len(rows.lanes),
                tokens=max(len(rows.owners), self._device.min_tokens),
                samples=len(rows.answers),
                masks=len(step.masked) // 4,
                blocks=tuple(int((ends - first).max()) for first in firsts),
                flat=False,
            )
        # A bucket with room for several samples of a row, for speculation, does not exist yet.
        assert unpack_ints(step.samples).max() <= 1, "several samples of a row"
        blocks = tuple(self._listed_blocks(bucket, window) for window in sizes.windows)
        if bucket.prefill:
            contexts = [int((-(-rows.starts // sizes.block_size) - first).max()) for first in firsts]
            assert all(map(operator.le, contexts, blocks)), "a context beyond the bucket"
            room = len(self._context.features)
            assert bucket.rows * bucket.tokens <= room, "a prefill step beyond Load.prefill_tokens"
        return Dimensions(
            rows=bucket.rows,
            tokens=bucket.rows * bucket.tokens,
            samples=bucket.rows,
            masks=bucket.rows,
            blocks=blocks,
            flat=self._device.flat and not bucket.prefill,
        )

    def _listed_blocks(self, bucket: Bucket, window: int | None) -> int:
        """Return the entries of a group's block tables, or of its list: the bucket's, if a window needs no
        fewer."""
        if window is None:
            return bucket.blocks
        seen = span(window if self._device.flat else window + bucket.tokens - 1, self._sizes.block_size)
        return min(bucket.blocks, seen if bucket.prefill or not self._device.flat else seen * bucket.rows)

    def _run(self, run: Run, *packed: Array) -> Callable[[], list[Array]]:
        """Upload, run, and begin to fetch the results; what is returned waits for them."""
        return self._device.fetch(*run(*self._device.upload(*packed)))

    def _write_tables(self, params: LaneParams) -> None:
        """Write what a sequence brings into the sampler's tables, a piece at a time if shapes are fixed."""
        ids, numbers = entries_of(params, self._vocab_size)
        size = max(len(ids), 1) if not self._device.compiles else MAX_ENTRIES
        for begin in range(0, len(ids), size) or (0,):
            piece = ids[begin : begin + size]
            ints = np.full(2 + size, self._vocab_size, np.int32)
            ints[:2] = params.lane, begin > 0
            ints[2 : 2 + len(piece)] = piece
            floats = np.zeros((4, size), np.float32)
            floats[:, : len(piece)] = numbers[:, begin : begin + size]
            self._enter(*self._device.upload(ints, floats.reshape(-1)))

    def _ask_of(self, step: Step, rows: Rows) -> Wait | None:
        targets = unpack_ints(step.targets)
        asked = np.flatnonzero(targets >= 0)
        return self._ask(rows.places[asked], targets[asked], step.prompt_top) if len(asked) else None

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
