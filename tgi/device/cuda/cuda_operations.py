"""What a model is made of on an NVIDIA GPU: kernels in Triton where plain torch would take many.

Prompts without a context are attended to by torch's flash attention, which needs no mask: padding is at the
right, where no token looks. Whatever needs a mask has one of each kind for all layers, made once per step.
Decode steps read the cache where it is.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from tgi.device.attention import AttentionSpec
from tgi.device.batch import Batch, FlatBlocks
from tgi.device.static import PromptPlan, StaticDevice, attend_plainly, per_head, shifted

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


class CudaOperations(StaticDevice):
    """The operations. They run wherever Triton does, its interpreter included."""

    spec = SPEC

    @property
    def fused(self) -> bool:
        """True: torch's flash attention is causal by itself."""
        return True

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

    def plan_decode(self, batch: Batch, number: int, flat: FlatBlocks, block_size: int) -> BlocksPlan:
        """Find where each row's blocks begin."""
        rows = torch.arange(batch.tokens.shape[0] + 1, dtype=torch.int32, device=flat.rows.device)
        starts = torch.searchsorted(flat.rows, rows, out_int32=True)
        slots = batch.groups[number].slots.long()
        return BlocksPlan(slots, (flat.ids, flat.rows, flat.tokens), starts, block_size)

    def attend_decode(
        self, layer: int, query: torch.Tensor, batch: Batch, plan: Any, spec: AttentionSpec
    ) -> torch.Tensor:
        """Attend by a kernel that reads blocks where they are."""
        from . import triton_kernels as kernels

        assert isinstance(plan, BlocksPlan)
        keys, values = batch.cache.layers[layer]
        return kernels.attend_blocks(query, keys, values, plan.blocks, plan.starts, plan.size, spec)

    def attend_prompt(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        plan: PromptPlan,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attend by torch's kernels; where scores differ between heads, in slices of queries."""
        if bias is None:
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=spec.scale, enable_gqa=query.shape[1] != key.shape[1]
            )
        if not spec.changes_scores:
            key, value = per_head(key, value, query.shape[1])  # no kernel takes a mask and shared heads
            return F.scaled_dot_product_attention(query, key, value, bias, scale=spec.scale)
        slices = [slice(begin, begin + _QUERIES) for begin in range(0, query.shape[2], _QUERIES)]
        parts = [_attend_slice(query, key, value, bias, plan.distance, part, spec) for part in slices]
        return torch.cat(parts, 2)


def _attend_slice(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    distance: torch.Tensor | None,
    part: slice,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Attend with a slice of the queries."""
    query, bias = query[:, :, part], bias[:, :, part]
    distance = None if distance is None else distance[:, :, part]
    if spec.softcap is not None:
        return attend_plainly(query, key, value, bias, distance, spec)
    key, value = per_head(key, value, query.shape[1])
    return F.scaled_dot_product_attention(query, key, value, shifted(bias, distance, spec), scale=spec.scale)
