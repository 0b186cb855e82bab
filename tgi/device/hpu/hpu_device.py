"""Intel Gaudi: operations that its kernels do faster than plain torch, and those that it must do otherwise.

Integers are 32 bits wide, shapes never depend on data, and a step is a program that one of two engines makes
fast: HPU graphs in the bridge's lazy mode, `torch.compile` otherwise. Attention over the paged cache is made
of matrix products, which suit the matrix engine: a matrix of zeros and ones maps rows to their blocks and
back. Scattered reads, which do not suit it, are of whole blocks.
"""

import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from tgi.device.attention import AttentionSpec
from tgi.device.base import Array
from tgi.device.batch import Batch, KVCache, KVLayer, pair
from tgi.device.experts import Experts
from tgi.device.graphs import Program, Run
from tgi.device.static import DecodePlan, PromptPlan, StaticDevice, per_head, shifted, spread_rows
from tgi.plugins import ConfigError
from tgi.plugins.check import Check
from tgi.weights import Shard
from tgi.weights.formats import DenseWeight, IntegerWeight, LinearWeight
from tgi.weights.formats.fp8 import FP8, FP8_LIMIT, Fp8Weight, Scale, row_scale

from . import SPEC
from .bridge import join_ranks, open_bridge
from .compiled_regions import CompiledRegions
from .fp8_kernels import Fp8Kernels
from .gaudi_probes import gaudi_probes
from .host_copies import HostCopies
from .lazy_graphs import LazyGraphs
from .uint4_weight import Uint4Weight

W = TypeVar("W", bound=LinearWeight)
_GREATEST_WEIGHT = 128.0
"""Number in fp8 of a weight of 1: every generation has it, and it leaves small weights the most bits."""
_WIDEST = 256
"""Most features of a head that the fused attention gets; compressed keys have more."""


