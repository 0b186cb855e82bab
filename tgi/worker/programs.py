"""Programs of a rank: what runs on the device, from packed tensors to packed tensors, and what carries a step
through them: pack, upload, run, fetch, unpack.

A step is a program of the model, one for each bucket, and a program of the sampler, one for each number of
samples and each amount of work: that of greedy rows, of plain draws, or everything. Everything that a step
changes is changed within: the KV cache, the logits, the last token of each lane, and the counts of the
sampler. A device that compiles runs a program as a graph, any other as it stands. A step is launched, and its
result waited for, apart from one another, so that the next can be launched first.
"""

import operator
from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import numpy as np
import torch

from tgi.device.base import Device
from tgi.device.batch import Batch, FlatBlocks, GroupBatch, KVCache
from tgi.device.costs import PROMPT_SLICE
from tgi.device.graphs import Program, Run
from tgi.layers import Head
from tgi.layers.lora import Loras
from tgi.limits import span
from tgi.protocol import Bucket, LaneParams, Step, unpack_ints
from tgi.sampling import FLOATS, INTS, SamplingParams
from tgi.weights import Shard, Stage

from .lanes import Ints, Lanes, Tables, entries_of
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
from .sampler import ALL_NEEDS, DRAW_NEEDS, Masks, Needs, Sampler, SamplerInputs, needs_of

MAX_ENTRIES = 256
"""Tokens that one run of `EnterProgram` writes on a device that compiles."""
COMPILED_NEEDS: tuple[Needs, ...] = (frozenset(), DRAW_NEEDS, ALL_NEEDS)
"""Needs of the programs that a device that compiles has for the sampler, as `Step.least_sampler` counts them.

Only the last has masks, sorts the vocabulary, and reports the most likely tokens."""
_ALONE, _ONLY = Shard(), Stage()
_MAX_EAGER = 64
"""Programs that are kept where they cost nothing to make."""
Wait = Callable[[], dict[str, bytes]]
"""Waits for results, and returns them as columns of a `Result`."""
Inputs = dict[str, Any]
Packed = tuple[torch.Tensor, torch.Tensor]
"""Integers and floats, int32 and float32."""


@attrs.define(eq=False)
class StepContext:
    """The things that all programs of a rank work with."""

    model: Callable[[Batch], torch.Tensor]
    head: Head | None
    """The head of the model, which answers questions about the prompt."""
    sampler: Sampler | None
    """Chooses tokens in the last stage of a pipeline; None in others."""
    cache: KVCache
    last_tokens: torch.Tensor
    """[lanes + 1] int32: the last sampled token of each lane."""
    device: Device
    block_size: int
    features: torch.Tensor
    """[positions, hidden size]: the head's input in the last prefill step, for questions about the prompt."""
    outputs: torch.Tensor
    """[at least the step's samples, vocab]: logits of the last step; float32 on a device that compiles. In a
    stage before the last one, [at least the step's tokens, hidden size]: features for the next stage."""
    loras: Loras | None
    """LoRA adapters, if there can be any."""
    received: torch.Tensor | None = None
    """[at least the step's tokens, hidden size]: features from the stage before; None in the first one."""


