"""From a Step to what the model and the sampler take: padding, slots, positions, one copy to the device."""

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.device import Batch, Device, HostRow, KVCache
from tgi.protocol import Step, unpack_ints

from .kv_cache import KVCacheSpec
from .lanes import FLOATS, INTS, Lanes
from .sampler import Masks, Needs, SamplerInputs

Ints = npt.NDArray[np.int32]


@attrs.define(eq=False)
class Inputs:
    """All that a step takes."""

    batch: Batch
    sampler: SamplerInputs
    answers: Ints
    """Which of the sampler's rows the server wants to know, in its order."""
    target_places: Ints
    """Where among the batch's T tokens the log-probabilities are that it wants to know."""


@attrs.frozen
class _Layout:
    """Where the tokens of a step's rows go among the T of its batch."""

    total: int
    """T"""
    rows: int
    lanes: Ints
    """[rows], padding lanes included."""
    starts: Ints
    lengths: Ints
    """[real rows]"""
    offsets: Ints
    """[real rows]: of the first token of each."""

    @property
    def places(self) -> Ints:
        """[sum of lengths]: index among the T of every real token."""
        return np.repeat(self.offsets, self.lengths) + self.within

    @property
    def within(self) -> Ints:
        """[sum of lengths]: index of every real token within its row."""
        ends = np.cumsum(self.lengths)
        return np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - self.lengths, self.lengths)


def make_inputs(
    step: Step,
    lanes: Lanes,
    device: Device,
    spec: KVCacheSpec,
    cache: KVCache,
    last_tokens: torch.Tensor,
) -> Inputs:
    """The inputs of a step; `lanes` has been updated with it. `last_tokens` [lanes] is on the device."""
    layout = _lay_out(step, lanes, device)
    columns = _token_columns(step, layout, lanes, spec.block_size)
    sampler_columns, needs, rows = _sampler_columns(step, layout, lanes, device.dynamic)
    given = _to_device({**columns, **sampler_columns}, device)
    tokens = given["tokens"] if step.prefill else last_tokens[given["lanes"]]
    batch = Batch(
        tokens=tokens,
        positions=given["positions"],
        contexts=given["contexts"],
        slots=given["slots"],
        tables=given["tables"].view(layout.rows, -1),
        last=given["last"],
        cache=cache,
        host=_host_rows(layout, lanes, spec.block_size),
        targets=given.get("targets"),
        target_top=step.prompt_top,
    )
    batch.plan = device.plan(batch, spec.block_size)
    sampler = SamplerInputs(
        needs=needs,
        lanes=given["sampled_lanes"],
        lengths=given["lengths"],
        previous=tokens[given["last"]],
        draw_high=given["draw_high"],
        draw_low=given["draw_low"],
        barred=given["barred"],
        masks=_masks(step, rows, device),
        **{name: given[name] for name in (*INTS, *FLOATS)},
    )
    places = layout.places if step.targets else np.empty(0, np.int32)
    return Inputs(batch, sampler, np.flatnonzero(rows >= 0).astype(np.int32), places)


def _lay_out(step: Step, lanes: Lanes, device: Device) -> _Layout:
    real, starts = unpack_ints(step.lanes), unpack_ints(step.starts)
    lengths = unpack_ints(step.lengths) if step.prefill else np.ones(len(real), np.int32)
    rows = step.bucket_rows
    if not step.prefill:
        rows = max(rows, device.least_tokens)
        total, offsets = rows, np.arange(len(real), dtype=np.int32)
    elif device.dynamic:
        ends = np.cumsum(lengths, dtype=np.int32)
        rows, total, offsets = len(real), max(int(ends[-1]), device.least_tokens), ends - lengths
    else:
        total, offsets = rows * step.bucket_tokens, np.arange(len(real), dtype=np.int32) * step.bucket_tokens
    padded = np.full(rows, lanes.count, np.int32)
    padded[: len(real)] = real
    return _Layout(total, rows, padded, starts, lengths, offsets)


