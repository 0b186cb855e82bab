"""Attention of the rows of a step on the CPU, by torch's fused kernel, which reads the KV cache in place."""

import itertools
from collections.abc import Iterable

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.device.attention import AttentionSpec, Kind
from tgi.device.batch import Batch, KVCache, KVLayer, pair

_PIECE = 128
"""Query tokens of a chunk that share a mask, which is as large as their scores."""
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default


@attrs.frozen(eq=False)
class _Row:
    """Places of a row's tokens in the batch and in the cache."""

    offset: int
    """Index of its first query token among all tokens of the batch."""
    length: int
    """Number of its query tokens."""
    start: int
    """Position of its first query token."""
    first: int
    """Position of the first token that is read from the cache."""
    masked: bool
    """Whether its own tokens are read from the cache too, and a mask hides what each does not see."""
    views: list[torch.Tensor] | None
    """Keys and values of its cached tokens, layer by layer, [1, kv_heads, n, head_dim]; None if their slots
    do not follow one another, or it has none."""
    slots: torch.Tensor | None
    """Slots of its cached tokens if they do not follow one another. They are copied together, not read piece
    by piece, so that the result does not depend on the places of the blocks."""


@attrs.frozen(eq=False)
class _KindPlan:
    """Rows as layers of one kind read them."""

    rows: list[_Row]
    leading: int
    """Number of rows at the beginning that are single, unmasked tokens: their queries need no copies."""
    tokens: int
    """Number of tokens of all rows, without padding."""

    @classmethod
    def of(cls, rows: list[_Row]) -> "_KindPlan":
        leading = 0
        while leading < len(rows) and rows[leading].length == 1 and not rows[leading].masked:
            leading += 1
        return cls(rows, leading, sum(row.length for row in rows))


@attrs.frozen(eq=False)
class GroupPlan:
    """Rows as the layers of a group read them."""

    slots: torch.Tensor
    """[T] int64: slots that keys and values are written to."""
    kinds: dict[Kind, _KindPlan]

    @classmethod
    def of(cls, number: int, batch: Batch, block_size: int, kinds: Iterable[Kind]) -> "GroupPlan":
        """Find the pieces of the cache of group `number` that each row reads, in layers of these kinds."""
        lengths, starts = batch.lengths.tolist(), batch.starts.tolist()
        offsets = [0, *itertools.accumulate(lengths)][:-1]
        group, whole = batch.groups[number], batch.cache.wholes[number]
        assert whole is not None
        flat = whole.view(-1, 1, *whole.shape[2:])
        bases = [0] * len(starts) if group.bases is None else group.bases.tolist()
        rows = list(zip(offsets, lengths, starts, bases, group.tables.numpy(), strict=True))

        def plan_kind(kind: Kind) -> _KindPlan:
            return _KindPlan.of([_plan_row(*row, block_size, flat, kind) for row in rows])

        return cls(group.slots.long(), {kind: plan_kind(kind) for kind in kinds})