class ModelProgram(Program):
    """Runs the model on a step of one layout, and leaves what it gives in the context."""

    regions: ClassVar[tuple[str, ...]] = ("unpack", "keep")

    def __init__(
        self, context: StepContext, dimensions: Dimensions, layout: Layout, *, features: bool
    ) -> None:
        """`features`: the head's input is kept, for questions about the prompt."""
        super().__init__()
        self._context, self._dimensions, self._layout = context, dimensions, layout
        self._features = features

    def forward(self, ints: torch.Tensor) -> tuple[torch.Tensor]:
        """Run the model, and return the tokens, as a sign that it is done."""
        inputs, plan = self.unpack(ints)
        batch = self._batch(inputs)
        batch.plan = plan
        if self._context.loras is not None:
            self._context.loras.rows.value = batch.loras
        outputs = self._context.model(batch)
        if self._context.device.compiles:
            self.keep(self._context.outputs, outputs)
        else:
            self._context.outputs = outputs
        return (inputs["tokens"],)

    def unpack(self, ints: torch.Tensor) -> tuple[Inputs, Any]:
        """Return the columns, with tokens filled in, and the device's plan for all layers."""
        inputs, context = self._layout.unpack(ints), self._context
        inputs["tokens"] = _filled(inputs["tokens"], context)
        if "loras" in inputs:
            assert context.loras is not None
            inputs["loras"] = context.loras.place(inputs["loras"])
        return inputs, context.device.plan(self._batch(inputs), context.block_size)

    @staticmethod
    def keep(kept: torch.Tensor, outputs: torch.Tensor) -> None:
        """Leave the logits where the sampler's programs find them, or features where they are sent from."""
        rows = torch.arange(outputs.shape[0], device=outputs.device)
        kept.index_copy_(0, rows, outputs.to(kept.dtype))

    def _batch(self, inputs: Inputs) -> Batch:
        received = self._context.received
        return Batch(
            tokens=inputs["tokens"],
            positions=inputs["positions"],
            contexts=inputs["contexts"],
            starts=inputs["starts"],
            lengths=inputs["lengths"],
            last=inputs["last"],
            cache=self._context.cache,
            groups=[self._group(inputs, group) for group in range(len(self._dimensions.blocks))],
            features=self._context.features if self._features else None,
            loras=inputs.get("loras"),
            received=None if received is None else received[: self._dimensions.tokens],
        )

    def _group(self, inputs: Inputs, group: int) -> GroupBatch:
        slots = inputs[f"slots{group}"]
        if self._dimensions.flat:
            flat = FlatBlocks(inputs.get(f"ids{group}"), inputs[f"rows{group}"], inputs[f"tokens{group}"])
            return GroupBatch(slots, slots.new_empty(self._dimensions.rows, 0), flat=flat)
        return GroupBatch(slots, inputs[f"tables{group}"], inputs.get(f"bases{group}"))


@attrs.frozen
class Variant:
    """The work of a program of the sampler."""

    samples: int
    needs: Needs
    """Parts of the sampler."""
    masks: int = 0
    """Samples with a mask of their own."""
    top: int = 0
    """Number of most likely tokens to report for each sample."""
    windowed: bool = False
    """Whether a plain draw does without a sorted vocabulary."""


class SampleProgram(Program):
    """Chooses the tokens of a step from the logits that the model has left, and notes the new tokens.

    The result is [samples, 1 + top] twice: the token and the most likely ones, and their log-probabilities.
    """

    regions: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, context: StepContext, layout: Layout, variant: Variant) -> None:
        super().__init__()
        self._context, self._layout, self._variant = context, layout, variant

    def forward(self, ints: torch.Tensor, floats: torch.Tensor) -> Packed:
        """Choose the tokens, note them as the last ones of their lanes, and pack the result."""
        context, variant, inputs = self._context, self._variant, self._layout.unpack(ints, floats)
        masks = Masks(inputs["masks"], inputs.get("masked")) if "masks" in inputs else None
        rows = SamplerInputs(
            needs=variant.needs,
            lanes=inputs["lanes"],
            lengths=inputs["counts"],
            previous=_filled(inputs["previous"], context),
            draw_high=inputs["draw_high"],
            draw_low=inputs["draw_low"],
            barred=inputs["barred"],
            params=dict(zip((*INTS, *FLOATS), (*inputs["ints"], *inputs["floats"]), strict=True)),
            top=variant.top,
            masks=masks,
            windowed=variant.windowed,
        )
        assert context.sampler is not None, "a stage that does not choose tokens"
        sampled = context.sampler(context.outputs[: variant.samples], rows)
        tokens = sampled.tokens.int()
        # The next step's row of an undecided one is void, but must have a token.
        context.last_tokens.index_copy_(0, inputs["next_lanes"].long(), tokens.clamp_min(0))
        return (
            torch.cat((tokens[:, None], sampled.top_tokens.int()), 1),
            torch.cat((sampled.logprobs[:, None], sampled.top_logprobs), 1),
        )


