"""What a model is made of on an NVIDIA GPU: kernels in Triton where plain torch would take many.

Prompts without a context are attended to by torch's flash attention, which needs no mask: padding is at the
right, where no token looks. Whatever needs a mask has one of each kind for all layers, made once per step.
Decode steps read the cache where it is.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import Batch
from tgi.device.static import Kind, PromptPlan, attend_plainly, per_head, plan_prompt

from . import SPEC

_QUERIES = 256
"""Of a row, whose scores exist at once where no kernel hides them."""


class BlocksPlan(NamedTuple):
    """Of a decode step with n blocks in all."""

    slots: torch.Tensor
    blocks: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """[n] each, int32: ids, rows and tokens, as `FlatBlocks` has them."""
    starts: torch.Tensor
    """[rows + 1] int32: where each row's begin, and where the last one's end."""
    size: int
    """Tokens in a block."""


class CudaLayers(Device):
    """The operations. They run wherever Triton does, its interpreter included."""

    spec = SPEC

    def __init__(self, threads: int = 0) -> None:
        super().__init__(threads)
        self._dtype = torch.float32
        self._kinds: list[Kind] = []
        self._shifts = False
        """Whether a layer has slopes."""

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """By torch's fused kernel, which rounds once."""
        return F.rms_norm(x, weight.shape, weight, epsilon)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """As defined, but rounded once."""
        from . import triton_kernels as kernels

        return kernels.silu_mul(gate_up)

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """As defined, but rounded once."""
        from . import triton_kernels as kernels

        return kernels.rotate(x, cos, sin)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """As defined; in which order torch adds depends on how many rows there are."""
        from . import triton_kernels as kernels

        return kernels.total(x)

    def use(self, spec: AttentionSpec) -> None:
        """As defined."""
        if (kind := _kind(spec)) not in self._kinds:
            self._kinds.append(kind)
        self._shifts |= spec.slopes is not None

    def plan(self, batch: Batch, block_size: int) -> PromptPlan | BlocksPlan:
        """Masks, or where each row's blocks are."""
        if batch.flat is None:
            return plan_prompt(batch, block_size, self._kinds, self._shifts, self._dtype, fused=True)
        flat = batch.flat
        rows = torch.arange(batch.tokens.shape[0] + 1, dtype=torch.int32, device=flat.rows.device)
        starts = torch.searchsorted(flat.rows, rows, out_int32=True)
        return BlocksPlan(batch.slots.long(), (flat.ids, flat.rows, flat.tokens), starts, block_size)

    def store_kv(self, layer: int, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        """As defined."""
        assert isinstance(batch.plan, PromptPlan | BlocksPlan)
        for cache, new in zip(batch.cache.layers[layer], (key, value), strict=True):
            cache.index_copy_(0, batch.plan.slots, new)

    def attention(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """As defined."""
        plan, (keys, values) = batch.plan, batch.cache.layers[layer]
        if isinstance(plan, BlocksPlan):
            from . import triton_kernels as kernels

            return kernels.attend_blocks(query, keys, values, plan.blocks, plan.starts, plan.size, spec)
        assert isinstance(plan, PromptPlan)
        bias = plan.biases[self._kinds.index(_kind(spec))]
        rows = plan.lengths.shape[0]
        q, k, v = (x.view(rows, -1, *x.shape[1:]) for x in (query, key, value))
        if plan.blocks is not None:
            k, v = (_with_context(cache, new, plan) for cache, new in ((keys, k), (values, v)))
        out = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias, plan, spec)
        return out.transpose(1, 2).reshape(query.shape)


def _with_context(cache: torch.Tensor, new: torch.Tensor, plan: PromptPlan) -> torch.Tensor:
    """[rows, context + tokens, kv_heads, head_dim]"""
    assert plan.blocks is not None
    mask = next(bias for bias in plan.biases if bias is not None)
    rows, tokens = new.shape[:2]
    size = (mask.shape[3] - tokens) * rows // plan.blocks.shape[0]
    found = cache.view(-1, size, *cache.shape[1:]).index_select(0, plan.blocks)
    return torch.cat((found.reshape(rows, -1, *new.shape[2:]), new), 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    plan: PromptPlan,
    spec: AttentionSpec,
) -> torch.Tensor:
    """[rows, heads, tokens, head_dim] over [rows, kv_heads, context + tokens, head_dim]."""
    if bias is None:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=spec.scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    if spec.changes_scores:  # numbers for each head: of some queries at a time
        parts = [
            _attend_changed(query[:, :, some], key, value, bias[:, :, some], plan.distance, some, spec)
            for some in (slice(begin, begin + _QUERIES) for begin in range(0, query.shape[2], _QUERIES))
        ]
        return torch.cat(parts, 2)
    key, value = per_head(key, value, query.shape[1])  # no kernel takes both a mask and shared heads
    return F.scaled_dot_product_attention(query, key, value, bias, scale=spec.scale)


def _attend_changed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    distance: torch.Tensor | None,
    some: slice,
    spec: AttentionSpec,
) -> torch.Tensor:
    """As `_attend`, where queries and bias are `some` of all."""
    distance = None if distance is None else distance[:, :, some]
    if spec.softcap is not None:
        return attend_plainly(query, key, value, bias, distance, spec)
    assert spec.slopes is not None
    assert distance is not None
    bias = (bias + spec.slopes[:, None, None] * distance).to(bias.dtype)
    key, value = per_head(key, value, query.shape[1])
    return F.scaled_dot_product_attention(query, key, value, bias, scale=spec.scale)


def _kind(spec: AttentionSpec) -> Kind:
    return spec.window, spec.changes_scores
