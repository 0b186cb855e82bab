"""Base class of devices whose steps are programs of static shape, and its attention in plain torch."""

from typing import Any, NamedTuple

import torch

from tgi.device.costs import GATHERED
from tgi.protocol import LoraSlots

from .attention import AttentionSpec, Kind, change_scores, distances, weigh
from .base import Device
from .batch import Batch, FlatBlocks, KVLayer
from .lora import LoraShape, LoraTable, MaskedTable

_LOWEST = -1e30
"""Greatest score of a block whose tokens are all hidden."""
_MIN_SUM = 1e-30
"""Least divisor of a row's values: rows of padding have a sum of 0."""


class PromptPlan(NamedTuple):
    """Masks and indices of a prefill step."""

    slots: torch.Tensor
    """[T] int64: slots that keys and values are written to."""
    lengths: torch.Tensor
    """[rows] int32: tokens of each row."""
    blocks: torch.Tensor | None
    """[rows * blocks]: blocks that each row reads from the cache; None if no row has a context."""
    biases: dict[Kind, torch.Tensor | None]
    """[rows, 1, tokens, context + tokens] for each kind of layer: 0 where a token sees another, else -inf.
    None: attention is causal within `lengths`, and needs no mask."""
    distance: torch.Tensor | None
    """[rows, 1, tokens, context + tokens] float32: the key's position minus the query's; None if no layer
    needs it."""


class DecodePlan(NamedTuple):
    """Masks and indices of a decode step with n blocks in all."""

    slots: torch.Tensor
    """[rows] int64: slots that keys and values are written to."""
    blocks: torch.Tensor | None
    """[n]: ids of the blocks; None: they follow one another in the cache from `first` on."""
    rows: torch.Tensor
    """[n] int64: row of each block; the number of rows for padding."""
    member: torch.Tensor
    """[n, rows] float32: 1 where a block belongs to a row; 0 for padding."""
    biases: dict[Kind, torch.Tensor]
    """[n, 1, 1, block_size] for each kind of layer: 0 for tokens that the row sees, else -inf."""
    distance: torch.Tensor | None
    """[n, 1, 1, block_size] float32: the key's position minus the query's; None if no layer needs it."""
    first: int = 0
    """Id of the first block, where they follow one another."""

    def part(self, part: slice) -> "DecodePlan":
        """Return the plan of a slice of the blocks."""
        distance = None if self.distance is None else self.distance[part]
        biases = {kind: bias[part] for kind, bias in self.biases.items()}
        blocks = None if self.blocks is None else self.blocks[part]
        return DecodePlan(
            self.slots,
            blocks,
            self.rows[part],
            self.member[part],
            biases,
            distance,
            self.first + part.start,
        )


