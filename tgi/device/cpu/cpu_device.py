"""The CPU: operations that oneDNN and the fused attention kernel do faster than plain torch.

Linear weights are kept in oneDNN's blocked layout only, in which few rows read memory at full speed (1.7
times as fast as a plain weight in bfloat16, two to three times in float32). Attention reads the KV cache in
place.
"""

import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from tgi.device import cgroups
from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import Batch, KVCache, KVLayer, pair
from tgi.device.experts import Experts
from tgi.device.ranking import most_likely_by_keys

from . import SPEC
from .row_attention import GroupPlan, attend_rows

_PACKED_FOR_ROWS = 32
"""Number of rows that weights are packed for. It hardly matters; 32 is good from 1 to 1024 rows."""

_PADDED = 4
"""Rows that a single row is padded to: oneDNN is as fast as for one, and faster than for two or three."""

_linear = torch.ops.mkldnn._linear_pointwise.default
_linear_add = torch.ops.mkldnn._linear_pointwise.binary


class CpuDevice(Device):
    """Any x86 or ARM processor that oneDNN supports."""

    spec = SPEC
    min_tokens = _PADDED

    def __init__(self, threads: int = 0, without: str = "") -> None:
        """Use `threads` threads, 0 for one per usable core. `without`: why the kernels are missing."""
        super().__init__(threads or cgroups.usable_cores())
        self._without = without

    def remarks(self) -> list[str]:
        """Say that the kernels are missing."""
        return [f"generation is about half as fast as it could be: {self._without}"] if self._without else []

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype: for "auto" bfloat16 if the processor multiplies it natively, else float32."""
        if name == "auto":
            return torch.bfloat16 if has_instructions("avx512_bf16", "amx_bf16", "bf16") else torch.float32
        return super().dtype(name)

    def prepare_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a copy in oneDNN's blocked layout, which only `linear` can read."""
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACKED_FOR_ROWS)  # type: ignore[no-any-return]

    def linear(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply, and add the residual before the result is rounded.

        With two or more rows, the result of a row does not depend on their number; a single row would take a
        kernel with another order of sums, and is padded.
        """
        if len(x) == 1:
            more = None if residual is None else residual.expand(_PADDED, -1)
            return self.linear(x.expand(_PADDED, -1), weight, bias, more)[:1]
        if residual is None:
            return _linear(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
        return _linear_add(x, residual, weight, bias, "add")  # type: ignore[no-any-return]

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalise, and round once."""
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, 2, -1, True)
        scale = torch.addcmul(norm.new_full((), epsilon), norm, norm, value=1 / x.shape[-1]).rsqrt_()
        return (wide * scale).mul_(weight).to(x.dtype)

    def gelu(self, x: torch.Tensor, tanh: bool = False) -> torch.Tensor:
        """Compute in float32 from functions whose results do not depend on a number's place in memory.

        Torch's own gelu and sigmoid have a vectorised form and another one for what is left at the end.
        """
        wide = x.float()
        if tanh:
            inner = (wide.pow(3).mul_(0.044715) + wide).mul_(math.sqrt(2 / math.pi)).tanh_()
        else:
            inner = (wide * math.sqrt(0.5)).erf_()
        return inner.add_(1).mul_(wide).mul_(0.5).to(x.dtype)

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        """Compute in float32, as `gelu`."""
        return (-x.float()).exp_().add_(1).reciprocal_().to(x.dtype)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Multiply in place, rounding as defined."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    def experts(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Experts
    ) -> torch.Tensor:
        """Compute each expert once, for the tokens that have it; a token adds up its own in their order."""
        y, places = torch.zeros_like(x), chosen.flatten().numpy() - experts.first
        order, weights = places.argsort(kind="stable"), weights.flatten()
        bounds = np.searchsorted(places[order], np.arange(len(experts.up) + 1))
        for index, (begin, end) in enumerate(itertools.pairwise(bounds.tolist())):
            if begin < end:
                mine = torch.from_numpy(order[begin:end])
                rows = mine // chosen.shape[1]
                out = experts.compute(self, index, x.index_select(0, rows))
                y.index_add_(0, rows, out * weights[mine, None])
        return y

    def cos_sin(self, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute by numpy: torch wakes a second thread for 512 numbers, which takes 100 times as long."""
        return torch.from_numpy(np.cos(angles.numpy())), torch.from_numpy(np.sin(angles.numpy()))

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate with one rounding less."""
        size = cos.shape[-1]
        if size != x.shape[-1]:
            return super().rotary(x, cos, sin)
        return (x * cos).addcmul_(x.roll(size // 2, -1), sin)

    def argmax(self, x: torch.Tensor) -> torch.Tensor:
        """Return numpy's argmax, which is ten times as fast as torch's."""
        return torch.from_numpy(x.numpy().argmax(-1))

    def descending(self, x: torch.Tensor) -> torch.Tensor:
        """Sort by numpy, which is 25 times as fast as torch."""
        return torch.from_numpy(np.sort(x.numpy(), -1)).flip(-1)

    def first_beyond(self, ascending: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Find the index by bisection."""
        return torch.searchsorted(ascending, target, right=True)[:, 0]

    def most_likely(self, logprobs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rank by 64-bit keys."""
        return most_likely_by_keys(logprobs, count)

    def allocate_cache(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, latent: bool = False
    ) -> KVCache:
        """Return keys and values of each layer, [kv_heads, slots, head_dim].

        The keys of a head follow one another, which makes decode attention over 1,000 tokens twice as fast.
        """
        whole = torch.zeros(layers, 1 if latent else 2, kv_heads, slots, head_dim, dtype=dtype)
        return KVCache.of_group([pair(layer.unbind(0)) for layer in whole], whole)

    def store_kv(self, layer: KVLayer, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        """Write key and value to the slots of the layer's group."""
        keys, values = layer.tensors
        slots = batch.plan_of(layer).slots
        keys.index_copy_(1, slots, key.transpose(0, 1))
        if values is not keys:
            values.index_copy_(1, slots, value.transpose(0, 1))

    def plan(self, batch: Batch, block_size: int) -> list[object]:
        """Return the plan of each group of layers."""
        return [self.plan_group(number, batch, block_size) for number in range(len(batch.groups))]

    def plan_group(self, number: int, batch: Batch, block_size: int) -> object:
        """Find the pieces of a group's cache that each row reads, as views for all layers."""
        return GroupPlan.of(number, batch, block_size, self.kinds(batch.cache, number))

    def attention(
        self,
        layer: KVLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attend row by row with the fused kernel: unmasked over the cache, masked over a chunk itself."""
        plan = batch.plan_of(layer).kinds[spec.kind]
        return attend_rows(plan, layer, query, key, value, batch.cache, spec)


def has_instructions(*names: str) -> bool:
    """Return whether /proc/cpuinfo lists one of these features."""
    info = Path("/proc/cpuinfo")
    return info.exists() and not set(names).isdisjoint(info.read_text().split())
