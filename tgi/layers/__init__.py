"""The public building blocks of models. They take their weights from a checkpoint and run on any device."""

from tgi.device.batch import Batch

from .alibi import alibi_slopes
from .attention import Attention
from .build import Build
from .gated import GatedDecoder, GatedLayer, GatedMLP, SelfAttention
from .linear import ColumnLinear, Embedding, GroupedQKV, Head, RowLinear
from .norm import LayerNorm, RMSNorm
from .rotary import Rotary

__all__ = [
    "Attention",
    "Batch",
    "Build",
    "ColumnLinear",
    "Embedding",
    "GatedDecoder",
    "GatedLayer",
    "GatedMLP",
    "GroupedQKV",
    "Head",
    "LayerNorm",
    "RMSNorm",
    "Rotary",
    "RowLinear",
    "SelfAttention",
    "alibi_slopes",
]
