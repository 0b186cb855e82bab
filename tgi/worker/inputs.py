"""The inputs of a step where its shapes are cheap: columns of the rows that there are, in one copy.

Where every shape is compiled, `program.py` makes the same of the one packed tensor of a bucket.
"""

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.device.base import Device
from tgi.device.batch import Batch, HostRow, KVCache
from tgi.protocol import Step, unpack_ints
from tgi.sampling import COLUMNS, FLOATS

from .columns import Ints, Rows, sampler_columns, table_columns, token_columns
from .kv_cache import KVCacheSpec
from .lanes import Lanes
from .sampler import Masks, SamplerInputs, needs_of


@attrs.define(eq=False)
class Inputs:
    """All that a step takes."""

    batch: Batch
    sampler: SamplerInputs
    answers: Ints
    """Which of the sampler's rows the server wants to know, in its order."""
    target_places: Ints
    """Where among the batch's T tokens the log-probabilities are that it wants to know."""


def make_inputs(
    step: Step,
    lanes: Lanes,
    device: Device,
    spec: KVCacheSpec,
    cache: KVCache,
    last_tokens: torch.Tensor,
) -> Inputs:
    """The inputs of a step; `lanes` has been updated with it. `last_tokens` [lanes] is on the device."""
    rows = Rows.of(step, lanes, device)
    columns, numbers = sampler_columns(step, rows, lanes, not device.compiles)
    needs = needs_of(columns)
    columns |= token_columns(step, rows, lanes, spec.block_size)
    columns |= table_columns(rows, lanes, step.bucket.blocks, spec.block_size, spec.window)
    given = _to_device(columns, device)
    tokens = given["tokens"] if step.bucket.prefill else last_tokens[given["lanes"]]
    batch = Batch(
        tokens=tokens,
        positions=given["positions"],
        contexts=given["contexts"],
        slots=given["slots"],
        tables=given["tables"].view(rows.count, -1),
        last=given["last"],
        cache=cache,
        bases=given.get("bases"),
        host=_host_rows(rows, lanes, spec.block_size),
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
        masks=_masks(step, numbers, device),
        params={name: given[name] for name in COLUMNS},
        top=step.top,
    )
    places = rows.places if step.targets else np.empty(0, np.int32)
    return Inputs(batch, sampler, np.flatnonzero(numbers >= 0).astype(np.int32), places)


def _masks(step: Step, numbers: Ints, device: Device) -> Masks | None:
    """Of the rows that have one."""
    if not step.masks:
        return None
    masked = np.flatnonzero(unpack_ints(step.samples))[unpack_ints(step.masked)]
    words = unpack_ints(step.masks).reshape(len(masked), -1)
    places = np.searchsorted(numbers, masked)
    return Masks(*(torch.from_numpy(array).to(device.torch_device) for array in (words.copy(), places)))


def _host_rows(rows: Rows, lanes: Lanes, block_size: int) -> list[HostRow]:
    each = zip(
        rows.offsets.tolist(),
        rows.lengths.tolist(),
        rows.starts.tolist(),
        rows.lanes.tolist(),
        strict=False,
    )
    return [
        HostRow(offset, length, start, lanes.tables[lane, : -(-(start + length) // block_size)])
        for offset, length, start, lane in each
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
