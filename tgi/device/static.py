"""Attention in static shapes: what is worked out once per step, and the maths where no kernel does it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from tgi.footprint import GATHERED

from .attention import AttentionSpec, change_scores, distances
from .batch import Batch, FlatBlocks

Kind = tuple[int | None, bool]
"""Of a layer: its window, and whether it changes scores."""
_LOWEST = -1e30
"""Stands for the greatest score of a block that is wholly hidden."""
_LEAST = 1e-30
"""What is divided by at least: rows of padding have no sum."""


class PromptPlan(NamedTuple):
    """Of a prefill step."""

    slots: torch.Tensor
    lengths: torch.Tensor
    """[rows]"""
    blocks: torch.Tensor | None
    """[rows * blocks]: what each row reads of the cache; None: no row has a context."""
    biases: tuple[torch.Tensor | None, ...]
    """For each kind of layer [rows, 1, tokens, context + tokens]: 0 for what a token sees, else -inf; None:
    causal, by lengths."""
    distance: torch.Tensor | None
    """[rows, 1, tokens, context + tokens] float32: the key's position less the query's, if a layer asks."""


class DecodePlan(NamedTuple):
    """Of a decode step with n blocks in all."""

    slots: torch.Tensor
    blocks: torch.Tensor
    rows: torch.Tensor
    """[n] int64: whose block it is; the number of rows for padding."""
    member: torch.Tensor
    """[n, rows] float32: 1 where a block is a row's. Zero for padding."""
    biases: tuple[torch.Tensor, ...]
    """For each kind of layer [n, 1, 1, block_size]: 0 for the tokens that the row sees, else -inf."""
    distance: torch.Tensor | None
    """[n, 1, 1, block_size] float32: the key's position less the query's, if a layer asks."""

    def part(self, some: slice) -> "DecodePlan":
        """Of some of the blocks."""
        far = None if self.distance is None else self.distance[some]
        biases = tuple(bias[some] for bias in self.biases)
        return DecodePlan(self.slots, self.blocks[some], self.rows[some], self.member[some], biases, far)