def attend_rows(
    plan: _KindPlan,
    layer: KVLayer,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cache: KVCache,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Attend row by row with query [T, heads, head_dim]; the result has the same shape."""
    (total, heads, head_dim), kv_heads = query.shape, key.shape[1]
    folded = query.view(total, 1, kv_heads, heads // kv_heads, head_dim)
    outs = []
    for single, row in zip(folded[: plan.leading].unbind(0), plan.rows, strict=False):
        cached = _cached(row, layer, cache)
        assert cached is not None
        outs.append(_flash(single, *cached, scale=spec.scale)[0])
    for row in plan.rows[plan.leading :]:
        mine = slice(row.offset, row.offset + row.length)
        out = _attend_row(query[mine], key[mine], value[mine], row, layer, cache, spec)
        outs.append(out.reshape(row.length, *folded.shape[2:]))
    if missing := total - plan.tokens:
        outs.append(query.new_zeros(missing, *folded.shape[2:]))
    return torch.cat(outs).view(query.shape)


def _attend_row(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: _Row,
    layer: KVLayer,
    cache: KVCache,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Attend with the query tokens of a row, [length, heads, head_dim]."""
    cached = _cached(row, layer, cache)
    if row.masked:
        assert cached is not None
        return _attend_masked(query, *cached, row, spec)
    parts = [_attend_causal(query, key, value, spec.scale)] if row.length > 1 else []
    if cached is not None:
        parts.append(_attend(query, *cached, spec.scale))
    return parts[0][0] if len(parts) == 1 else _merge(*parts)


def _plan_row(
    offset: int,
    length: int,
    start: int,
    base: int,
    table: npt.NDArray[np.int32],
    block_size: int,
    flat: torch.Tensor,
    kind: Kind,
) -> _Row:
    """Find the tokens that a row reads from the cache; its `table` has block ids from position `base` on.

    A single query token, or one of a masked row, is read from the cache too; other chunks read their own
    tokens from the arguments.
    """
    end = start + length
    masked = kind.changes_scores or (length > 1 and kind.first(end - 1) > 0)
    last = end if masked or length == 1 else start
    first = max(base, kind.first(start))
    known = (offset, length, start, first, masked)
    if not last:
        return _Row(*known, None, None)
    skipped, count = first % block_size, last - first
    used = slice((first - base) // block_size, -(-(last - base) // block_size))
    blocks = table[used].astype(np.int64)
    if blocks[-1] - blocks[0] == len(blocks) - 1 and (np.diff(blocks) == 1).all():
        begin = int(blocks[0]) * block_size + skipped
        return _Row(*known, list(flat[:, :, :, begin : begin + count].unbind(0)), None)
    slots = (blocks[:, None] * block_size + np.arange(block_size)).reshape(-1)[skipped : skipped + count]
    return _Row(*known, None, torch.from_numpy(slots))


def _cached(row: _Row, layer: KVLayer, cache: KVCache) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return a layer's keys and values, [1, kv_heads, n, head_dim] each; None without cached tokens."""
    place, parts = layer.place, 1 if layer.latent else 2
    if row.views is not None:
        return pair(row.views[parts * place : parts * (place + 1)])
    if row.slots is None:
        return None
    whole = cache.wholes[layer.group]
    assert whole is not None
    return pair(whole[place].index_select(2, row.slots).unsqueeze(1).unbind(0))


def _attend_masked(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, row: _Row, spec: AttentionSpec
) -> torch.Tensor:
    """Attend with a row's tokens over the cache, which has them too, in pieces."""
    parts = []
    for begin in range(0, row.length, _PIECE):
        piece = query[begin : begin + _PIECE]
        start = row.start + begin
        end = start + len(piece)
        first, queries = max(row.first, spec.kind.first(start)), torch.arange(start, end)[:, None]
        distance = torch.arange(first, end) - queries
        hidden = distance > 0
        if spec.window is not None:
            hidden |= spec.kind.hides(distance, queries)
        seen = slice(first - row.first, end - row.first)
        parts.append(_attend_piece(piece, keys[:, :, seen], values[:, :, seen], distance, hidden, spec))
    return torch.cat(parts)


def _attend_piece(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    distance: torch.Tensor,
    hidden: torch.Tensor,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Attend with query [q, heads, head_dim]; `distance` and `hidden` [q, n] tell what tokens see."""
    folded = _fold(query, keys.shape[1])
    groups = query.shape[1] // keys.shape[1]
    bias = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[None, :, None]
    if spec.slopes is not None:
        bias = bias + spec.slopes.view(-1, 1, groups, 1) * distance[:, None]
    bias = bias.expand(-1, -1, groups, -1).flatten(1, 2)[None]  # [1, 1 or kv_heads, q * groups, n]
    if spec.softcap is None:
        out, total = _flash(folded, keys, values, attn_mask=bias, scale=spec.scale)
    else:
        scores = (folded @ keys.transpose(2, 3)).float().mul_(spec.scale / spec.softcap)
        scores = scores.tanh_().mul_(spec.softcap).add_(bias)
        out, total = scores.softmax(-1).to(values.dtype) @ values, scores.logsumexp(-1)
    if spec.sinks is not None:
        sinks = spec.sinks.view(-1, 1, groups).expand(-1, len(query), -1).flatten(1)
        out = out * torch.sigmoid(total - sinks)[..., None].to(out.dtype)
    return _unfold(out, query)


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend without a mask with query [q, heads, head_dim] over keys and values [1, kv_heads, n, head_dim].

    Returns [q, heads, head_dim] and the log-sum-exp of the scores, [q, heads].
    """
    out, total = _flash(_fold(query, keys.shape[1]), keys, values, scale=scale)
    return _unfold(out, query), _unfold(total[..., None], query[..., :1])[..., 0]


def _fold(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Reshape [q, heads, head_dim] to [1, kv_heads, q * groups, head_dim].

    The query heads of a key/value head become rows of one matrix, so that keys and values are read once.
    """
    count, heads, head_dim = query.shape
    folded = query.view(count, kv_heads, heads // kv_heads, head_dim).transpose(0, 1)
    return folded.reshape(1, kv_heads, -1, head_dim)


def _unfold(folded: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Undo `_fold`, to the shape of `like`."""
    count, heads, head_dim = like.shape
    kv_heads = folded.shape[1]
    return folded.view(kv_heads, count, heads // kv_heads, head_dim).transpose(0, 1).reshape(like.shape)


def _attend_causal(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with a chunk's tokens over themselves and those before them; returns what `_attend` does.

    Keys and values [q, kv_heads, head_dim] are copied for every query head that reads them: the kernel's own
    grouping is ten times as slow.
    """
    groups = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, 1).transpose(0, 1)[None] for x in (keys, values))
    out, total = _flash(query.transpose(0, 1)[None], keys, values, 0.0, True, scale=scale)
    return out[0].transpose(0, 1), total[0].transpose(0, 1)


def _merge(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Return the attention over the union of two disjoint sets of keys from the results over each."""
    weight = torch.sigmoid(second[1] - first[1])[..., None]
    return torch.lerp(first[0], second[0], weight.to(first[0].dtype))
