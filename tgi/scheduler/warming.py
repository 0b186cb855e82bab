"""The warm-up: ordinary steps of each bucket before the server is ready, so that no request compiles one.

The largest buckets come first, as they need the most memory. The sampler's programs depend on the number of
rows alone: buckets with as many rows share them.
"""

import math
from collections.abc import Callable, Iterable

import attrs
import msgspec
import trio

from tgi.executor import EngineError, Executor
from tgi.protocol import SAMPLERS, Bucket, Step, ints

from .buckets import StepCosts
from .observe import StepObserver, shape_of

MEASURED = 3
"""Steps of one sequence by which the warm-up measures the speed."""
OnBucket = Callable[[int, int, str], None]
"""Called before each bucket with the number done, the total, and a description of the next bucket."""


@attrs.define(eq=False)
class WarmUp:
    """Progress of a warm-up."""

    executor: Executor
    observer: StepObserver
    costs: StepCosts
    """Learns from every step."""
    on_bucket: OnBucket
    timeout: float = math.inf
    """Seconds after which a bucket counts as hanging."""
    padded: bool = True
    """Whether steps run as programs of fixed shape, so that all of the sampler's need a step."""
    loras: bool = False
    """Whether rows may have LoRA adapters, for which programs of fixed shape are others."""
    done: set[Bucket] = attrs.field(factory=set)
    """Buckets that are warm."""
    seconds: float = 0.0
    """Time that the model's programs of these took together."""
    sampler_seconds: float = 0.0
    """Time that the sampler's further programs took together."""

    def affordable(self, budget: float) -> float:
        """Estimate how many buckets, those done included, `budget` seconds are enough for."""
        if not self.seconds:
            return math.inf
        left = budget - self.seconds - self.sampler_seconds
        return len(self.done) + left / (self.seconds / len(self.done))

    async def run(self, buckets: Iterable[Bucket], total: int | None = None) -> None:
        """Warm up the buckets that are not warm yet, of `total` in all.

        Raises EngineError that names a bucket that takes too long.
        """
        left = [bucket for bucket in dict.fromkeys(buckets) if bucket not in self.done]
        total = len(self.done) + len(left) if total is None else total
        for bucket in left:
            sampled = not self.padded or any(other.rows == bucket.rows for other in self.done)
            first, *more = warm_up_steps(bucket, sampled=sampled)
            self.on_bucket(len(self.done), total, shape_of(first))
            self.seconds += await self._run(first, total)
            if self.loras and self.padded:
                self.seconds += await self._run(with_loras(first), total)
            for step in more:
                self.sampler_seconds += await self._run(step, total)
            self.done.add(bucket)

    async def measure(self) -> None:
        """Let `costs` forget the first steps, which are slow, and learn from some of one sequence."""
        decode = min(bucket for bucket in self.done if not bucket.prefill)
        if not self.padded:
            decode = Bucket(1, 1, 1)
        step = warm_up_step(decode)
        await self._run(step, len(self.done))  # a shape that is new is slow
        self.costs.step = 0.0
        for _ in range(MEASURED):
            await self._run(step, len(self.done))

    async def _run(self, step: Step, total: int) -> float:
        """Run a step, and return how long it took."""
        began = trio.current_time()
        with trio.move_on_after(self.timeout) as scope:
            await self.executor.send(step)
            result = await self.executor.receive()
            self.observer.device(step, result, "warm-up")
            self.costs.add(len(step.tokens) // 4, step.bucket.prefill, result.seconds)
        if scope.cancelled_caught:
            place = f"{shape_of(step)}, bucket {len(self.done) + 1} of {total}"
            raise EngineError(
                f"the warm-up hangs: {place}, has taken more than {self.timeout:g} s. If the log shows no "
                "reason, a larger --warmup-timeout gives it more, and smaller --max-batch-prefill-tokens, "
                "--max-batch-size or --max-total-tokens make buckets that compile faster"
            )
        return trio.current_time() - began


def warm_up_steps(bucket: Bucket, *, sampled: bool = False) -> list[Step]:
    """Return the steps that run all programs of a bucket; those of the sampler may be warm (`sampled`)."""
    first = warm_up_step(bucket)
    more = range(1, 1 if sampled else len(SAMPLERS))
    return [first, *(msgspec.structs.replace(first, least_sampler=sampler) for sampler in more)]


def with_loras(step: Step) -> Step:
    """Return the step with the LoRA adapter of the first slot for every row."""
    return msgspec.structs.replace(step, loras=bytes(len(step.lanes)))


def warm_up_step(bucket: Bucket) -> Step:
    """Make a step that fills a bucket as far as its blocks allow; block tables stay empty (block 0)."""
    prefill = bucket.prefill
    rows = range(bucket.rows if prefill else min(bucket.rows, bucket.blocks))
    start = 0 if prefill else 1
    return Step(
        number=0,
        bucket=bucket,
        lanes=ints(rows),
        starts=ints([start] * len(rows)),
        lengths=ints([bucket.tokens] * len(rows)),
        samples=ints([1] * len(rows)),
        draws=ints([0] * len(rows)),
        tokens=ints([0 if prefill else -1] * (len(rows) * bucket.tokens)),
    )
