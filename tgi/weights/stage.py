"""A stage of a pipeline: consecutive layers of a model, on ranks of their own."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import add

import attrs

from .shard import Shard


@attrs.frozen
class Stage:
    """Stage `number` of a pipeline, or the only one."""

    number: int = 0
    layers: tuple[int, ...] = ()
    """Number of layers of each stage; empty for a single stage with all layers."""

    @property
    def count(self) -> int:
        """Number of stages."""
        return max(len(self.layers), 1)

    @property
    def first(self) -> bool:
        """Whether it has what comes before the layers, such as the embedding."""
        return self.number == 0

    @property
    def last(self) -> bool:
        """Whether it has what comes after the layers, such as the head, and chooses the tokens."""
        return self.number == self.count - 1

    def numbers(self, count: int) -> range:
        """Return the numbers of its layers, of a model that has `count`."""
        if not self.layers:
            return range(count)
        assert sum(self.layers) == count, f"{count} layers, and the stages have {self.layers}"
        begin = sum(self.layers[: self.number])
        return range(begin, begin + self.layers[self.number])


def place_in(world: Shard, layers: tuple[int, ...]) -> tuple[Shard, Stage]:
    """Return the place of one of the ranks of all stages, those of the first stage first; `layers` is
    `Stage.layers`."""
    shards = world.size // max(len(layers), 1)
    return Shard(world.rank % shards, shards), Stage(world.rank // shards, layers)


@attrs.frozen(kw_only=True)
class LayerSizes:
    """Bytes of the weights of a model, by the place that they have in it."""

    before: int
    """Bytes before the layers. A step reads little of them."""
    layers: Sequence[int]
    """Bytes of each layer."""
    after: int
    """Bytes after the layers."""

    def divide(self, stages: int) -> tuple[int, ...]:
        """Return the number of layers of each of at most as many stages as there are layers.

        The stage that reads most in a step reads as little as possible, since all others wait for it. Of
        such divisions, it is the most even one among those whose greatest stage keeps least.
        """
        reads, _ = self._divide(stages, lambda read, _: read, max)
        keeps, _ = self._divide(stages, lambda read, kept: kept if read <= reads else math.inf, max)

        def square(read: int, kept: int) -> float:
            return read**2 if read <= reads and kept <= keeps else math.inf

        return self._divide(stages, square, add)[1]

    def _divide(
        self,
        stages: int,
        cost: Callable[[int, int], float],
        joined: Callable[[float, float], float],
    ) -> tuple[float, tuple[int, ...]]:
        """Return the least cost of a division, and the division.

        `cost` maps the bytes that a stage reads and those that it keeps to its cost, and `joined` the costs
        of two parts to that of both.
        """
        count, ends = len(self.layers), [0, *accumulate(self.layers)]
        best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
        for stage in range(stages):
            before, after = self.before * (stage == 0), self.after * (stage == stages - 1)
            longer = {}
            for end in range(stage + 1, count - (stages - stage - 1) + 1):
                longer[end] = min(
                    (joined(known, cost(size, before + size)), (*counts, end - begin))
                    for begin, (known, counts) in best.items()
                    if begin < end
                    for size in (ends[end] - ends[begin] + after,)
                )
            best = longer
        return best[count]
