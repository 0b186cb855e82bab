"""Operations on an NVIDIA GPU: kernels in Triton for those that take plain torch many.

Torch's flash attention serves prompts without a context and needs no mask: padding is at the right, where no
token looks. Other prompts have masks, made once per step and kind of layer. Decode steps read the cache in
place.
"""

from typing import Any, NamedTuple

import attrs
import torch
import torch.nn.functional as F

from tgi.device.activation import gate
from tgi.device.attention import AttentionSpec
from tgi.device.batch import Batch, FlatBlocks, KVLayer
from tgi.device.experts import Experts
from tgi.device.static import PromptPlan, StaticDevice, attend_plainly, per_head, shifted
from tgi.weights.formats import DenseWeight, LinearWeight

from . import SPEC
from .packed_weight import PackedExperts, PackedWeight

_QUERIES = 256
"""Query tokens of a row whose scores are in memory at once, for layers that change scores."""


class BlocksPlan(NamedTuple):
    """Indices of a decode step with n blocks in all."""

    slots: torch.Tensor
    """[rows] int64: slots that keys and values are written to."""
    blocks: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """[n] int32 each: ids, rows and tokens of `FlatBlocks`."""
    starts: torch.Tensor
    """[rows + 1] int32: index at which each row's blocks begin, and at which the last one's end."""
    size: int
    """Tokens in a block."""


@attrs.frozen(eq=False, kw_only=True)
class StackedExperts(Experts):
    """Dense experts in one tensor each for the weights of `up` and of `down`, of which those are parts."""

    ups: torch.Tensor
    """[experts, 2 inner, hidden]."""
    downs: torch.Tensor
    """[experts, hidden, inner]."""


class CudaOperations(StaticDevice):
    """Operations that run wherever Triton does, its interpreter included."""

    spec = SPEC
    keeps = SPEC.keeps

    @property
    def fused(self) -> bool:
        """True: torch's flash attention is causal by itself."""
        return True

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalise with torch's fused kernel, which rounds once."""
        return F.rms_norm(x, weight.shape, weight, epsilon)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Compute as defined, but round once."""
        from . import triton_kernels as kernels

        return kernels.silu_mul(gate_up)

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Compute as defined, but round once."""
        from . import triton_kernels as kernels

        return kernels.rotate(x, cos, sin)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum with a kernel whose order does not depend on the number of rows, as torch's does."""
        from . import triton_kernels as kernels

        return kernels.total(x)

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        """Pack a weight that the kernel takes."""
        return PackedWeight.of(weight, self.torch_device) or super().prepare_linear(weight)

    def prepare_experts(self, experts: Experts) -> Experts:
        """Stack the weights, if all are dense or all are packed alike."""
        if packed := PackedExperts.of(experts):
            return packed
        dense = [
            [weight.matrix for weight in part if isinstance(weight, DenseWeight)]
            for part in (experts.up, experts.down)
        ]
        if any(len(part) < len(experts.up) for part in dense):
            return experts
        ups, downs = map(torch.stack, dense)
        return StackedExperts(
            up=[DenseWeight(part) for part in ups],
            down=[DenseWeight(part) for part in downs],
            up_bias=experts.up_bias,
            down_bias=experts.down_bias,
            first=experts.first,
            kind=experts.kind,
            ups=ups,
            downs=downs,
        )

    def experts(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Experts
    ) -> torch.Tensor:
        """Compute the chosen experts alone, those of all tokens together."""
        if not isinstance(experts, StackedExperts | PackedExperts):
            return super().experts(x, weights, chosen, experts)
        from . import triton_experts

        pairs = triton_experts.sort_pairs(chosen, experts.first, len(experts.up))
        if isinstance(experts, PackedExperts):
            inner = experts.ups.multiply_pairs(x, experts.up_bias, pairs, chosen.shape[1])
            inner = gate(self, experts.kind, inner)
            y = experts.downs.multiply_pairs(inner, experts.down_bias, pairs)
        else:
            inner = triton_experts.multiply_pairs(x, experts.ups, experts.up_bias, pairs, chosen.shape[1])
            inner = gate(self, experts.kind, inner)
            y = triton_experts.multiply_pairs(inner, experts.downs, experts.down_bias, pairs)
        return triton_experts.add_up(y, weights, pairs.order)

    def plan_decode(self, batch: Batch, number: int, flat: FlatBlocks, block_size: int) -> object:
        """Find where each row's blocks begin, if the kernel takes the layers.

        It does not take heads as wide as compressed keys, nor chunks.
        """
        latent = any(layer.latent for layer in batch.cache.layers if layer.group == number)
        if latent or any(kind.chunked for kind in self.kinds(batch.cache, number)):
            return super().plan_decode(batch, number, flat, block_size)
        assert flat.ids is not None, "this device lists blocks"
        rows = torch.arange(batch.tokens.shape[0] + 1, dtype=torch.int32, device=flat.rows.device)
        starts = torch.searchsorted(flat.rows, rows, out_int32=True)
        slots = batch.groups[number].slots.long()
        return BlocksPlan(slots, (flat.ids, flat.rows, flat.tokens), starts, block_size)

    def attend_decode(
        self, layer: KVLayer, query: torch.Tensor, plan: Any, spec: AttentionSpec
    ) -> torch.Tensor:
        """Attend by a kernel that reads blocks where they are."""
        from . import triton_kernels as kernels

        if not isinstance(plan, BlocksPlan):
            return super().attend_decode(layer, query, plan, spec)
        keys, values = layer.tensors
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
    if spec.softcap is not None or spec.sinks is not None:
        return attend_plainly(query, key, value, bias, distance, spec)
    key, value = per_head(key, value, query.shape[1])
    return F.scaled_dot_product_attention(query, key, value, shifted(bias, distance, spec), scale=spec.scale)