Read = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""From ids [n] to keys and values of these blocks, [n, block_size, kv_heads, head_dim]."""


def plan_prompt(
    batch: Batch, block_size: int, kinds: Sequence[Kind], shifts: bool, dtype: torch.dtype, fused: bool
) -> PromptPlan:
    """`shifts`: a layer asks for distances; `fused`: there is a kernel that needs no mask."""
    assert batch.lengths is not None
    slots, (rows, blocks) = batch.slots.long(), batch.tables.shape
    tokens = batch.tokens.shape[0] // rows

    def masked(window: int | None, changed: bool) -> bool:
        return bool(blocks) or not fused or changed or (window is not None and window < tokens)

    if not any(masked(*kind) for kind in kinds):
        return PromptPlan(slots, batch.lengths, None, (None,) * len(kinds), None)
    starts = batch.positions.view(rows, tokens)[:, :1]
    distance, hidden = distances(starts, batch.bases, blocks * block_size, tokens)
    biases = tuple(
        _hide(_beyond(window, distance, hidden))[:, None].to(dtype) if masked(window, changed) else None
        for window, changed in kinds
    )
    read = batch.tables.reshape(-1) if blocks else None
    return PromptPlan(slots, batch.lengths, read, biases, distance[:, None].float() if shifts else None)


def plan_decode(
    batch: Batch, flat: FlatBlocks, block_size: int, kinds: Sequence[Kind], shifts: bool
) -> DecodePlan:
    """`shifts`: a layer asks for distances."""
    device = batch.slots.device
    every = torch.arange(batch.tokens.shape[0], dtype=torch.int32, device=device)
    within = torch.arange(block_size, dtype=torch.int32, device=device)
    member = (flat.rows[:, None] == every).float()
    distance = within + 1 - flat.tokens[:, None]
    hidden = distance > 0
    biases = tuple(_hide(_beyond(window, distance, hidden))[:, None, None] for window, _ in kinds)
    far = distance[:, None, None].float() if shifts else None
    return DecodePlan(batch.slots.long(), flat.ids, flat.rows.long(), member, biases, far)


def attend_flat(
    query: torch.Tensor,
    read: Read,
    plan: DecodePlan,
    kind: int,
    spec: AttentionSpec,
    border: Callable[[], None],
    most: int = GATHERED,
) -> torch.Tensor:
    """Attention of a token per row over the blocks of all rows, of which `most` are read at a time.

    Each block attends for itself, with its own greatest score; then its share of its row's whole is found.
    `border`: see `Graphs`; between parts, so that each finds room where the one before was.
    """
    (rows, heads, _), blocks = query.shape, plan.blocks.shape[0]
    if blocks > most:
        return _attend_in_parts(query, read, plan, kind, spec, border, most)
    highest, sums, out = _weigh(query, *read(plan.blocks), plan, kind, spec)
    table = highest.new_full((rows + 1, heads), -torch.inf)
    of_row = table.index_reduce(0, plan.rows, highest, "amax").index_select(0, plan.rows)
    adjustment = (highest - of_row).exp()
    sums = sums * adjustment
    whole = plan.member @ (plan.member.t() @ sums)
    share = adjustment / torch.maximum(whole, sums)  # for padding the whole is 0
    out = out * share[:, :, None].to(out.dtype)
    return (plan.member.to(out.dtype).t() @ out.view(blocks, -1)).view(query.shape)


def _attend_in_parts(
    query: torch.Tensor,
    read: Read,
    plan: DecodePlan,
    kind: int,
    spec: AttentionSpec,
    border: Callable[[], None],
    most: int,
) -> torch.Tensor:
    """The rows' sums so far are kept, relative to the greatest score so far, from one part to the next."""
    (rows, heads, head_dim), blocks = query.shape, plan.blocks.shape[0]
    size = -(-blocks // -(-blocks // most))
    greatest = torch.full((rows + 1, heads), _LOWEST, device=query.device)
    whole, values = greatest[:rows] * 0, greatest.new_zeros(rows, heads, head_dim)
    for begin in range(0, blocks, size):
        border()
        some = plan.part(slice(begin, begin + size))
        highest, sums, out = _weigh(query, *read(some.blocks), some, kind, spec)
        before, greatest = greatest, greatest.index_reduce(0, some.rows, highest, "amax")
        adjustment = (highest - greatest.index_select(0, some.rows)).exp()
        fading = (before - greatest)[:rows].exp()
        whole = whole * fading + some.member.t() @ (sums * adjustment)
        out = out * adjustment[:, :, None].to(out.dtype)
        new = some.member.to(out.dtype).t() @ out.view(out.shape[0], -1)
        values = values * fading[:, :, None] + new.view(values.shape).float()
    border()
    return (values / whole.clamp_min(_LEAST)[:, :, None]).to(query.dtype)


def _weigh(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    plan: DecodePlan,
    kind: int,
    spec: AttentionSpec,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each block and head: the greatest score, the sum of all exp(score - that), and of the values so
    weighted, [n, heads] float32 twice and [n, heads, head_dim]."""
    (rows, heads, head_dim), (blocks, _, kv_heads, _) = query.shape, keys.shape
    bias = plan.biases[kind]
    member, groups = plan.member.to(query.dtype), heads // kv_heads
    spread = (member @ query.reshape(rows, -1)).view(blocks, kv_heads, groups, head_dim)
    scores = (spread @ keys.permute(0, 2, 3, 1)).float() * spec.scale
    scores = change_scores(scores, plan.distance, spec, (kv_heads, groups, 1)) + bias
    highest = scores.amax(-1, keepdim=True)
    if spec.window is not None:
        highest = highest.clamp_min(_LOWEST)
    weights = (scores - highest).exp()
    out = (weights.to(values.dtype) @ values.transpose(1, 2)).view(blocks, heads, head_dim)
    return highest.view(blocks, heads), weights.sum(-1).view(blocks, heads), out


def attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    distance: torch.Tensor | None,
    spec: AttentionSpec,
) -> torch.Tensor:
    """[rows, heads, tokens, head_dim] over [rows, kv_heads, context + tokens, head_dim]."""
    key, value = per_head(key, value, query.shape[1])
    scores = change_scores((query @ key.transpose(2, 3)).float() * spec.scale, distance, spec) + bias
    return scores.softmax(-1).to(value.dtype) @ value


def per_head(key: torch.Tensor, value: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [rows, kv_heads, ...] for every query head of its own."""
    groups = heads // key.shape[1]
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def _beyond(window: int | None, distance: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What is hidden, and what lies before the window."""
    return hidden if window is None else hidden | (distance <= -window)


def _hide(hidden: torch.Tensor) -> torch.Tensor:
    """float32: -inf where it is true, else 0."""
    return torch.zeros_like(hidden, dtype=torch.float32).masked_fill(hidden, -torch.inf)
