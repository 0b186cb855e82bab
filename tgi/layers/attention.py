"""Paged self-attention."""

import torch
from torch import nn

from tgi.device import decoder
from tgi.device.attention import AttentionSpec
from tgi.device.batch import Batch
from tgi.plugins import ConfigError
from tgi.plugins.llama_config import Temperature

from .build import Build
from .cache_layers import CacheLayer
from .norm import describe_norm


def alibi_slopes(num_heads: int) -> torch.Tensor:
    """Return the slopes of attention with linear biases, [num_heads] float32, for `Attention`.

    Each head's scores lose its slope per token of distance (ALiBi; Press, Smith and Lewis 2021, arXiv
    2108.12409): a geometric sequence that ends at 2 ** -8. If the number of heads is no power of two: that of
    the power below, and every other one of that of the power above.
    """
    below = 1 << (num_heads.bit_length() - 1)
    return torch.cat((_sequence(below), _sequence(2 * below)[::2][: num_heads - below]))


def _sequence(count: int) -> torch.Tensor:
    return (-8 * torch.arange(1, count + 1) / count).exp2()


class Attention(nn.Module):
    """Attention of one layer, after the projections: rotates, writes the KV cache, and reads it.

    Query heads are divided over the ranks, and so are key/value heads unless they are fewer: then ranks share
    them. The default of `scale` is head_dim ** -0.5; `window`, `chunked`, `slopes` (of all ranks' heads),
    `softcap` and `sinks` (of this rank's heads) are those of `AttentionSpec`. `norms` are applied to queries
    and to keys [T, heads, head_dim] before they are rotated, and numbers beyond `clip` are cut off then. The
    first `interleaved` features are rotated with their neighbours. `temperature` is that of `LlamaConfig`.
    """

    def __init__(
        self,
        build: Build,
        layer: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        scale: float | None = None,
        window: int | None = None,
        chunked: bool = False,
        slopes: torch.Tensor | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
        norms: tuple[nn.Module, nn.Module] | None = None,
        interleaved: int = 0,
        clip: float | None = None,
        temperature: Temperature | None = None,
    ) -> None:
        super().__init__()
        self.query_norm: nn.Module | None = None if norms is None else norms[0]
        self.key_norm: nn.Module | None = None if norms is None else norms[1]
        self._interleaved, self._clip, self._temperature = interleaved, clip, temperature
        if num_heads % num_kv_heads:
            raise ConfigError(f"{num_heads} heads do not divide over {num_kv_heads} key/value heads")
        self._device = build.device
        mine, read = build.shard.cut(num_heads), build.shard.kv_heads(num_kv_heads)
        self._heads, self._kv_heads = mine.stop - mine.start, read.stop - read.start
        self._head_dim = head_dim
        if slopes is not None:
            slopes = slopes[mine].to(build.device.torch_device, torch.float32)
        scale = head_dim**-0.5 if scale is None else scale
        self._spec = AttentionSpec(scale, window, chunked, slopes, softcap, sinks, build.wide_scores)
        self._kv = build.attend(layer, self._spec, CacheLayer(window, self._kv_heads, num_kv_heads, head_dim))

    def forward(
        self, qkv: torch.Tensor, batch: Batch, rotation: tuple[torch.Tensor, torch.Tensor] | None
    ) -> torch.Tensor:
        """[T, (heads + 2 kv_heads) * head_dim] of this rank, queries first, to [T, heads * head_dim].

        `rotation` is the result of `Rotary`; None: positions do not count.
        """
        heads, kv_heads = self._heads, self._kv_heads
        all_heads = qkv.view(-1, heads + 2 * kv_heads, self._head_dim)
        query_key, value = all_heads[:, : heads + kv_heads], all_heads[:, heads + kv_heads :]
        if self.query_norm is not None and self.key_norm is not None:
            query, key = query_key[:, :heads], query_key[:, heads:]
            query_key = torch.cat((self.query_norm(query), self.key_norm(key)), 1)
        if self._clip is not None:
            query_key, value = (x.clamp(-self._clip, self._clip) for x in (query_key, value))
        if rotation is not None:
            if self._interleaved:  # the scores do not depend on the order of features
                query_key = halves(query_key, self._interleaved)
            query_key = self._device.rotary(query_key, *rotation)
        query, key = query_key[:, :heads], query_key[:, heads:]
        if self._temperature is not None:
            steps = ((batch.positions + 1.0) / self._temperature.step).floor()
            factor = 1 + self._temperature.scale * (1 + steps).log()
            query = (query * factor[:, None, None]).to(query.dtype)
        self._device.store_kv(self._kv, key, value, batch)
        out = self._device.attention(self._kv, query, key, value, batch, self._spec)
        return out.reshape(qkv.shape[0], heads * self._head_dim)

    def describe(self, qkv: decoder.Linear, out: decoder.Linear) -> decoder.SelfAttention | None:
        """Return the attention and its projections for `Device.join_layers`; None if it is less common."""
        norms = None
        if self.query_norm is not None:
            query, key = describe_norm(self.query_norm), describe_norm(self.key_norm)
            if query is None or key is None:
                return None
            norms = query, key
        if self._interleaved or self._clip is not None or self._temperature is not None:
            return None
        return decoder.SelfAttention(
            qkv=qkv,
            head_norms=norms,
            heads=self._heads,
            kv_heads=self._kv_heads,
            head_dim=self._head_dim,
            kv=self._kv,
            spec=self._spec,
            out=out,
        )


def halves(x: torch.Tensor, size: int) -> torch.Tensor:
    """Move the even ones of the first `size` features of x [T, heads, head_dim] before the odd ones."""
    pairs = x[..., :size].reshape(*x.shape[:-1], size // 2, 2)
    turned = pairs.transpose(-1, -2).flatten(-2)
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), -1)