class StaticDevice(Device):
    """A device whose attention reads whole blocks and hides what a row does not see by masks.

    Masks are made once per step and kind of layer. A subclass says by `fused` whether it has a kernel that
    needs none for causal attention, and overrides `attend_prompt` and `attend_decode` where it has kernels.
    """

    def __init__(self, threads: int = 0) -> None:
        super().__init__(threads)
        self.model_dtype = torch.float32
        """Dtype that the model computes in; set by `dtype`."""
        self._shifts = False
        """Whether a layer has slopes, so that plans need distances."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype, and keep it for masks and for what is read from the cache."""
        self.model_dtype = super().dtype(name)
        return self.model_dtype

    @property
    def fused(self) -> bool:
        """Whether `attend_prompt` needs no mask where no row has a context and no window hides a token."""
        return False

    def scores_dtype(self, spec: AttentionSpec) -> torch.dtype:  # noqa: ARG002
        """Return the dtype of scores and of their exponentials in decode steps."""
        return torch.float32

    def lora_table(self, shape: LoraShape) -> LoraTable:
        """Return tables of a fixed shape."""
        return MaskedTable.of(shape, self.torch_device)

    def lora_rows(self, slots: torch.Tensor, room: LoraSlots, dtype: torch.dtype) -> torch.Tensor:
        """Return their mask."""
        return MaskedTable.rows(slots, room, dtype)

    def border(self) -> None:
        """Separate two parts of a program that need not be optimised together."""

    def use(self, layer: int, spec: AttentionSpec) -> None:
        """Take note of a layer's attention."""
        super().use(layer, spec)
        self._shifts |= spec.slopes is not None

    def plan(self, batch: Batch, block_size: int) -> list[Any]:
        """Make the masks of each group of layers, for each kind in it."""
        return [
            self.plan_prompt(batch, number, block_size)
            if group.flat is None
            else self.plan_decode(batch, number, group.flat, block_size)
            for number, group in enumerate(batch.groups)
        ]

    def plan_prompt(self, batch: Batch, number: int, block_size: int) -> PromptPlan:
        """Make the plan of a group for a prefill step."""
        group, kinds = batch.groups[number], self.kinds(batch.cache, number)
        slots, (rows, blocks) = group.slots.long(), group.tables.shape
        tokens = batch.tokens.shape[0] // rows

        def masked(kind: Kind) -> bool:
            hides = kind.window is not None and kind.window < tokens
            return bool(blocks) or not self.fused or kind.changes_scores or hides

        if not any(map(masked, kinds)):
            return PromptPlan(slots, batch.lengths, None, dict.fromkeys(kinds), None)
        distance, hidden = distances(batch.starts[:, None], group.bases, blocks * block_size, tokens)
        queries = distance  # counts in chunks only
        if any(kind.chunked for kind in kinds):
            places = torch.arange(tokens, dtype=torch.int32, device=distance.device)
            queries = batch.starts[:, None, None] + places[:, None]

        def bias(kind: Kind) -> torch.Tensor | None:
            if not masked(kind):
                return None
            return _bias(kind, distance, hidden, queries)[:, None].to(self.model_dtype)

        biases = {kind: bias(kind) for kind in kinds}
        read = group.tables.reshape(-1) if blocks else None
        far = distance[:, None].float() if self._shifts else None
        return PromptPlan(slots, batch.lengths, read, biases, far)

    def plan_decode(self, batch: Batch, number: int, flat: FlatBlocks, block_size: int) -> object:
        """Make the plan of a group for a decode step over the blocks of all rows."""
        rows = torch.arange(batch.tokens.shape[0], dtype=torch.int32, device=flat.rows.device)
        within = torch.arange(block_size, dtype=torch.int32, device=flat.rows.device)
        member = (flat.rows[:, None] == rows).float()
        distance = within + 1 - flat.tokens[:, None]
        hidden = distance > 0
        kinds, queries = self.kinds(batch.cache, number), distance
        if any(kind.chunked for kind in kinds):
            queries = batch.positions.index_select(0, flat.rows.clamp_max(batch.tokens.shape[0] - 1))[:, None]
        biases = {kind: _bias(kind, distance, hidden, queries)[:, None, None] for kind in kinds}
        far = distance[:, None, None].float() if self._shifts else None
        slots = batch.groups[number].slots.long()
        return DecodePlan(slots, flat.ids, flat.rows.long(), member, biases, far)

    def store_kv(self, layer: KVLayer, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        """Write key and value to the slots of the layer's group."""
        slots, (keys, values) = batch.plan_of(layer).slots, layer.tensors
        keys.index_copy_(0, slots, key)
        if not layer.latent:
            values.index_copy_(0, slots, value)

    def read_blocks(
        self, layer: KVLayer, blocks: torch.Tensor, block_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of whole blocks as they are stored, [n, block_size, kv_heads, head_dim]
        each.
        """
        keys, values = (cache.view(-1, block_size, *cache.shape[1:]) for cache in layer.tensors)
        read = keys.index_select(0, blocks)
        return read, read if layer.latent else values.index_select(0, blocks)

    def read_plan(
        self, layer: KVLayer, plan: DecodePlan, block_size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `read_blocks` does for the blocks of a plan, in place if they follow one another."""
        if plan.blocks is not None:
            return self.read_blocks(layer, plan.blocks, block_size)
        keys, values = (
            cache.view(-1, block_size, *cache.shape[1:]).narrow(0, plan.first, plan.rows.shape[0])
            for cache in layer.tensors
        )
        return keys, values

    def widen(self, x: torch.Tensor, scale: Any) -> torch.Tensor:  # noqa: ARG002
        """Return stored keys or values in the dtype of the model; `scale` is theirs, as `KVLayer` has it."""
        return x

    def attention(
        self,
        layer: KVLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attend by the plan of the step: prompts over their context and themselves, else over blocks."""
        plan = batch.plan_of(layer)
        if not isinstance(plan, PromptPlan):
            return self.attend_decode(layer, query, plan, spec)
        bias, rows = plan.biases[spec.kind], plan.lengths.shape[0]
        q, k, v = (x.view(rows, -1, *x.shape[1:]) for x in (query, key, value))
        if plan.blocks is not None:
            assert bias is not None
            block_size = (bias.shape[3] - k.shape[1]) // (plan.blocks.shape[0] // rows)
            keys, values = self.read_blocks(layer, plan.blocks, block_size)
            context = self.widen(keys, layer.key_scale), self.widen(values, layer.value_scale)
            k, v = (
                torch.cat((old.reshape(rows, -1, *new.shape[2:]), new), 1)
                for old, new in zip(context, (k, v), strict=True)
            )
        out = self.attend_prompt(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias, plan, spec)
        return out.transpose(1, 2).reshape(query.shape)

    def attend_prompt(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        plan: PromptPlan,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attend [rows, heads, tokens, head_dim] over [rows, kv_heads, context + tokens, head_dim]."""
        assert bias is not None
        return attend_plainly(query, key, value, bias, plan.distance, spec)

    def attend_decode(
        self, layer: KVLayer, query: torch.Tensor, plan: Any, spec: AttentionSpec
    ) -> torch.Tensor:
        """Attend with a token per row, [rows, heads, head_dim], over the blocks of all rows.

        At most GATHERED blocks are read at a time. Each block attends for itself, relative to its own
        greatest score; then its share of its row's sum is found.
        """
        assert isinstance(plan, DecodePlan)
        block_size = plan.biases[spec.kind].shape[-1]
        if plan.rows.shape[0] > GATHERED:
            return self._attend_in_parts(layer, query, plan, spec)
        keys, values = self.read_plan(layer, plan, block_size)
        highest, sums, out = self.weigh_blocks(layer, query, keys, values, plan, spec)
        out = out * self.shares(highest, sums, plan, spec)[:, :, None].to(out.dtype)
        return (plan.member.to(out.dtype).t() @ out.view(out.shape[0], -1)).view(query.shape)

    def _attend_in_parts(
        self, layer: KVLayer, query: torch.Tensor, plan: DecodePlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """Attend over parts of the blocks in turn, keeping each row's sums relative to its greatest score so
        far.

        Borders between the parts let each use the memory of the one before.
        """
        (rows, heads, head_dim), blocks = query.shape, plan.rows.shape[0]
        size, block_size = -(-blocks // -(-blocks // GATHERED)), plan.biases[spec.kind].shape[-1]
        greatest = query.new_zeros(rows + 1, heads, dtype=torch.float32) + _LOWEST
        total, values = greatest[:rows] * 0, greatest.new_zeros(rows, heads, head_dim)
        for begin in range(0, blocks, size):
            self.border()
            part = plan.part(slice(begin, begin + size))
            read = self.read_plan(layer, part, block_size)
            highest, sums, out = self.weigh_blocks(layer, query, *read, part, spec)
            before, greatest = greatest, greatest.index_reduce(0, part.rows, highest, "amax")
            adjustment = (highest - greatest.index_select(0, part.rows)).exp()
            fading = (before - greatest)[:rows].exp()
            total = total * fading + part.member.t() @ (sums * adjustment)
            out = out * adjustment[:, :, None].to(out.dtype)
            new = part.member.to(out.dtype).t() @ out.view(out.shape[0], -1)
            values = values * fading[:, :, None] + new.view(values.shape).float()
        self.border()
        if spec.sinks is not None:
            total = total + (spec.sinks - greatest[:rows]).exp()
        return (values / total.clamp_min(_MIN_SUM)[:, :, None]).to(query.dtype)

    def weigh_blocks(
        self,
        layer: KVLayer,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        plan: DecodePlan,
        spec: AttentionSpec,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend within each block, with query [rows, heads, head_dim] and what `read_blocks` gave.

        Returns the greatest score and the sum of exp(score - greatest), [n, heads] float32 each, and the sum
        of the values weighted by exp(score - greatest), [n, heads, head_dim].
        """
        (_, heads, head_dim), (blocks, _, kv_heads, _) = query.shape, keys.shape
        groups = heads // kv_heads
        scores = self.score_blocks(layer, query, keys, plan, spec)
        bias = plan.biases[spec.kind].to(scores.dtype)
        scores = change_scores(scores, plan.distance, spec, (kv_heads, groups, 1)) + bias
        highest = scores.amax(-1, keepdim=True)
        if spec.window is not None:
            highest = highest.clamp_min(_LOWEST)
        weights = (scores - highest).exp()
        sums = weights.sum(-1, dtype=torch.float32)
        out = self.sum_values(layer, weights, values)
        return (
            highest.view(blocks, heads).float(),
            sums.view(blocks, heads),
            out.view(blocks, heads, head_dim),
        )

    def score_blocks(
        self, layer: KVLayer, query: torch.Tensor, keys: torch.Tensor, plan: DecodePlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """Return query · key * scale of each block's row, [n, kv_heads, groups, block_size].

        The dtype is that of `scores_dtype`.
        """
        del layer
        spread = spread_rows(query, plan, keys.shape[2])
        return (spread @ keys.permute(0, 2, 3, 1)).to(self.scores_dtype(spec)) * spec.scale

    def sum_values(self, layer: KVLayer, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the sums [n, kv_heads, groups, head_dim] of each block's values by weights [n, kv_heads,
        groups, block_size] between 0 and 1.
        """
        del layer
        return weights.to(values.dtype) @ values.transpose(1, 2)

    def shares(
        self, highest: torch.Tensor, sums: torch.Tensor, plan: DecodePlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """Return the factors [n, heads] by which the blocks' sums of values add up to each row's.

        `highest` and `sums` are those of `weigh_blocks`.
        """
        table = highest.new_zeros(plan.member.shape[1] + 1, highest.shape[1]) - torch.inf
        of_row = table.index_reduce(0, plan.rows, highest, "amax").index_select(0, plan.rows)
        adjustment = (highest - of_row).exp()
        sums = sums * adjustment
        total = plan.member @ (plan.member.t() @ sums)
        if spec.sinks is not None:
            total = total + (spec.sinks - of_row).exp()
        return adjustment / torch.maximum(total, sums)  # the total of padding is 0


def spread_rows(query: torch.Tensor, plan: DecodePlan, kv_heads: int) -> torch.Tensor:
    """Return the query [rows, heads, head_dim] of each block's row, [n, kv_heads, groups, head_dim]; 0 for
    padding.
    """
    rows, heads, head_dim = query.shape
    spread = plan.member.to(query.dtype) @ query.reshape(rows, -1)
    return spread.view(-1, kv_heads, heads // kv_heads, head_dim)


def attend_plainly(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    distance: torch.Tensor | None,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Attend [rows, heads, tokens, head_dim] over [rows, kv_heads, context + tokens, head_dim]."""
    key, value = per_head(key, value, query.shape[1])
    scores = change_scores((query @ key.transpose(2, 3)).float() * spec.scale, distance, spec) + bias
    return weigh(scores, spec).to(value.dtype) @ value


def per_head(key: torch.Tensor, value: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Repeat keys and values [rows, kv_heads, ...] for each query head."""
    groups = heads // key.shape[1]
    return key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)


def shifted(bias: torch.Tensor, distance: torch.Tensor | None, spec: AttentionSpec) -> torch.Tensor:
    """Add slope * distance to a mask [rows, 1, tokens, keys], which gives one for each head."""
    assert spec.slopes is not None
    assert distance is not None
    return (bias + spec.slopes[:, None, None] * distance).to(bias.dtype)


def _bias(kind: Kind, distance: torch.Tensor, hidden: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return float32 -inf for what is hidden or lies before the window, else 0."""
    if kind.window is not None:
        hidden = hidden | kind.hides(distance, queries)
    return hidden.new_zeros(hidden.shape, dtype=torch.float32).masked_fill(hidden, -torch.inf)
