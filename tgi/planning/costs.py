"""What a step costs on a card, by a roofline: seconds as a function of its shape.

The linear layers take as long as reading the weights or as multiplying, whichever is longer; then attention
reads the keys and values of every block (decode: and maps rows to blocks and back by two matmuls) or
multiplies with them (prefill), and the sampler goes over the logits. All of it at EFFICIENCY of the peaks,
and a fixed time to start the step. For one row that is `floor / 0.87 + 0.8 ms` on gaudi2 and `+ 1.5 ms` on
gaudi3, which is within some 7 % of the published rates of four models in bfloat16.
"""

from typing import Any

import attrs
import numpy as np

from tgi.protocol import Bucket

EFFICIENCY = 0.87
SAMPLER_PASSES = 16
"""How often the sampler goes over all logits: an estimate, most of it for sorting."""


@attrs.frozen
class Card:
    """Peak rates of a generation, as in Intel's Hot Chips 2024 deck."""

    flops: float
    """A second, in bfloat16."""
    bandwidth: float
    """Of HBM: bytes a second."""
    start: float
    """Seconds that a step takes besides."""


CARDS = {"gaudi2": Card(432e12, 2.46e12, 0.8e-3), "gaudi3": Card(1835e12, 3.67e12, 1.5e-3)}


@attrs.frozen(kw_only=True)
class ModelSize:
    """The part of a model that is on one card."""

    parameters: float
    weight_bytes: float
    kv_bytes: float
    """Keys and values of one token in all layers."""
    width: float
    """Layers x query heads x size of a head."""
    vocabulary: int


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
    """Of a model on a card, in seconds."""

    start: float
    weights: float
    """To read them once."""
    token: float
    """To multiply one token with them."""
    pair: float
    """Attention of one query token to one token; the two matmuls that map a row to a block cost the same."""
    block: float
    """To read the keys and values of a block."""
    row: float
    """To sample one."""
    block_size: int

    @classmethod
    def of(cls, model: ModelSize = LLAMA_8B, card: Card = CARDS["gaudi2"], block_size: int = 128) -> "Costs":
        """By the formulas above."""
        flops, bandwidth = card.flops * EFFICIENCY, card.bandwidth * EFFICIENCY
        return cls(
            start=card.start,
            weights=model.weight_bytes / bandwidth,
            token=2 * model.parameters / flops,
            pair=4 * model.width / flops,
            block=block_size * model.kv_bytes / bandwidth,
            row=4 * SAMPLER_PASSES * model.vocabulary / bandwidth,
            block_size=block_size,
        )

    def decode(self, rows: Any, blocks: Any) -> Any:
        """Of a step with so many block references in all; numbers or arrays of them."""
        linear = np.maximum(self.weights, rows * self.token)
        return self.start + linear + rows * self.row + blocks * (self.block + rows * self.pair)

    def prefill(self, rows: Any, tokens: Any, context: Any) -> Any:
        """Of a step whose rows have so many tokens and blocks of context each; attention is causal."""
        linear = np.maximum(self.weights, rows * tokens * self.token)
        attention = tokens * (context * self.block_size + tokens / 2) * self.pair + context * self.block
        return self.start + linear + rows * (self.row + attention)

    def seconds(self, bucket: Bucket) -> float:
        """Of a step of this shape."""
        if bucket.prefill:
            return float(self.prefill(bucket.rows, bucket.tokens, bucket.blocks))
        return float(self.decode(bucket.rows, bucket.blocks))
