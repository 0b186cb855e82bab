"""The CPU with the kernels of the distribution `tgi-cpu-kernels`.

They are faster than oneDNN for few rows and attend to all rows of a step in one call. A token's result
depends on its context alone: not on its neighbours, the chunk it is computed in, or the prefix cache.
"""

from collections.abc import Sequence

import torch
from tgi_cpu_kernels import BLOCK, MAX_HEAD_SIZE, MAX_QUANTIZED_FEATURES, load
from tgi_cpu_kernels.decoder import Rows
from tgi_cpu_kernels.lora import LoraRows

from tgi.device.attention import AttentionSpec
from tgi.device.batch import Batch, KVCache, KVLayer
from tgi.device.decoder import DecoderLayer, RunLayers
from tgi.device.experts import Experts
from tgi.device.lora import LoraShape, LoraTable
from tgi.protocol import LoraSlots
from tgi.weights.formats import (
    DenseWeight,
    IntegerRounding,
    IntegerWeight,
    LinearWeight,
    PiecewiseWeight,
    Rounding,
)

from .cpu_device import CpuDevice
from .joined_layers import JoinedLayers, kernel_window
from .packed import PackedExperts, PackedIntegers, PackedTable, PackedWeight

_DTYPES = (torch.float32, torch.bfloat16)
_VECTOR = 16
"""Head sizes that the attention kernel takes are multiples of this."""