def _filled(tokens: torch.Tensor, context: StepContext) -> torch.Tensor:
    """Return tokens with the last one of lane i in the place of -1 - i."""
    known = context.last_tokens.index_select(0, (-1 - tokens).clamp_min(0))
    return torch.where(tokens < 0, known, tokens)


class PromptProgram(Program):
    """Answers questions about the prompt from the features that a step has left.

    It takes places and targets, [n] each: positions among the step's tokens, and the tokens that follow, -1
    for padding. The result is [n, top] and [n, 1 + top]: the most likely tokens, and the log-probabilities of
    target and most likely tokens.
    """

    regions: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, context: StepContext, top: int) -> None:
        super().__init__()
        self._context, self._top = context, top

    def forward(self, ints: torch.Tensor) -> Packed:
        """Answer all."""
        assert self._context.head is not None, "the model has no Head"
        places, targets = ints.view(2, -1).unbind(0)
        features = self._context.features.index_select(0, places)
        chosen, ids, logprobs = self._context.head.answer(features, targets, self._top)
        return ids.int(), torch.cat((chosen[:, None], logprobs), 1)


class EnterProgram(Program):
    """Writes what a sequence brings into the sampler's tables.

    It takes the lane, whether its rows are kept, and ids [n]; and the numbers [4, n] of `entries_of`.
    """

    regions: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, tables: Tables) -> None:
        super().__init__()
        self._tables = tables

    def forward(self, ints: torch.Tensor, floats: torch.Tensor) -> tuple[torch.Tensor]:
        """Return the lane, as a sign that it is done."""
        self._tables.enter(ints[:1], ints[1:2], ints[2:], floats.view(4, -1))
        return (ints[:1] + 0,)


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
        shard: Shard = _ALONE,
        stage: Stage = _ONLY,
    ) -> None:
        """On a device that compiles, run the programs that belong to no bucket, so that they are compiled.

        There, a step that reports most likely tokens reports `top` of them.
        """
        self._context, self._lanes, self._sizes, self._top = context, lanes, sizes, top
        self._shard, self._stage = shard, stage
        self._device = context.device
        self._compiled: dict[object, Compiled] = {}
        self._sealed = False
        self._prompts: dict[int, Run] = {}
        """Programs of questions, by the number of most likely tokens that they report."""
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
        model = self._program(
            (dimensions, features),
            model_layout(dimensions, self._sizes),
            lambda layout: ModelProgram(self._context, dimensions, layout, features=features),
        )
        packed: list[Array] = [model.layout.pack(columns)[0]]
        sampler: Compiled | None = None
        if last:
            needs = needs_of(columns["ints"], columns["floats"], columns["barred"])
            variant = self._variant(step, dimensions.samples, needs)
            sampler = self._program(
                variant,
                sample_layout(variant.samples, variant.masks, self._sizes),
                lambda layout: SampleProgram(self._context, layout, variant),
            )
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
            ints, floats = (array[rows.answers, : 1 + step.top] for array in out())
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
            device.receive(context.received[:tokens], self._shard)
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
        firsts = [first_blocks(rows.starts, window, sizes.block_size) for window in sizes.windows]
        if not self._device.compiles:
            ends = -(-(rows.starts + rows.lengths) // sizes.block_size)
            return Dimensions(
                rows=len(rows.lanes),
                tokens=max(len(rows.owners), self._device.min_tokens),
                samples=len(rows.answers),
                blocks=tuple(int((ends - first).max()) for first in firsts),
                flat=False,
                loras=bool(step.loras),
            )
        # A bucket with room for several samples of a row, for speculation, does not exist yet.
        assert unpack_ints(step.samples).max() <= 1, "several samples of a row"
        blocks = tuple(self._listed_blocks(bucket, window) for window in sizes.windows)
        if bucket.prefill:
            contexts = [int((-(-rows.starts // sizes.block_size) - first).max()) for first in firsts]
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
