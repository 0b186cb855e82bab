"""Reading model weights: tensors by name, a rank's part only. Knows no layer and no device."""

from .checkpoint import Checkpoint, CheckpointError
from .shard import Shard

__all__ = ["Checkpoint", "CheckpointError", "Shard"]
