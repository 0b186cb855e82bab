"""Costs of a model on a card: the time of its steps, and the memory that they take beside the weights.

The time is a roofline: seconds as a function of the step's shape. The linear layers take as long as reading
the weights or as multiplying, whichever is longer. In decode, attention reads the keys and values of every
block, and maps rows to blocks and back by two matrix products on devices that do so; in prefill, it
multiplies with them. The sampler goes over the logits. All of this runs at EFFICIENCY of the peak rates, and
a step takes a fixed time besides. For one row of four models in bfloat16, that is within some 7 % of the
published rates on the cards that were compared.
"""

from typing import Any

import attrs
import numpy as np

from tgi.plugins.device import REFERENCE, Card
from tgi.protocol import NO_LORAS, Bucket, Described, Load, LoraSlots

EFFICIENCY = 0.87
"""Share of a card's peak rates that steps reach."""
SAMPLER_PASSES = 16
"""Number of times the sampler goes over all logits: an estimate between the 7 times of greedy rows and the 90
of plain draws on a simulated card."""
PROMPT_SLICE = 64
"""Positions of a prompt whose logits exist at once."""
SAMPLER_BYTES = 40
"""Bytes per logit that the sampler needs with everything on: float32 logits, scores and their copies, sorted
values with int64 indices."""
TABLE_BYTES = 4 + 4 + 4 + 1
"""Bytes that the sampler keeps for each lane and token of the vocabulary."""
GATHERED = 4096
"""Maximum KV blocks gathered at once in a decode step; larger steps loop. 2.3 GiB for a Llama of 8 billion
parameters."""


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
    expert_bytes: float = 0
    """Bytes of the weights of experts, among all."""
    expert_share: float = 1.0
    """Share of the experts that a token goes through."""

    def read_bytes(self, tokens: int) -> float:
        """Return the bytes of the weights that a step of that many tokens reads, which choose evenly."""
        unread: float = (1 - self.expert_share) ** tokens
        return self.weight_bytes - self.expert_bytes * unread


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
    """Time to read all weights once."""
    experts: float = 0.0
    """Time to read those of experts, among them."""
    expert_share: float = 1.0
    """Share of the experts that a token goes through."""
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
            experts=model.expert_bytes / bandwidth,
            expert_share=model.expert_share,
            token=2 * model.parameters / flops,
            pair=pair,
            mapping=pair,  # each of the two products multiplies as much as attention to one token
            block=block_size * model.kv_bytes / bandwidth,
            row=4 * SAMPLER_PASSES * model.vocabulary / bandwidth,
            block_size=block_size,
        )

    def decode(self, rows: Any, blocks: Any) -> Any:
        """Return the time of a step with this many rows and block references in all: numbers or arrays."""
        linear = self._linear(rows)
        return self.start + linear + rows * self.row + blocks * (self.block + rows * self.mapping)

    def prefill(self, rows: Any, tokens: Any, context: Any) -> Any:
        """Return the time of a step whose rows have this many tokens and blocks of context each.

        Arguments are numbers or arrays. Attention is causal.
        """
        linear = self._linear(rows * tokens)
        attention = tokens * (context * self.block_size + tokens / 2) * self.pair + context * self.block
        return self.start + linear + rows * (self.row + attention)

    def _linear(self, tokens: Any) -> Any:
        """Return the time of the linear layers; tokens choose experts evenly."""
        unread = self.experts * (1 - self.expert_share) ** tokens if self.experts else 0.0
        return np.maximum(self.weights - unread, tokens * self.token)

    def seconds(self, bucket: Bucket) -> float:
        """Return the time of a step of a bucket's shape."""
        if bucket.prefill:
            return float(self.prefill(bucket.rows, bucket.tokens, bucket.blocks))
        return float(self.decode(bucket.rows, bucket.blocks))


def workspace_bytes(model: Described, load: Load) -> int:
    """Estimate from above the bytes that the largest step needs, the sampler and its tables included.

    Alive at once are: per query token six vectors of the hidden size (three more in a pipeline: received
    features, once more while they arrive, and those to be sent) and three of the widest linear layer;
    the logits of each lane's row, or of a slice of a prompt; on a device that gathers keys and values those
    of one layer, with two float32 scores per head, and per block three vectors of all heads; per listed block
    of each layer group two maps to the rows, and two masks and distances in float32; per pair of a prompt's
    mask a distance, a bool, a float32, and a number of the model's dtype. Where scores are changed, a prompt
    also has each head's scores twice in float32 and once in the model's dtype, and the distances once more.
    With LoRA adapters, a query token has their intermediate features twice, the mask of these, and one more
    vector of the widest layer twice.
    """
    item, heads, lanes, block_size = model.item, model.heads, load.lanes, load.block_size
    tokens = max(load.prefill_tokens, lanes)
    vectors = 6 + 3 * (len(load.stages) > 1)
    activations = tokens * (vectors * model.hidden_size + 3 * model.widest) * item
    if load.loras.count:
        mask = load.loras.count * load.loras.rank
        activations += tokens * (2 * model.lora_columns + mask + 2 * model.widest) * item
    logits = max(lanes, PROMPT_SLICE) * model.vocab_size * (item + SAMPLER_BYTES)
    tables = (lanes + 1) * model.vocab_size * TABLE_BYTES
    head_dim = max(group.head_dim for group in model.groups)
    kept = max(2 * group.kv_heads * group.head_dim for group in model.groups) * item
    of_block = block_size * (kept + 2 * 4 * heads) + 3 * heads * head_dim * item
    of_map = len(model.groups) * (lanes * (4 + item) + 3 * 4 * block_size)
    of_pair = 4 + 1 + 4 + item + (4 + heads * (4 + 4 + item) if model.changes_scores else 0)
    return (
        activations
        + logits
        + tables
        + load.attention.gathered_blocks * of_block
        + load.attention.listed_blocks * of_map
        + load.attention.prefill_pairs * of_pair
    )


def graph_bytes(layers: int, loras: LoraSlots = NO_LORAS) -> int:
    """Return the bytes that the graphs of a bucket keep if their tensors are not cached.

    Each keeps 10 MiB for a Llama of 32 layers; rows with LoRA adapters have graphs of their own. vLLM, too,
    plans with 10 MB for 8 billion parameters, and with 20 MB for 70 billion in 80 layers.
    """
    return (2 if loras.count else 1) * layers * (10 << 20) // 32