def _token_columns(step: Step, layout: _Layout, lanes: Lanes, block_size: int) -> dict[str, Ints]:
    """What the model takes; padding has token, position and slot 0."""
    places = layout.places
    real_lanes = np.repeat(layout.lanes[: len(layout.lengths)], layout.lengths)
    positions = np.repeat(layout.starts, layout.lengths) + layout.within
    prompts = np.repeat(_prompt_lengths(step, layout, lanes), layout.lengths)
    slots = lanes.tables[real_lanes, positions // block_size] * block_size + positions % block_size
    blocks = min(step.bucket_blocks, lanes.tables.shape[1])
    tables = np.zeros((layout.rows, step.bucket_blocks), np.int32)
    tables[:, :blocks] = lanes.tables[layout.lanes, :blocks]

    def place(values: Ints, padding: int = 0) -> Ints:
        column = np.full(layout.total, padding, np.int32)
        column[places] = values
        return column

    columns = {
        "positions": place(positions),
        "contexts": place(np.where(positions < prompts, prompts, positions + 1)),
        "slots": place(slots),
        "tables": tables.reshape(-1),
        "lanes": layout.lanes,
    }
    if step.prefill:
        columns["tokens"] = place(unpack_ints(step.tokens))
    if step.targets:
        columns["targets"] = place(unpack_ints(step.targets), -1)
    return columns


def _prompt_lengths(step: Step, layout: _Layout, lanes: Lanes) -> Ints:
    """Of the real rows. Where the server does not say, the prompt is taken to end with this step."""
    said = lanes.prompt_lengths[layout.lanes[: len(layout.lengths)]]
    reached = layout.starts + layout.lengths if step.prefill else np.zeros_like(layout.starts)
    return np.where(said > 0, said, reached)


def _sampler_columns(
    step: Step, layout: _Layout, lanes: Lanes, dynamic: bool
) -> tuple[dict[str, Ints], Needs, Ints]:
    """What the sampler takes, and which row of the step each of its rows is, -1: padding.

    Rows that are not sampled are left out where shapes are cheap, else padding.
    """
    draws = unpack_ints(step.draws)
    keep = np.flatnonzero(draws >= 0).astype(np.int32)
    rows = keep if dynamic else np.arange(layout.rows, dtype=np.int32)
    real = rows < len(draws)
    index = np.where(real, rows, 0)
    sampled = real & (draws[index] >= 0)
    row_lanes = np.where(sampled, layout.lanes[rows], lanes.count).astype(np.int32)
    lengths = np.where(sampled, layout.starts[index] + layout.lengths[index], 1)
    ends = np.where(real, layout.offsets[index] + layout.lengths[index] - 1, 0)
    numbers = np.where(sampled, draws[index], 0).astype(np.int32)
    high, low = lanes.draw(row_lanes, numbers)
    floats, ints = lanes.floats[row_lanes], lanes.ints[row_lanes]
    columns = {
        "last": ends,
        "sampled_lanes": row_lanes,
        "lengths": lengths,
        "draw_high": high,
        "draw_low": low,
        "barred": numbers < lanes.min_tokens[row_lanes],
        **{name: ints[:, i] for i, name in enumerate(INTS)},
        **{name: floats[:, i] for i, name in enumerate(FLOATS)},
    }
    needs = Needs.of(columns, step.top)
    return columns, needs, np.where(sampled, rows, -1).astype(np.int32)


def _masks(step: Step, rows: Ints, device: Device) -> Masks | None:
    """Of the rows that have one; of all, where shapes must not depend on how many those are."""
    if not step.masks:
        return None
    masked = unpack_ints(step.mask_rows)
    words = unpack_ints(step.masks).reshape(len(masked), -1)
    if device.dynamic:
        places, words = np.searchsorted(rows, masked), words.copy()
    else:
        places, some = np.arange(len(rows)), words
        words = np.full((len(rows), some.shape[1]), -1, np.int32)
        words[masked] = some
    return Masks(*(torch.from_numpy(array).to(device.torch_device) for array in (places, words)))


def _host_rows(layout: _Layout, lanes: Lanes, block_size: int) -> list[HostRow]:
    rows = zip(
        layout.offsets.tolist(),
        layout.lengths.tolist(),
        layout.starts.tolist(),
        layout.lanes.tolist(),
        strict=False,
    )
    return [
        HostRow(offset, length, start, lanes.tables[lane, : -(-(start + length) // block_size)])
        for offset, length, start, lane in rows
    ]


def _to_device(columns: Mapping[str, npt.NDArray[np.generic]], device: Device) -> dict[str, torch.Tensor]:
    """All columns in one copy; integers become int64 there, the columns named in FLOATS float32."""
    arrays = [
        np.ascontiguousarray(values, np.float32 if name in FLOATS else np.int32).view(np.int32)
        for name, values in columns.items()
    ]
    moved = torch.from_numpy(np.concatenate(arrays)).to(device.torch_device)
    wide = moved.long()
    result, begin = {}, 0
    for name, array in zip(columns, arrays, strict=True):
        end = begin + len(array)
        result[name] = moved[begin:end].view(torch.float32) if name in FLOATS else wide[begin:end]
        begin = end
    return result
