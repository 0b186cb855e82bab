"""The warm-up: one ordinary step per bucket before the server is ready, so that no request compiles one.

The largest buckets come first, as they need the most memory.
"""

import math
from collections.abc import Callable, Iterable

import attrs
import trio

from tgi.executor import EngineError, Executor
from tgi.protocol import Bucket, Step, ints

from .buckets import StepCosts
from .observe import StepObserver, shape_of

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
    done: set[Bucket] = attrs.field(factory=set)
    """Buckets that are warm."""
    seconds: float = 0.0
    """Time that they took together."""

    def affordable(self, budget: float) -> float:
        """Estimate how many buckets, those done included, `budget` seconds are enough for."""
        if not self.seconds:
            return math.inf
        return len(self.done) + (budget - self.seconds) / (self.seconds / len(self.done))

    async def run(self, buckets: Iterable[Bucket], total: int | None = None) -> None:
        """Warm up the buckets that are not warm yet, of `total` in all.

        Raises EngineError that names a bucket that takes too long.
        """
        left = [bucket for bucket in dict.fromkeys(buckets) if bucket not in self.done]
        total = len(self.done) + len(left) if total is None else total
        for bucket in left:
            step = warm_up_step(bucket)
            self.on_bucket(len(self.done), total, shape_of(step))
            began = trio.current_time()
            await self._run(step, total)
            self.seconds += trio.current_time() - began
            self.done.add(bucket)

    async def _run(self, step: Step, total: int) -> None:
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
