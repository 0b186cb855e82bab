"""Cost of a step on a card, by a roofline: seconds as a function of its shape.

The linear layers take as long as reading the weights or as multiplying, whichever is longer. In decode,
attention reads the keys and values of every block, and maps rows to blocks and back by two matrix products on
devices that do so; in prefill, it multiplies with them. The sampler goes over the logits. All of this runs at
EFFICIENCY of the peak rates, and a step takes a fixed time besides. For one row of four models in bfloat16,
that is within some 7 % of the published rates on the cards that were compared.
"""

from typing import Any

import attrs
import numpy as np

from tgi.plugins.device import REFERENCE, Card
from tgi.protocol import Bucket

EFFICIENCY = 0.87
"""Share of a card's peak rates that steps reach."""
SAMPLER_PASSES = 16
"""Number of times the sampler goes over all logits: an estimate, mostly for sorting."""


@attrs.frozen(kw_only=True)
class ModelSize:
    """Sizes of the part of a model that is on one card."""

    parameters: float
    """Number of weights that a token is multiplied with."""
    weight_bytes: float
    """Bytes of these weights."""
    kv_bytes: float
    """Bytes of the keys and values of one token in all layers."""
    width: float
    """Layers x query heads x size of a head."""
    vocabulary: int
    """Number of token ids."""


LLAMA_8B = ModelSize(
    parameters=8.03e9,
    weight_bytes=2 * 8.03e9,
    kv_bytes=2 * 2 * 32 * 8 * 128,
    width=32 * 32 * 128,
    vocabulary=128_256,
)
"""Llama-3.1-8B in bfloat16."""


@attrs.frozen(kw_only=True)
class Costs:
    """Costs of the steps of a model on a card. All times are in seconds."""

    start: float
    """Fixed time of a step."""
    weights: float
    """Time to read the weights once."""
    token: float
    """Time to multiply one token with the weights."""
    pair: float
    """Time of attention of one query token to one token."""
    mapping: float
    """Time to map a row to one block and back; 0 on a device that reads blocks where they are."""
    block: float
    """Time to read the keys and values of a block."""
    row: float
    """Time to sample one row."""
    block_size: int
    """Tokens in a block."""

    @classmethod
    def of(cls, model: ModelSize = LLAMA_8B, card: Card = REFERENCE, block_size: int = 128) -> "Costs":
        """Return the costs of a model on a card that maps rows to blocks by matrix products."""
        flops, bandwidth = card.flops * EFFICIENCY, card.bandwidth * EFFICIENCY
        pair = 4 * model.width / flops
        return cls(
            start=card.start,
            weights=model.weight_bytes / bandwidth,
            token=2 * model.parameters / flops,
            pair=pair,
            mapping=pair,  # each of the two products multiplies as much as attention to one token
            block=block_size * model.kv_bytes / bandwidth,
            row=4 * SAMPLER_PASSES * model.vocabulary / bandwidth,
            block_size=block_size,
        )

    def decode(self, rows: Any, blocks: Any) -> Any:
        """Return the time of a step with this many rows and block references in all: numbers or arrays."""
        linear = np.maximum(self.weights, rows * self.token)
        return self.start + linear + rows * self.row + blocks * (self.block + rows * self.mapping)

    def prefill(self, rows: Any, tokens: Any, context: Any) -> Any:
        """Return the time of a step whose rows have this many tokens and blocks of context each.

        Arguments are numbers or arrays. Attention is causal.
        """
        linear = np.maximum(self.weights, rows * tokens * self.token)
        attention = tokens * (context * self.block_size + tokens / 2) * self.pair + context * self.block
        return self.start + linear + rows * (self.row + attention)

    def seconds(self, bucket: Bucket) -> float:
        """Return the time of a step of a bucket's shape."""
        if bucket.prefill:
            return float(self.prefill(bucket.rows, bucket.tokens, bucket.blocks))
        return float(self.decode(bucket.rows, bucket.blocks))
