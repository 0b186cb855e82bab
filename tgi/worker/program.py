"""Programs: what runs on the device, from packed tensors to packed tensors.

Everything that a step changes is changed within: the KV cache, the last token of each lane, and the counts of
the sampler. A device that compiles runs a program as a graph, any other as it stands.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch

from tgi.device.base import Device
from tgi.device.batch import Batch, FlatBlocks, GroupBatch, KVCache
from tgi.device.graphs import Program
from tgi.layers import Head
from tgi.sampling import FLOATS, INTS

from .layout import Dimensions, Layout
from .sampler import Masks, Needs, Sampler, SamplerInputs
from .tables import Tables

Inputs = dict[str, torch.Tensor]
Packed = tuple[torch.Tensor, torch.Tensor]
"""Integers and floats, int32 and float32."""


@attrs.define(eq=False)
class StepContext:
    """The things that all programs of a rank work with."""

    model: Callable[[Batch], torch.Tensor]
    head: Head | None
    """The head of the model, which answers questions about the prompt."""
    sampler: Sampler
    cache: KVCache
    last_tokens: torch.Tensor
    """[lanes + 1] int32: the last sampled token of each lane."""
    device: Device
    block_size: int
    features: torch.Tensor
    """[positions, hidden size]: the head's input in the last prefill step, for questions about the prompt."""


@attrs.frozen
class Variant:
    """The parts of the step program that rows need."""

    needs: Needs
    """Parts of the sampler."""
    top: int
    """Number of most likely tokens to report for each sample."""
    features: bool
    """Whether the head's input is kept, for questions about the prompt."""


class StepProgram(Program):
    """Runs a step of one layout: the model, the sampler, and the note of the new tokens.

    The result is [samples, 1 + top] twice: the token and the most likely ones, and their log-probabilities.
    """

    regions: ClassVar[tuple[str, ...]] = ("unpack", "finish")

    def __init__(
        self, context: StepContext, dimensions: Dimensions, layout: Layout, variant: Variant
    ) -> None:
        super().__init__()
        self._context, self._dimensions, self._layout = context, dimensions, layout
        self._variant = variant

    def forward(self, ints: torch.Tensor, floats: torch.Tensor) -> Packed:
        """Run the whole step."""
        inputs, plan = self.unpack(ints, floats)
        batch = self._batch(inputs)
        batch.plan = plan
        return self.finish(self._context.model(batch), inputs)

    def unpack(self, ints: torch.Tensor, floats: torch.Tensor) -> tuple[Inputs, Any]:
        """Return the columns, with tokens filled in, and the device's plan for all layers."""
        inputs, context = self._layout.unpack(ints, floats), self._context
        tokens = inputs["tokens"]
        known = context.last_tokens.index_select(0, (-1 - tokens).clamp_min(0))
        inputs["tokens"] = torch.where(tokens < 0, known, tokens)
        return inputs, context.device.plan(self._batch(inputs), context.block_size)

    def finish(self, logits: torch.Tensor, inputs: Inputs) -> Packed:
        """Choose the tokens, note them as the last ones of their lanes, and pack the result."""
        context, variant, last = self._context, self._variant, inputs["last"]
        masks = Masks(inputs["masks"], inputs.get("masked")) if "masks" in inputs else None
        rows = SamplerInputs(
            needs=variant.needs,
            lanes=inputs["lanes"],
            lengths=inputs["positions"].index_select(0, last) + 1,
            previous=inputs["tokens"].index_select(0, last),
            draw_high=inputs["draw_high"],
            draw_low=inputs["draw_low"],
            barred=inputs["barred"],
            params=dict(zip((*INTS, *FLOATS), (*inputs["ints"], *inputs["floats"]), strict=True)),
            top=variant.top,
            masks=masks,
        )
        sampled = context.sampler(logits, rows)
        tokens = sampled.tokens.int()
        context.last_tokens.index_copy_(0, inputs["next_lanes"].long(), tokens)
        return (
            torch.cat((tokens[:, None], sampled.top_tokens.int()), 1),
            torch.cat((sampled.logprobs[:, None], sampled.top_logprobs), 1),
        )

    def _batch(self, inputs: Inputs) -> Batch:
        return Batch(
            tokens=inputs["tokens"],
            positions=inputs["positions"],
            contexts=inputs["contexts"],
            starts=inputs["starts"],
            lengths=inputs["lengths"],
            last=inputs["last"],
            cache=self._context.cache,
            groups=[self._group(inputs, group) for group in range(len(self._dimensions.blocks))],
            features=self._context.features if self._variant.features else None,
        )

    def _group(self, inputs: Inputs, group: int) -> GroupBatch:
        slots = inputs[f"slots{group}"]
        if self._dimensions.flat:
            flat = FlatBlocks(*(inputs[f"{name}{group}"] for name in ("ids", "rows", "tokens")))
            return GroupBatch(slots, slots.new_empty(self._dimensions.rows, 0), flat=flat)
        return GroupBatch(slots, inputs[f"tables{group}"], inputs.get(f"bases{group}"))


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
