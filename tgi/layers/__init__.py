"""The public building blocks of models. They take their weights from a checkpoint and run on any device."""

from tgi.device import Batch

from .attention import Attention
from .build import Build
from .linear import ColumnLinear, Embedding, Head, RowLinear
from .norm import RMSNorm
from .rotary import Rotary

__all__ = [
    "Attention",
    "Batch",
    "Build",
    "ColumnLinear",
    "Embedding",
    "Head",
    "RMSNorm",
    "Rotary",
    "RowLinear",
]
