"""The messages between the server process and the one that computes embeddings or scores.

Start-up:  Opened
Serving:   PoolBatch -> Vectors, in order
The end:   the server closes the socket, and the process exits. Failed comes instead of any report.
"""

from typing import TypeAlias

import msgspec

from .messages import Failed


class Pooling(msgspec.Struct, frozen=True, kw_only=True):
    """A model, and the way from its features to a vector for a text, or a score for a pair of texts."""

    folder: str
    ranks: bool = False
    """The model is a reranker: it gives a pair of texts a score, and no embeddings."""
    modes: tuple[str, ...] = ("mean",)
    """Names in `tgi.worker.pool.POOLS`, whose vectors are joined."""
    dense: tuple[str, ...] = ()
    """Folders of linear layers that follow, beside the model."""
    dtype: str = "float32"
    threads: int = 0
    """CPU threads; 0: one per core."""
    max_tokens: int = 512
    """Length of the longest text that the model was made for."""
    types: bool = True
    """A model that knows types of tokens gets them."""
    lowers: bool = False
    """Texts are turned to lower case first."""
    prompts: dict[str, str] = {}
    """Texts that clients put before theirs by name."""
    default_prompt: str | None = None
    dimensions: tuple[int, ...] = ()
    """Lengths to which a vector may be cut; empty: any."""


class PoolBatch(msgspec.Struct, frozen=True):
    """Texts as token ids, and the types of these tokens: 1 for those of the second of a pair."""

    ids: list[list[int]]
    types: list[list[int]]


class Opened(msgspec.Struct, tag=True, frozen=True):
    """The model is loaded; its vectors have `size` numbers."""

    size: int


class Vectors(msgspec.Struct, tag=True, frozen=True):
    """The vectors of a batch, as float32, one after another."""

    data: bytes


PoolReport: TypeAlias = Opened | Vectors | Failed
