"""The KV cache of one rank: its size, and the tensors of all layers."""

import attrs
import torch

from tgi.device.base import Device
from tgi.device.batch import KVCache
from tgi.plugins import ModelConfig
from tgi.weights import Shard


@attrs.frozen
class KVCacheSpec:
    """What one rank keeps of every token."""

    layers: int
    kv_heads: int
    """Of this rank."""
    head_dim: int
    dtype: torch.dtype
    block_size: int
    window: int | None = None
    """How many tokens a token sees, in any layer; None: all before it."""

    @classmethod
    def of(cls, config: ModelConfig, shard: Shard, dtype: torch.dtype, block_size: int) -> "KVCacheSpec":
        """For a rank's share of a model."""
        heads = shard.kv_heads(config.num_kv_heads)
        return cls(
            config.num_layers, heads.stop - heads.start, config.head_dim, dtype, block_size, config.window
        )

    @property
    def block_bytes(self) -> int:
        """Of one block, keys and values of all layers."""
        return 2 * self.layers * self.block_size * self.kv_heads * self.head_dim * self.dtype.itemsize

    def allocate(self, device: Device, blocks: int) -> KVCache:
        """The tensors for so many blocks."""
        slots = blocks * self.block_size
        return device.allocate_cache(self.layers, slots, self.kv_heads, self.head_dim, self.dtype)
