"""What models run on: `Device` defines every operation in plain torch, devices do some of them faster."""

from .attention import AttentionSpec
from .base import Device
from .batch import Batch, FlatBlocks, HostRow, KVCache
from .fp8 import Fp8Weight, Scale
from .graphs import Counters, Program

__all__ = [
    "AttentionSpec",
    "Batch",
    "Counters",
    "Device",
    "FlatBlocks",
    "Fp8Weight",
    "HostRow",
    "KVCache",
    "Program",
    "Scale",
]
