"""A step as one program: from a bucket's packed tensor through model and sampler to packed answers.

Everything a step changes is changed within: the KV cache, the last token of each lane, and what the sampler
counts. There is one program for every mixture of sampling parameters, since all its parts are always on.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch

from tgi.device.base import Device
from tgi.device.batch import Batch, FlatBlocks, KVCache
from tgi.device.graphs import Program
from tgi.footprint import PROMPT_SLICE
from tgi.layers import Head
from tgi.protocol import Bucket
from tgi.sampling import COLUMNS

from .layout import Layout, Sizes
from .sampler import ALL_NEEDS, Masks, Sampler, SamplerInputs
from .tables import Tables

Given = dict[str, torch.Tensor]


@attrs.frozen(eq=False)
class Prompt:
    """What prefill steps leave for questions about the prompt; [positions, ...] each, on the device."""

    features: torch.Tensor
    """What the head got."""
    targets: torch.Tensor
    """[positions] int32: the token that follows, -1: nobody asks."""
    answers: torch.Tensor
    """[positions, 1 + 2 * top] int32: bits of its log-probability, ids and bits of the likeliest."""

    @classmethod
    def of(cls, positions: int, hidden: int, top: int, device: Device, dtype: torch.dtype) -> "Prompt":
        """For prefill steps of up to so many positions."""
        size = -(-positions // PROMPT_SLICE) * PROMPT_SLICE

        def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=dtype, device=device.torch_device)

        return cls(
            empty(size, hidden, dtype=dtype),
            empty(size, dtype=torch.int32),
            empty(size, 1 + 2 * top, dtype=torch.int32),
        )


@attrs.frozen(eq=False)
class Parts:
    """What all programs of a rank work with."""

    model: Callable[[Batch], torch.Tensor]
    sampler: Sampler
    cache: KVCache
    last_tokens: torch.Tensor
    """[lanes + 1] int32"""
    prompt: Prompt
    device: Device
    sizes: Sizes
    top: int
    """How many of the likeliest tokens every step reports."""


class StepProgram(Program):
    """Of one bucket. Gives [rows, 2 + 2 * top]: token, bits of its log-probability, and the likeliest."""

    regions: ClassVar[tuple[str, ...]] = ("unpack", "finish")

    def __init__(self, shape: Bucket, layout: Layout, parts: Parts) -> None:
        super().__init__()
        self._shape, self._layout, self._parts = shape, layout, parts

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """The whole step."""
        given, plan = self.unpack(packed)
        batch = self._batch(given)
        batch.plan = plan
        return self.finish(self._parts.model(batch), given)

    def unpack(self, packed: torch.Tensor) -> tuple[Given, Any]:
        """The columns, and what the device works out of them once for all layers."""
        given = self._layout.unpack(packed)
        parts, shape = self._parts, self._shape
        rows = torch.arange(shape.rows, dtype=torch.int32, device=packed.device)
        if shape.prefill:
            given["last"] = rows * shape.tokens + given["row_lengths"] - 1
            _enter(parts.sampler.tables, given, shape)
            places = torch.arange(shape.rows * shape.tokens, device=packed.device)
            parts.prompt.targets.index_copy_(0, places, given["targets"])
        else:
            given["last"] = rows
            given["tokens"] = parts.last_tokens.index_select(0, given["lanes"])
        given["previous"] = given["tokens"].index_select(0, given["last"])
        return given, parts.device.plan(self._batch(given), parts.sizes.block_size)

    def finish(self, logits: torch.Tensor, given: Given) -> torch.Tensor:
        """Choose the tokens and write them down."""
        parts, shape = self._parts, self._shape
        rows = SamplerInputs(
            needs=ALL_NEEDS,
            lanes=given["sampled_lanes"],
            masks=Masks(given["masks"].view(shape.rows, -1)),
            params={name: given[name] for name in COLUMNS},
            top=parts.top,
            **{name: given[name] for name in ("lengths", "previous", "draw_high", "draw_low", "barred")},
        )
        sampled = parts.sampler(logits, rows)
        tokens = sampled.tokens.int()
        parts.last_tokens.index_copy_(0, given["sampled_lanes"].long(), tokens)
        columns = (
            tokens[:, None],
            sampled.logprobs.view(torch.int32)[:, None],
            sampled.top_tokens.int(),
            sampled.top_logprobs.view(torch.int32),
        )
        return torch.cat(columns, 1)

    def _batch(self, given: Given) -> Batch:
        parts, shape = self._parts, self._shape
        flat = None
        if not shape.prefill and parts.sizes.flat:
            flat = FlatBlocks(given["block_ids"], given["block_rows"], given["block_tokens"])
        tables = given["tokens"][:0] if flat else given["tables"]
        return Batch(
            tokens=given["tokens"],
            positions=given["positions"],
            contexts=given["contexts"],
            slots=given["slots"],
            tables=tables.view(shape.rows, 0 if flat else shape.blocks),
            last=given["last"],
            cache=parts.cache,
            lengths=given["row_lengths"] if shape.prefill else None,
            bases=given.get("bases"),
            flat=flat,
            features=parts.prompt.features if shape.prefill else None,
        )


def _enter(tables: Tables, given: Given, shape: Bucket) -> None:
    """Sequences enter lanes with what they bring, and the step's tokens are counted."""
    tables.clear(given["cleared"], given["marked"])
    tables.mark(
        given["marked"],
        given["biased_ids"].view(shape.rows, -1),
        given["bias"].view(shape.rows, -1),
        given["ends"].view(shape.rows, -1),
    )
    ends = given["prompt_ends"][:, None]

    def count(tokens: torch.Tensor, valid: torch.Tensor, positions: torch.Tensor) -> None:
        lanes = given["lanes"][:, None].expand_as(tokens)
        generated = valid & (positions >= ends)
        tables.add(*(x.flatten() for x in (lanes, tokens.clamp_min(0), valid, generated)))

    tokens = given["tokens"].view(shape.rows, -1)
    place = torch.arange(shape.tokens, dtype=torch.int32, device=tokens.device)
    count(tokens, place < given["row_lengths"][:, None], given["positions"].view(shape.rows, -1))
    if shape.blocks:
        before = given["history"].view(shape.rows, -1)
        place = torch.arange(before.shape[1], dtype=torch.int32, device=tokens.device)
        count(before, before >= 0, place.expand_as(before))


