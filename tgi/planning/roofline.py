"""How fast a model can be on cards: `tgi.device.costs` for the share of a model that one of several has.

Cards wait for each other twice in a layer, and once for the logits: an all-reduce moves 2 (n - 1) / n of its
bytes over a card's links, an all-gather n - 1 times a card's part, and each takes a fixed time besides.
"""

import attrs

from tgi.device.costs import EFFICIENCY, Costs, ModelSize
from tgi.footprint import block_bytes
from tgi.plugins import Card, DeviceSpec, ModelConfig
from tgi.protocol import Bucket

from .weights import described_by_config

COLLECTIVE_SECONDS = 20e-6
"""Of a collective, however small: an estimate."""


@attrs.frozen(kw_only=True)
class Roofline:
    """Of a model on `ranks` cards, in seconds."""

    size: ModelSize
    card: Card
    costs: Costs
    ranks: int
    hidden: float
    """Bytes of the features of one token in all all-reduces of a step."""
    logits: float
    """Bytes of a card's part of one row's logits."""
    collectives: int
    link: float

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        card: Card,
        *,
        device: DeviceSpec,
        link: float,
        ranks: int,
        numbers: int,
        weight_bytes: int,
        item: int,
        cache_item: int,
        block_size: int,
    ) -> "Roofline":
        """`numbers`: weights that a rank keeps; `item`: bytes of a number that is in neither these nor the
        KV cache."""
        size = ModelSize(
            parameters=numbers,
            weight_bytes=weight_bytes,
            kv_bytes=block_bytes(described_by_config(config, ranks, item, cache_item).groups, 1),
            width=config.num_layers * config.num_heads * config.head_dim / ranks,
            vocabulary=config.vocab_size,
        )
        return cls(
            size=size,
            card=card,
            costs=device.step_costs(size, card, block_size),
            ranks=ranks,
            hidden=2 * config.num_layers * config.hidden_size * item,
            logits=config.vocab_size / ranks * item,
            collectives=2 * config.num_layers + 1,
            link=link,
        )

    @property
    def floor(self) -> float:
        """Least seconds of a step: the weights are read once, at the peak rate."""
        return self.size.weight_bytes / self.card.bandwidth

    def bound(self, rows: int, context: int) -> float:
        """Least seconds of a decode step of rows with so many tokens each, at peak rates."""
        read = self.size.weight_bytes + rows * context * self.size.kv_bytes
        return max(read / self.card.bandwidth, 2 * rows * self.size.parameters / self.card.flops)

    def seconds(self, bucket: Bucket) -> float:
        """That a step of this shape is expected to take."""
        return self.costs.seconds(bucket) + self._waiting(bucket)

    def _waiting(self, bucket: Bucket) -> float:
        if self.ranks == 1:
            return 0.0
        others = self.ranks - 1
        reduced = 2 * others / self.ranks * bucket.rows * bucket.tokens * self.hidden
        moved = reduced + others * bucket.rows * self.logits
        return self.collectives * COLLECTIVE_SECONDS + moved / (self.link * EFFICIENCY)
