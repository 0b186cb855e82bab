"""What models run on: `Device` defines every operation in plain torch, devices do some of them faster."""

from .base import Device
from .batch import Batch, HostRow, KVCache

__all__ = ["Batch", "Device", "HostRow", "KVCache"]