class PromptProgram(Program):
    """Answers the questions about PROMPT_SLICE positions, beginning with the one that it is given, [1]."""

    regions: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, head: Head, parts: Parts) -> None:
        super().__init__()
        self._answer = head.answer
        self._prompt, self._top = parts.prompt, parts.top

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """[PROMPT_SLICE, 1 + 2 * top], which are put among the prompt's answers too."""
        prompt = self._prompt
        places = packed + torch.arange(PROMPT_SLICE, dtype=torch.int32, device=packed.device)
        targets = prompt.targets.index_select(0, places)
        chosen, ids, logprobs = self._answer(prompt.features.index_select(0, places), targets, self._top)
        columns = (chosen.view(torch.int32)[:, None], ids.int(), logprobs.view(torch.int32))
        answers = torch.cat(columns, 1)
        prompt.answers.index_copy_(0, places.long(), answers)
        return answers


class MarkProgram(Program):
    """Writes the rows of a lane that are too much for its first step: lane, counts, generated, bias, ends."""

    regions: ClassVar[tuple[str, ...]] = ("forward",)

    def __init__(self, tables: Tables, vocab_size: int) -> None:
        super().__init__()
        self._tables, self._size = tables, vocab_size

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """Gives the lane back."""
        ends = packed[1 + 3 * self._size :]
        counts, generated, bias = packed[1 : -self._size].view(torch.float32).view(3, self._size).unbind(0)
        self._tables.replace(packed[:1], counts, generated, bias, ends)
        return packed[:1] + 0
