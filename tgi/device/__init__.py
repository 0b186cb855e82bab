"""What models run on: `Device` defines every operation in plain torch, devices do some of them faster."""

from .attention import AttentionSpec
from .base import Device
from .batch import Batch, FlatBlocks, HostRow, KVCache
from .graphs import Counters, Program

__all__ = ["AttentionSpec", "Batch", "Counters", "Device", "FlatBlocks", "HostRow", "KVCache", "Program"]
