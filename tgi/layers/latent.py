"""Attention that keeps one compressed key for all heads, of which their keys and values are linear functions.

Each head's queries are turned into queries of the compressed keys, and the compressed values that attention
gives into the head's values. So the cache has no other keys, and values are the first features of keys. As in
DeepSeek-V2 (DeepSeek-AI 2024, arXiv 2405.04434), section 2.1.
"""

import torch
from torch import nn

from tgi.device.attention import AttentionSpec
from tgi.device.batch import Batch
from tgi.plugins.llama_config import LatentSizes, LlamaConfig
from tgi.weights import TensorPart
from tgi.weights.formats import DenseWeight, LinearWeight

from .attention import halves
from .build import Build
from .cache_layers import CacheLayer
from .linear import ColumnLinear, RowLinear
from .norm import RMSNorm

Rotation = tuple[torch.Tensor, torch.Tensor]
_EPSILON = 1e-6
"""Epsilon of the norms of compressed queries and keys; the model's own may differ."""


class LatentAttention(nn.Module):
    """Attention with its projections, which are modules below `name`. Every rank has the whole cache."""

    def __init__(self, build: Build, name: str, layer: int, config: LlamaConfig, sizes: LatentSizes) -> None:
        super().__init__()
        self._device, self._sizes = build.device, sizes
        self._interleaved = config.interleaved
        hidden, heads, bias = config.hidden_size, config.num_heads, config.qkv_bias
        down = {f"{name}.kv_a_proj_with_mqa": sizes.rank + sizes.rotated}
        wide, query = hidden, f"{name}.q_proj"
        self.query_norm = None
        if sizes.query_rank is not None:
            down = {f"{name}.q_a_proj": sizes.query_rank, **down}
            wide, query = sizes.query_rank, f"{name}.q_b_proj"
            self.query_norm = RMSNorm(build, f"{name}.q_a_layernorm", sizes.query_rank, _EPSILON)
        self._down = build.linear(
            *(TensorPart(f"{key}.weight", (size, hidden)) for key, size in down.items())
        )
        self._down_bias = None
        if bias:
            self._down_bias = build.read(*(TensorPart(f"{key}.bias", (size,)) for key, size in down.items()))
        features = [heads * (sizes.plain + sizes.rotated)]
        self.query = ColumnLinear(build, [query], wide, features, pieces=[heads])
        self.norm = RMSNorm(build, f"{name}.kv_a_layernorm", sizes.rank, _EPSILON)
        self._keys, self._values = _read_heads(build, f"{name}.kv_b_proj", heads, sizes)
        self.out = RowLinear(build, f"{name}.o_proj", heads * sizes.value, hidden, config.out_bias)
        self._spec = AttentionSpec(config.attention_scale or config.head_dim**-0.5, wide=build.wide_scores)
        shape = CacheLayer(None, 1, 1, sizes.rank + sizes.rotated, latent=True)
        self._kv = build.attend(layer, self._spec, shape)

    def forward(
        self, x: torch.Tensor, batch: Batch, rotation: Rotation, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[T, hidden_size] to the same, plus the residual."""
        return self.out(self._attend(x, batch, rotation), residual)  # type: ignore[no-any-return]

    def _attend(self, x: torch.Tensor, batch: Batch, rotation: Rotation) -> torch.Tensor:
        sizes, heads = self._sizes, len(self._keys)
        down = self._device.multiply(x, self._down, self._down_bias)
        if self.query_norm is not None:
            x, down = self.query_norm(down[:, : sizes.query_rank]), down[:, sizes.query_rank :]
        latent, turning = self.norm(down[:, : sizes.rank]), down[:, None, sizes.rank :]
        query = self.query(x).view(len(x), heads, sizes.plain + sizes.rotated)
        turned = self._turn(torch.cat((query[:, :, sizes.plain :], turning), 1), rotation)
        key = torch.cat((latent[:, None], turned[:, heads:]), -1)
        asked = self._per_head(query[:, :, : sizes.plain], self._keys)
        query = torch.cat((asked, turned[:, :heads]), -1)
        self._device.store_kv(self._kv, key, key, batch)
        out = self._device.attention(self._kv, query, key, key, batch, self._spec)
        return self._per_head(out[:, :, : sizes.rank], self._values).flatten(1)

    def _turn(self, x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        if self._interleaved:
            x = halves(x, x.shape[-1])
        return self._device.rotary(x, *rotation)

    def _per_head(self, x: torch.Tensor, weights: list[LinearWeight]) -> torch.Tensor:
        """Multiply each head's features of x [T, heads, in] by its weight [out, in]."""
        parts = [self._device.multiply(x[:, head], weight) for head, weight in enumerate(weights)]
        return torch.stack(parts, 1)


def _read_heads(
    build: Build, name: str, heads: int, sizes: LatentSizes
) -> tuple[list[LinearWeight], list[LinearWeight]]:
    """Return the weights of this rank's heads: from queries to those of compressed keys, [rank, plain] each,
    and from compressed values to values, [value, rank] each."""
    rows, mine = sizes.plain + sizes.value, build.shard.cut(heads, heads)
    part = slice(mine.start * rows, mine.stop * rows)
    whole = build.dense(TensorPart(f"{name}.weight", (heads * rows, sizes.rank), 0, part))
    each = whole.view(-1, rows, sizes.rank)
    keys = [build.prepare(DenseWeight(head[: sizes.plain].t().contiguous())) for head in each]
    values = [build.prepare(DenseWeight(head[sizes.plain :].contiguous())) for head in each]
    return keys, values
