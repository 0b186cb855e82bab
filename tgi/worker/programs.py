"""Programs of a rank: what runs on the device, from packed tensors to packed tensors.

A step is a program of the model and a program of the sampler. Everything that a step changes is changed
within: the KV cache, the logits, the last token of each lane, and the counts of the sampler. A device that
compiles runs a program as a graph, any other as it stands.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch

from tgi.device.base import Device
from tgi.device.batch import Batch, FlatBlocks, GroupBatch, KVCache
from tgi.device.graphs import Program
from tgi.layers import Head
from tgi.layers.lora import Loras
from tgi.sampling import FLOATS, INTS

from .lanes import Tables
from .layout import (
    Dimensions,
    Layout,
)
from .sampler import Masks, Needs, Sampler, SamplerInputs

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

    The result is [samples, 1 + top] twice: the token and the most likely ones, and their log-probabilities;
    [samples] if no most likely ones are reported.
    """

    regions: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, context: StepContext, layout: Layout, variant: Variant) -> None:
        super().__init__()
        self._context, self._layout, self._variant = context, layout, variant

    def forward(self, ints: torch.Tensor, floats: torch.Tensor) -> Packed:
        """Choose the tokens, note them as the last ones of their lanes, and pack the result."""
        context, variant, inputs = self._context, self._variant, self._layout.unpack(ints, floats)
        masks = Masks(inputs["masks"], inputs.get("masked")) if "masks" in inputs else None
        params: dict[str, torch.Tensor] = {}
        if variant.needs:
            params = dict(zip((*INTS, *FLOATS), (*inputs["ints"], *inputs["floats"]), strict=True))
        rows = SamplerInputs(
            needs=variant.needs,
            lanes=inputs["lanes"],
            lengths=inputs["counts"],
            previous=_filled(inputs["previous"], context) if variant.needs else inputs["previous"],
            draws=inputs["draws"],
            barred=inputs["barred"],
            params=params,
            top=variant.top,
            masks=masks,
            windowed=variant.windowed,
        )
        assert context.sampler is not None, "a stage that does not choose tokens"
        sampled = context.sampler(context.outputs[: variant.samples], rows)
        tokens = sampled.tokens.int()
        # The next step's row of an undecided one is void, but must have a token.
        context.last_tokens.index_copy_(0, inputs["next_lanes"].long(), tokens.clamp_min(0))
        if sampled.top_tokens is None or sampled.top_logprobs is None:
            return tokens, sampled.logprobs
        return (
            torch.cat((tokens[:, None], sampled.top_tokens.int()), 1),
            torch.cat((sampled.logprobs[:, None], sampled.top_logprobs), 1),
        )


def _filled(tokens: torch.Tensor, context: StepContext) -> torch.Tensor:
    """Return tokens with the last one of lane i in the place of -1 - i, unless the host has filled it in."""
    if context.device.immediate:
        return tokens
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
