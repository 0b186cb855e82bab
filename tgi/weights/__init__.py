"""Reading of model weights: tensors by name, and only the rank's part. Knows no layer and no device."""

from .checkpoint import Checkpoint, CheckpointError
from .dummy import DummyWeights
from .outline import Outline
from .shard import DivisionError, RecordingShard, Shard, TensorPart
from .stage import LayerSizes, Stage, place_in

Weights = Checkpoint | DummyWeights | Outline
"""Sources that a model can be built from."""

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "DivisionError",
    "DummyWeights",
    "LayerSizes",
    "Outline",
    "RecordingShard",
    "Shard",
    "Stage",
    "TensorPart",
    "Weights",
    "place_in",
]
