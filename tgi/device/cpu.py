"""The CPU: what oneDNN and the fused attention kernel do faster than plain torch.

Linear weights are kept in oneDNN's blocked layout only, in which few rows read memory at its full speed
(1.7 times as fast as a plain weight in bfloat16, two to three times in float32). Attention reads the KV
cache in place.
"""

import os
from pathlib import Path

import attrs
import numpy as np
import torch
import torch.nn.functional as F

from . import memory
from .base import Device
from .batch import Batch, HostRow

_PACKED_FOR_ROWS = 32
"""The layout hardly depends on this; 32 is good from 1 to 1024 rows."""
_MOST_RUNS = 4
"""A row whose blocks lie in more pieces than this is copied together before it is read."""

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_linear = torch.ops.mkldnn._linear_pointwise.default
_linear_add = torch.ops.mkldnn._linear_pointwise.binary

Cache = tuple[torch.Tensor, torch.Tensor]


@attrs.frozen
class _Row:
    """Where a row's tokens are, in the batch and in the cache."""

    offset: int
    length: int
    runs: list[tuple[int, int]]
    """Slots [begin, end) of the cached tokens, in order; empty where there are none or `slots` is given."""
    slots: torch.Tensor | None
    """The same slots one by one, where they lie in too many pieces."""
    own: bool
    """Whether the row's own tokens are to be attended to from the batch and not from the cache."""


class CpuDevice(Device):
    """Any x86 or ARM processor that oneDNN supports."""

    packs = True

    def __init__(self, threads: int = 0) -> None:
        super().__init__(threads or usable_cores())
        torch.set_num_threads(self.threads)

    def dtype(self, name: str) -> torch.dtype:
        """For "auto" bfloat16 where the processor multiplies it natively, else float32."""
        if name == "auto":
            return torch.bfloat16 if _multiplies_bfloat16() else torch.float32
        return super().dtype(name)

    def prepare_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """A copy in oneDNN's blocked layout; only `linear` can read it."""
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)  # type: ignore[no-any-return]

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """With the residual added before the result is rounded."""
        if residual is None:
            return _linear(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
        return _linear_add(x, residual, weight, bias, "add")  # type: ignore[no-any-return]

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """As defined, but rounded once."""
        return F.rms_norm(x, weight.shape, weight, epsilon)

    def plan(self, batch: Batch, block_size: int) -> list[_Row]:
        """The pieces of the cache that each row reads."""
        return [_plan_row(row, block_size) for row in batch.host]

    def attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: Cache,
        batch: Batch,
        scale: float,
    ) -> torch.Tensor:
        """Row by row over the pieces of the cache, each by the fused kernel, merged by their log-sum-exp."""
        out = torch.zeros(query.shape, dtype=query.dtype)
        assert isinstance(batch.plan, list)
        for row in batch.plan:
            mine = slice(row.offset, row.offset + row.length)
            parts = [_attend(query[mine], *piece, scale) for piece in _pieces(row, cache)]
            if row.own:
                parts.append(_attend_causal(query[mine], key[mine], value[mine], scale))
            out[mine] = _merge(parts)
        return out


def _plan_row(row: HostRow, block_size: int) -> _Row:
    """A single query token reads itself from the cache too; a longer chunk masks its own tokens."""
    own = row.length > 1
    cached = row.start if own else row.start + 1
    blocks = np.asarray(row.blocks)[: -(-cached // block_size)]
    breaks = np.flatnonzero(np.diff(blocks) != 1) + 1
    if len(breaks) >= _MOST_RUNS:
        slots = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)[:cached]
        return _Row(row.offset, row.length, [], torch.from_numpy(slots.astype(np.int64)), own)
    runs = []
    for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(blocks)], strict=True):
        if begin < end:
            first = int(blocks[begin]) * block_size
            runs.append((first, first + min(end * block_size, cached) - begin * block_size))
    return _Row(row.offset, row.length, runs, None, own)


def _pieces(row: _Row, cache: Cache) -> list[Cache]:
    """Keys and values [n, kv_heads, head_dim] of the cached tokens."""
    if row.slots is not None:
        return [(cache[0].index_select(0, row.slots), cache[1].index_select(0, row.slots))]
    return [(cache[0][begin:end], cache[1][begin:end]) for begin, end in row.runs]


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unmasked attention of query [q, heads, head_dim] over keys and values [n, kv_heads, head_dim].

    The query heads of a key/value head become rows of one matrix, so that keys and values are read once.
    Returns [q, heads, head_dim] and the log-sum-exp of the scores, [q, heads].
    """
    (count, heads, head_dim), kv_heads = query.shape, keys.shape[1]
    groups = heads // kv_heads
    folded = query.view(count, kv_heads, groups, head_dim).transpose(0, 1)
    folded = folded.reshape(1, kv_heads, count * groups, head_dim)
    out, total = _flash(folded, keys.transpose(0, 1)[None], values.transpose(0, 1)[None], scale=scale)
    out = out.view(kv_heads, count, groups, head_dim).transpose(0, 1).reshape(count, heads, head_dim)
    return out, total.view(kv_heads, count, groups).transpose(0, 1).reshape(count, heads)


def _attend_causal(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a chunk's tokens over themselves and those before them; results as of `_attend`."""
    groups = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1)[None] for x in (keys, values))
    out, total = _flash(query.transpose(0, 1)[None], keys, values, 0.0, True, scale=scale)
    return out[0].transpose(0, 1), total[0].transpose(0, 1)


def _merge(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Attention over the union of disjoint sets of keys, from the results over each."""
    if len(parts) == 1:
        return parts[0][0]
    outs, totals = torch.stack([out for out, _ in parts]), torch.stack([total for _, total in parts])
    weights = totals.softmax(0)[..., None]
    return (outs.float() * weights).sum(0).to(outs.dtype)


def usable_cores() -> int:
    """Physical cores that this process may run on, within the CPU quota of its container."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    quota = memory.cpu_quota()
    return max(1, min(len(cores), int(quota) if quota else len(cores)))


def _multiplies_bfloat16() -> bool:
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})
