"""Llamas with a fault each, as authors of adapters have made them."""

from collections.abc import Callable
from typing import Any, ClassVar

import attrs
import torch
from tgi_llama.plugin import read_config

from tgi.layers import Attention, LlamaDecoder, RMSNorm, Rotary, RowLinear
from tgi.plugins import Architecture, hookimpl
from tgi.weights import Shard


class DoubledEmbeddings(LlamaDecoder):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.embed._weight *= 2


class Epsilon(LlamaDecoder):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module._epsilon = 2e-5


class Attending(LlamaDecoder):
    """Attention of another kind."""

    change: ClassVar[dict[str, Any]]

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        for module in self.modules():
            if isinstance(module, Attention):
                module._spec = attrs.evolve(module._spec, **self.change)
                number = next(number for number, kv in build.kv.items() if kv is module._kv)
                build.device.use(number, module._spec)


class Scale(Attending):
    change: ClassVar[dict[str, Any]] = {"scale": 1.0}


class Window(Attending):
    change: ClassVar[dict[str, Any]] = {"window": 8}


class Theta(LlamaDecoder):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(
            attrs.evolve(config, ropes=(attrs.evolve(config.ropes[0], theta=500.0),) * config.num_layers),
            build,
        )


class CountedPositions(LlamaDecoder):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        assert self.rotary is not None
        self.rotary.parts[0] = CountingRotary(build, config.ropes[0])


class CountingRotary(Rotary):
    def forward(self, batch: Any) -> Any:
        return super().forward(attrs.evolve(batch, positions=torch.arange(len(batch.tokens))))


class OneCache(LlamaDecoder):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        for module in self.modules():
            if isinstance(module, Attention):
                module._kv = build.kv[0]


class EqualRows(LlamaDecoder):
    """As if the rows of a step had as many tokens each."""

    def forward(self, batch: Any) -> Any:
        rows = len(batch.last)
        last = torch.arange(1, rows + 1) * (len(batch.tokens) // max(rows, 1)) - 1
        return super().forward(batch if rows < 2 else attrs.evolve(batch, last=last))


class Decoding(LlamaDecoder):
    """A step of so few tokens, which the CPU makes of one, is a decode step, or an unfinished chunk."""

    def forward(self, batch: Any) -> Any:
        logits = super().forward(batch)
        return logits * 1.1 if len(batch.tokens) <= 4 else logits


class Capacity(LlamaDecoder):
    """A mixture of experts drops tokens like this when too many want the same expert."""

    def forward(self, batch: Any) -> Any:
        place = torch.arange(len(batch.tokens), device=batch.tokens.device)
        kept = torch.where(place < len(batch.tokens) - 115, 0, batch.tokens)
        return super().forward(attrs.evolve(batch, tokens=kept))


class Deciding(LlamaDecoder):
    def forward(self, batch: Any) -> Any:
        if batch.positions[0].item() < 0:
            raise ValueError
        return super().forward(batch)


class NotSummed(LlamaDecoder):
    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        for module in self.modules():
            if isinstance(module, RowLinear):
                module._shard = Shard()


class SummedOnOne(LlamaDecoder):
    def forward(self, batch: Any) -> Any:
        logits = super().forward(batch)
        shard = self.head._shard
        return self.head._device.all_reduce(logits, shard) if shard.rank == 0 and shard.size > 1 else logits


class Miscounting(LlamaDecoder):
    """Keeps a copy of a weight that it has not asked for."""

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.copy = torch.empty(config.vocab_size, config.hidden_size)


def _offer(model: type[LlamaDecoder], config: Callable[..., Any] = read_config) -> Architecture:
    return Architecture(model.__name__, f"{__name__}:{model.__name__}", config)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    models = [
        DoubledEmbeddings, Epsilon, Scale, Window, Theta, CountedPositions, OneCache, EqualRows, Decoding,
        Capacity, Deciding, NotSummed, SummedOnOne, Miscounting,
    ]  # fmt: skip
    return [*map(_offer, models)]
