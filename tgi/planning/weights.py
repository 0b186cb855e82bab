"""How large the weights of a model are, by the headers of its files or by what the architecture says."""

import json
import math
from pathlib import Path

import attrs

from tgi.plugins import ConfigError, ModelConfig
from tgi.protocol import CacheGroup, Described

MOST_HEADER = 100 << 20
"""Bytes: that of safetensors itself."""


def rank_numbers(config: ModelConfig, shapes: dict[str, tuple[int, ...]], ranks: int) -> int:
    """How many numbers a rank keeps; the one that keeps most.

    `shapes`: of the tensors in the checkpoint, as far as they are known. Raises ConfigError.
    """
    weights = config.weights()
    if weights:
        return sum(attrs.evolve(w, shape=shapes.get(w.name, w.shape)).size(ranks) for w in weights)
    if not shapes:
        raise ConfigError(
            "the size of the weights is not known: no *.safetensors, and no word of the adapter"
        )
    return -(-sum(map(math.prod, shapes.values())) // ranks)


def rank_bytes(config: ModelConfig, shapes: dict[str, tuple[int, ...]], ranks: int, item: int) -> int:
    """The same in bytes: `item` of a number, but one where linear layers are in fp8."""
    every = rank_numbers(config, shapes, ranks) * item
    if not config.fp8:
        return every
    linear = [w for w in config.weights() if len(w.shape) == 2 and config.vocab_size not in w.shape]
    return every - (item - 1) * sum(weight.size(ranks) for weight in linear)


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of all tensors in *.safetensors, by their headers. Raises ConfigError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            header = _header(path)
            shapes |= {name: tuple(header[name]["shape"]) for name in header if name != "__metadata__"}
        except (TypeError, KeyError) as error:
            raise ConfigError(f"{path} is no safetensors file: its header makes no sense") from error
    return shapes


def _header(path: Path) -> dict[str, dict[str, list[int]]]:
    """The format: length of the header in 8 bytes, little-endian, and a JSON object."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, MOST_HEADER)))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is no safetensors file: {error}") from error
    if not isinstance(header, dict):
        raise ConfigError(f"{path} is no safetensors file: its header is no object")
    return header


def described_by_config(config: ModelConfig, ranks: int, item: int, cache_item: int) -> Described:
    """Return the part of a description that `tgi.footprint` needs, as far as config.json tells."""
    heads = -(-config.num_kv_heads // ranks)
    group = CacheGroup(
        window=config.window,
        layers=list(range(config.num_layers)),
        kv_heads=heads,
        all_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        token_bytes=2 * config.num_layers * heads * config.head_dim * cache_item,
    )
    return Described(
        tensors=[],
        groups=[group],
        possible_ranks=[],
        item=item,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        heads=config.num_heads // ranks,
        widest=-(-config.widest // ranks),
        changes_scores=config.changes_scores,
    )
