"""The warm-up: an ordinary step for every bucket before there are requests, so that none of these compiles.

The largest buckets come first: what they need is the most that any step does.
"""

import math
from collections.abc import Callable, Iterable

import attrs
import trio

from tgi.executor import EngineError, Executor
from tgi.protocol import Step, ints

from .buckets import Bucket
from .observe import StepObserver, shape_of

Report = Callable[[int, int, str], None]
"""Gets how many buckets are done, of how many, and the name of the next."""


@attrs.define(eq=False)
class WarmUp:
    """Knows what has been warmed up."""

    executor: Executor
    observer: StepObserver
    report: Report
    timeout: float = math.inf
    """Seconds that a bucket may take."""
    done: set[Bucket] = attrs.field(factory=set)
    seconds: float = 0.0
    """That all these have taken."""

    def affordable(self, budget: float) -> float:
        """How many buckets so many seconds are enough for in all, if the others take as long as these."""
        if not self.seconds:
            return math.inf
        return len(self.done) + (budget - self.seconds) / (self.seconds / len(self.done))

    async def run(self, buckets: Iterable[Bucket], total: int | None = None) -> None:
        """Warm up those that are not yet, of `total` in all.

        Raises EngineError naming the one that takes too long.
        """
        left = [bucket for bucket in dict.fromkeys(buckets) if bucket not in self.done]
        total = len(self.done) + len(left) if total is None else total
        for bucket in left:
            step = warm_up_step(bucket)
            self.report(len(self.done), total, shape_of(step))
            began = trio.current_time()
            await self._run(step, total)
            self.seconds += trio.current_time() - began
            self.done.add(bucket)

    async def _run(self, step: Step, total: int) -> None:
        with trio.move_on_after(self.timeout) as scope:
            await self.executor.send(step)
            self.observer.warmed_up(step, await self.executor.receive())
        if scope.cancelled_caught:
            place = f"{shape_of(step)}, bucket {len(self.done) + 1} of {total}"
            raise EngineError(
                f"the warm-up hangs: {place}, has taken more than {self.timeout:g} s. If the log shows no "
                "reason, a larger --warmup-timeout gives it more, and smaller --max-batch-prefill-tokens, "
                "--max-batch-size or --max-total-tokens make buckets that compile faster"
            )


def warm_up_step(bucket: Bucket) -> Step:
    """A step of this shape, as full as its blocks allow; block tables point to the padding block."""
    prefill = bucket.prefill
    rows = range(bucket.rows if prefill else min(bucket.rows, bucket.blocks))
    start = 0 if prefill else 1
    return Step(
        number=0,
        prefill=prefill,
        bucket_rows=bucket.rows,
        bucket_tokens=bucket.tokens,
        bucket_blocks=bucket.blocks,
        lanes=ints(rows),
        starts=ints([start] * len(rows)),
        draws=ints([0] * len(rows)),
        tokens=ints([0] * (bucket.rows * bucket.tokens)) if prefill else b"",
        lengths=ints([bucket.tokens] * bucket.rows) if prefill else b"",
    )
