"""The building blocks of models. They read their weights from a checkpoint and run on any device."""

from tgi.device.batch import Batch

from .attention import Attention, alibi_slopes
from .build import Build
from .linear import ColumnLinear, Embedding, GroupedQKV, Head, RowLinear
from .llama import MLP, LlamaDecoder, LlamaLayer, SelfAttention
from .moe import MixtureOfExperts
from .norm import LayerNorm, RMSNorm
from .rotary import Rotary

__all__ = [
    "MLP",
    "Attention",
    "Batch",
    "Build",
    "ColumnLinear",
    "Embedding",
    "GroupedQKV",
    "Head",
    "LayerNorm",
    "LlamaDecoder",
    "LlamaLayer",
    "MixtureOfExperts",
    "RMSNorm",
    "Rotary",
    "RowLinear",
    "SelfAttention",
    "alibi_slopes",
]