class HpuDevice(StaticDevice):
    """One Gaudi card."""

    spec = SPEC
    distributed_backend = "hccl"
    asynchronous = True

    def __init__(self, threads: int = 0, environ: MutableMapping[str, str] = os.environ) -> None:
        super().__init__(threads)
        self.bridge = open_bridge(environ)
        self.torch_device, self.fp8_limit = torch.device("hpu"), self.bridge.fp8_limit
        self.keeps = SPEC.keeps if self.bridge.from_uint4 else SPEC.keeps - {"int4"}
        self.keeps_graphs = self.bridge.lazy
        self.graphs: LazyGraphs | CompiledRegions = (
            LazyGraphs(self.bridge) if self.bridge.lazy else CompiledRegions()
        )
        self._copies = HostCopies(self.bridge.hpu)
        self._weights: Scale
        """Scale of the weights of values in fp8; set with the first cache in it."""

    def probes(self) -> Mapping[str, Callable[[], Check]]:
        """Return the probes of Gaudi."""
        return gaudi_probes(self, self.bridge)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype: bfloat16 for "auto", and never float16, for which no matrix kernels exist."""
        dtype = super().dtype("bfloat16" if name == "auto" else name)
        if dtype == torch.float16:
            raise ConfigError("float16 is not a dtype that a model can run in on Gaudi; bfloat16 is")
        return dtype

    def cache_dtype(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of the cache, which may be "fp8_e4m3fn" too."""
        return FP8 if name == "fp8_e4m3fn" else super().cache_dtype(name, dtype)

    def free_bytes(self) -> int:
        """Return the free bytes that the bridge reports."""
        return int(self.bridge.hpu.mem_get_info()[0])

    def total_bytes(self) -> int:
        """Return the memory of the card in bytes."""
        return int(self.bridge.hpu.mem_get_info()[1])

    def settle(self) -> None:
        """Launch pending work and wait for it.

        In lazy mode a copy into a part of a tensor is a temporary tensor until then: a model that is loaded
        without it takes twice its memory.
        """
        self.bridge.mark_step()
        self.bridge.hpu.synchronize()

    # ---- programs ------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module) -> None:
        """Make regions of the model's layers, or cut graphs between them."""
        self.graphs.prepare(model)

    def graph(self, program: Program) -> Run:
        """Return the engine's program; it runs once the results before have been copied."""
        graphed = self.graphs.graph(program)

        def run(*packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
            self._copies.hold_back()
            return graphed(*packed)

        return run

    def seal(self) -> None:
        """Let the engine take every program as warm."""
        self.graphs.seal()

    def upload(self, *packed: Array) -> list[torch.Tensor]:
        """Begin the copies without waiting for them; the bridge keeps the arrays until they are done."""
        return [torch.from_numpy(array).to(self.torch_device, non_blocking=True) for array in packed]

    def fetch(self, *tensors: torch.Tensor) -> Callable[[], list[Array]]:
        """Begin the copies, beside the next step."""
        return self._copies.fetch(*tensors)

    def remarks(self) -> list[str]:
        """Return a warning if memory cannot be pinned."""
        if self._copies.pinned:
            return []
        return ["this release of Gaudi's software cannot pin memory: results of steps are copied more slowly"]

    def counts(self) -> Mapping[str, float]:
        """Return the bridge's metrics too, as far as this release has them."""
        compilations, fallbacks = self._metric("graph_compilation"), self._metric("cpu_fallback")
        return {**super().counts(), "graph_compilations": compilations, "cpu_fallbacks": fallbacks}

    def used_bytes(self) -> int:
        """Return the bytes that the bridge has allocated."""
        return int(self.bridge.hpu.memory_allocated())

    def _metric(self, name: str) -> int:
        if self.bridge.metric is None:
            return 0
        return int(dict(self.bridge.metric(name).stats()).get("TotalNumber", 0))

    # ---- layers --------------------------------------------------------------------------------------------

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalise with the fused kernel, which takes three dimensions."""
        if self.bridge.rms_norm is None:
            return super().rms_norm(x, weight, epsilon)
        return self.bridge.rms_norm(x[None], weight, epsilon)[0]

    def rotation(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin unnegated: the fused kernel negates the sine itself."""
        if self.bridge.rotary is None:
            return super().rotation(cos, sin)
        return torch.cat((cos, cos), -1)[:, None], torch.cat((sin, sin), -1)[:, None]

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate with the fused kernel."""
        if self.bridge.rotary is None:
            return super().rotary(x, cos, sin)
        size = cos.shape[-1]
        turned = self.bridge.rotary(x[..., :size], cos, sin, None, 0, self.bridge.halves)
        return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), -1)

    def experts(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Experts
    ) -> torch.Tensor:
        """Compute experts with silu by the fused kernels, which leave out those of other ranks.

        That for fp8 rounds each row of its inputs by its own greatest number, and gives bfloat16.
        """
        if experts.kind != "silu" or experts.up_bias is not None:
            return super().experts(x, weights, chosen, experts)
        common = {
            "expert_routing_table": chosen,
            "router_weights": weights,
            "permuted_weights": True,
            "activation": "silu",
            "experts_min": experts.first,
            "experts_max": experts.first + len(experts.up) - 1,
        }
        dense = [_of_kind(part, DenseWeight) for part in (experts.up, experts.down)]
        if self.bridge.experts is not None and all(dense):
            up, down = ([weight.matrix for weight in part] for part in dense)
            return self.bridge.experts(hidden_states=x, w12=up, w3=down, **common)
        stored = [_of_kind(part, Fp8Weight) for part in (experts.up, experts.down)]
        if self.bridge.fp8_experts is None or not all(stored):
            return super().experts(x, weights, chosen, experts)
        up, down = ([weight.numbers for weight in part] for part in stored)
        up_scales, down_scales = ([weight.scales for weight in part] for part in stored)
        scale = row_scale(x, self.fp8_limit)
        y = self.bridge.fp8_experts(
            hidden_states=self._fp8.narrow(x, scale),
            w12=up,
            w3=down,
            d_scale_hidden_states=scale.value,
            d_scale_w12=up_scales,
            d_scale_w3=down_scales,
            **common,
        )
        return y.to(x.dtype)

    def argmax(self, x: torch.Tensor) -> torch.Tensor:
        """Return the lowest index of the greatest value: which of equals a kernel returns is undocumented."""
        places = torch.arange(x.shape[1], dtype=torch.int32, device=x.device)
        best = torch.where(x == x.amax(-1, keepdim=True), places, x.shape[1]).amin(-1)
        return best.clamp_max(x.shape[1] - 1)  # beyond only after NaN

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """Sum by a reduction, not a scan."""
        return x.sum(-1, keepdim=True)

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        """Pack a weight of 4 bits for the card's kernel; make it dense where that does not take it."""
        if not isinstance(weight, IntegerWeight):
            return super().prepare_linear(weight)
        if Uint4Weight.takes(weight):
            return Uint4Weight.of(self.bridge, weight, self.model_dtype, self.torch_device)
        return super().prepare_linear(DenseWeight(weight.dense().to(self.model_dtype)))

    # ---- fp8 ----------------------------------------------------------------------------------------------

    @property
    def _fp8(self) -> Fp8Kernels:
        return Fp8Kernels(self.bridge)

    def multiply(
        self,
        x: torch.Tensor,
        weight: LinearWeight,
        bias: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Multiply with fp8 weights by the fused kernel."""
        if not isinstance(weight, Fp8Weight) or not self._fp8.multiplies:
            return super().multiply(x, weight, bias, residual)
        scale = weight.input or row_scale(x, self.fp8_limit)
        numbers, scales = self._fp8.narrow(x, scale), (scale.value, weight.scales)
        y = self._fp8.product(numbers, weight.numbers, scales, x.dtype, transposed=True, bias=bias)
        return y if residual is None else residual + y

    def scale_cache(self, layer: KVLayer, key_scale: torch.Tensor, value_scale: torch.Tensor) -> None:
        """Keep the scales, doubled on a card with half the range that they are made for."""
        key, value = Scale.of(key_scale), Scale.of(value_scale)
        if self.fp8_limit < FP8_LIMIT:
            key, value = key.doubled(), value.doubled()
        layer.key_scale, layer.value_scale = key.to(self.torch_device), value.to(self.torch_device)

    def widen(self, x: torch.Tensor, scale: Scale | None) -> torch.Tensor:
        """Return stored keys or values in the dtype of the model."""
        if x.dtype == self.model_dtype:
            return x
        return self._fp8.widen(x, scale, self.model_dtype)

    # ---- the KV cache and attention ------------------------------------------------------------------------

    def allocate_cache(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, latent: bool = False
    ) -> KVCache:
        """Return a tensor for each layer's keys and values: a graph can only change whole tensors.

        They are zeros because masked places are read too.
        """
        if dtype == FP8:
            self._weights = Scale.of(torch.tensor(1 / _GREATEST_WEIGHT)).to(self.torch_device)

        def part() -> torch.Tensor:
            return torch.zeros(slots, kv_heads, head_dim, dtype=dtype, device=self.torch_device)

        return KVCache.of_group([pair([part() for _ in range(1 if latent else 2)]) for _ in range(layers)])

    @property
    def fused(self) -> bool:
        """Whether the bridge has its kernel."""
        return self.bridge.attention is not None

    def border(self) -> None:
        """Let the engine begin a new part."""
        self.graphs.border()

    def store_kv(self, layer: KVLayer, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        """Write key and value, rounded to fp8 within the card's range if the cache is in fp8."""
        if layer.keys.dtype == FP8:
            key, value = self._fp8.narrow(key, layer.key_scale), self._fp8.narrow(value, layer.value_scale)
        super().store_kv(layer, key, value, batch)

    def scores_dtype(self, spec: AttentionSpec) -> torch.dtype:
        """Return the dtype of the model, as others do on Gaudi, where its scores are precise enough in it."""
        return torch.float32 if spec.wide or spec.changes_scores else self.model_dtype

    def score_blocks(
        self, layer: KVLayer, query: torch.Tensor, keys: torch.Tensor, plan: DecodePlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """Multiply with keys in fp8 as they are; each head's query is rounded by its own greatest number."""
        if keys.dtype != FP8 or not self._fp8.multiplies:
            return super().score_blocks(layer, query, self.widen(keys, layer.key_scale), plan, spec)
        scale, dtype = row_scale(query, self.fp8_limit), self.scores_dtype(spec)
        numbers = spread_rows((query.float() * scale.inverse).to(query.dtype), plan, keys.shape[2])
        factor = plan.member @ (scale.value[..., 0] * spec.scale)
        left, right = self._fp8.narrow(numbers, None), keys.transpose(1, 2)
        scales = (None, layer.key_scale and layer.key_scale.value)
        products = self._fp8.product(left, right, scales, dtype, transposed=True)
        return products * factor.to(dtype).view(*numbers.shape[:3], 1)

    def sum_values(self, layer: KVLayer, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Multiply with values in fp8 as they are, and with weights rounded to fp8 by a fixed scale."""
        if values.dtype != FP8 or not self._fp8.multiplies:
            return super().sum_values(layer, weights, self.widen(values, layer.value_scale))
        scales = (self._weights.value, layer.value_scale and layer.value_scale.value)
        left, right = self._fp8.narrow(weights, self._weights), values.transpose(1, 2)
        return self._fp8.product(left, right, scales, self.model_dtype)

    def shares(
        self, highest: torch.Tensor, sums: torch.Tensor, plan: DecodePlan, spec: AttentionSpec
    ) -> torch.Tensor:
        """Adjust blocks to their rows by the fused kernel, for which padding has the row -1."""
        kernel, rows = self.bridge.block_adjustment, plan.member.shape[1]
        if kernel is None or spec.wide or spec.sinks is not None:
            return super().shares(highest, sums, plan, spec)
        owners = torch.where(plan.rows < rows, plan.rows, -1)
        shape = [*highest.shape, 1, 1]
        return kernel(highest.view(shape), sums.view(shape), owners, rows, shape).view(highest.shape)

    def attend_prompt(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        plan: PromptPlan,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attend with the fused kernel, which has no soft cap, no sinks, and heads of usual sizes."""
        kernel, scale = self.bridge.attention, spec.scale
        plain = spec.softcap is not None or spec.sinks is not None or query.shape[-1] > _WIDEST
        if kernel is None or plain:
            return super().attend_prompt(query, key, value, bias, plan, spec)
        mode = "None"
        if query.dtype == torch.bfloat16:
            mode = "fp32" if spec.wide else "fast"
        if bias is None:
            return kernel(query, key, value, None, 0.0, True, scale, mode, True, plan.lengths, "right")
        if spec.slopes is not None:  # a mask for each head, which the kernel takes if each has its own keys
            bias = shifted(bias, plan.distance, spec)
            key, value = per_head(key, value, query.shape[1])
        return kernel(query, key, value, bias, 0.0, False, scale, mode, True, None, "right")

    # ---- ranks ---------------------------------------------------------------------------------------------

    def connect(self, world: Shard, store: str, stages: int = 1) -> None:
        """Register the backend of collectives, and find the other ranks."""
        join_ranks()
        super().connect(world, store, stages)

    def all_reduce(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """Add up over ranks in a part of the program of its own."""
        if shard.size > 1:
            self.graphs.border()
        return super().all_reduce(x, shard)

    def all_gather(self, x: torch.Tensor, shard: Shard) -> torch.Tensor:
        """Join over ranks in a part of the program of its own, in a tensor that the program computes.

        One without a value, as the bridge makes for a list of parts, would be an input of a lazy graph, which
        keeps it: the logits of every bucket.
        """
        if shard.size == 1:
            return x
        together = x.repeat(shard.size, *[1] * (x.dim() - 1))
        self.graphs.border()
        dist.all_gather_into_tensor(together, x.contiguous(), group=self._group)
        return together.view(shard.size, *x.shape).movedim(0, -2).flatten(-2)

    def send_on(self, x: torch.Tensor, shard: Shard) -> None:
        """Launch what computes x before it is sent."""
        self.bridge.mark_step()
        super().send_on(x, shard)

    def receive(self, x: torch.Tensor, count: int, shard: Shard) -> None:
        """Launch what reads x before it is overwritten, and receive into a tensor of its own.

        In lazy mode a change by a view of x would put x elsewhere, and graphs would read what it was.
        """
        self.bridge.mark_step()
        rows = x.new_empty(count, *x.shape[1:])
        super().receive(rows, count, shard)
        x.index_copy_(0, torch.arange(count, device=x.device), rows)


def _of_kind(weights: Sequence[LinearWeight], kind: type[W]) -> list[W]:
    """Return weights that are all of that kind; [] if some are not."""
    chosen = [weight for weight in weights if isinstance(weight, kind)]
    return chosen if len(chosen) == len(weights) else []