class KernelDevice(CpuDevice):
    """Any CPU for which the kernels are built."""

    min_tokens = 1

    def __init__(self, threads: int = 0) -> None:
        """Load the kernels. Raises tgi_cpu_kernels.Unavailable."""
        super().__init__(threads)
        self._kernels = load()
        self._kernels.use_threads(self.threads)
        self.keeps = self.spec.keeps

    def remarks(self) -> list[str]:
        """Say that the kernels for a better instruction set fail."""
        return [self._kernels.remark] if self._kernels.remark else []

    def use_threads(self, count: int) -> None:
        """Use that many threads for the kernels too."""
        super().use_threads(count)
        self._kernels.use_threads(count)

    def open_linear(
        self, rows: int, columns: int, dtype: torch.dtype, rounding: Rounding | None = None
    ) -> PiecewiseWeight | None:
        """Return a weight that packs each piece, so that no other copy of it is ever in memory."""
        if dtype not in _DTYPES:
            return None
        if rounding is None:
            return PackedWeight.empty(self._kernels, rows, columns, dtype)
        if isinstance(rounding, IntegerRounding) and columns <= MAX_QUANTIZED_FEATURES:
            return PackedIntegers.empty(self._kernels, rows, columns, rounding)
        return None

    def prepare_linear(self, weight: LinearWeight) -> LinearWeight:
        """Pack a dense weight, or one of integers; take others as they are."""
        if isinstance(weight, DenseWeight) and weight.matrix.dtype in _DTYPES:
            rows, columns = weight.matrix.shape
            return PackedWeight(self._kernels, self._kernels.pack(weight.matrix), (rows, columns))
        if isinstance(weight, IntegerWeight) and PackedIntegers.takes(weight):
            return PackedIntegers.of(self._kernels, weight)
        return super().prepare_linear(weight)

    def round(self, matrix: torch.Tensor, rounding: Rounding) -> LinearWeight:
        """Round and pack at once."""
        rows, columns = matrix.shape
        weight = self.open_linear(rows, columns, matrix.dtype, rounding)
        if weight is None:
            return super().round(matrix, rounding)
        weight.put(0, matrix)
        return weight

    def lora_table(self, shape: LoraShape) -> LoraTable:
        """Return a table in the kernels' order."""
        return PackedTable(self._kernels, shape) if shape.dtype in _DTYPES else super().lora_table(shape)

    def lora_rows(self, slots: torch.Tensor, room: LoraSlots, dtype: torch.dtype) -> object:
        """Return the tokens by slot."""
        return LoraRows(slots) if dtype in _DTYPES else super().lora_rows(slots, room, dtype)

    def prepare_experts(self, experts: Experts) -> Experts:
        """Let one call compute all experts, if they are of the kind that the kernel takes."""
        return PackedExperts.of(self._kernels, experts) or experts

    def experts(
        self, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, experts: Experts
    ) -> torch.Tensor:
        """Compute each expert once, for the tokens that have it."""
        if isinstance(experts, PackedExperts):
            return experts.packed.run(x, weights, chosen)
        return super().experts(x, weights, chosen, experts)

    def join_layers(self, layers: Sequence[DecoderLayer]) -> RunLayers | None:
        """Run all layers in one call, if the kernels take their weights and heads."""
        if layers and all(map(JoinedLayers.takes, layers)):
            return JoinedLayers(self._kernels, layers)
        return None

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Normalise and round once."""
        return self._kernels.rms_norm(x, weight, epsilon)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Multiply and round once."""
        return self._kernels.silu_mul(gate_up)

    def rotation(self, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin unchanged, in float32."""
        return cos.float().contiguous(), sin.float().contiguous()

    def rotary(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate x in place."""
        self._kernels.rotary(x, cos, sin)
        return x

    def log_softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Add in one order."""
        return self._kernels.log_softmax(scores)

    def greedy(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Read the scores twice, and write nothing of their size."""
        return self._kernels.greedy(scores) if scores.dtype in _DTYPES else super().greedy(scores)

    def draw(self, logprobs: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Take a logarithm only of what may be the greatest."""
        return self._kernels.draw(logprobs, keys)

    def top_cut(
        self, scores: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None
    ) -> torch.Tensor:
        """Sort the few scores that matter."""
        return self._kernels.top_cut(scores, None if top_k is None else top_k.int(), top_p)

    def allocate_cache(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, latent: bool = False
    ) -> KVCache:
        """Return a cache in the kernels' order, or in the base class's for heads they do not take."""
        if head_dim % _VECTOR or head_dim > MAX_HEAD_SIZE or slots % BLOCK or latent:
            return super().allocate_cache(layers, slots, kv_heads, head_dim, dtype, latent)
        whole = torch.zeros(layers, 2, slots * kv_heads * head_dim, dtype=dtype)
        return KVCache.of_group([(layer[0], layer[1]) for layer in whole])

    def plan_group(self, number: int, batch: Batch, block_size: int) -> object:
        """Return the rows of a group, or the base class's plan for heads that the kernels do not take."""
        if batch.cache.wholes[number] is not None:
            return super().plan_group(number, batch, block_size)
        group = batch.groups[number]
        offsets = batch.lengths.cumsum(0, dtype=torch.int32) - batch.lengths
        return Rows(group.slots, group.tables, offsets, batch.lengths, batch.starts, group.bases)

    def store_kv(self, layer: KVLayer, key: torch.Tensor, value: torch.Tensor, batch: Batch) -> None:
        """Write key and value to the slots of the layer's group."""
        rows = batch.plan_of(layer)
        if isinstance(rows, Rows):
            self._kernels.store_kv(key, value, rows.slots, *layer.tensors)
        else:
            super().store_kv(layer, key, value, batch)

    def attention(
        self,
        layer: KVLayer,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        batch: Batch,
        spec: AttentionSpec,
    ) -> torch.Tensor:
        """Attend for all rows at once, from the cache alone."""
        rows = batch.plan_of(layer)
        if not isinstance(rows, Rows):
            return super().attention(layer, query, key, value, batch, spec)
        return self._kernels.attention(
            query,
            *layer.tensors,
            key.shape[1],
            rows.tables,
            rows.offsets,
            rows.lengths,
            rows.starts,
            scale=spec.scale,
            window=kernel_window(spec),
            softcap=spec.softcap or 0.0,
            bases=rows.bases,
            slopes=spec.slopes,
            sinks=spec.sinks,
        )
