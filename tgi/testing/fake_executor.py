"""An executor without ranks: a step is done as soon as its result is asked for, with tokens from a script.

It stands for the whole engine below the scheduler where HTTP or the scheduler's own cost is what matters.
"""

from collections import deque
from collections.abc import Callable

import trio

from tgi.protocol import LaneParams, Result, Step, floats, ints, unpack_ints

Script = Callable[[LaneParams, int], int]
"""(what is known of the row, number of the draw) -> the token that is drawn."""


def counting(vocab_size: int) -> Script:
    """Ids that count up from the row's seed, so that each seed has a text of its own."""
    return lambda params, draw: (params.seed + draw) % vocab_size


class FakeExecutor:
    """A `tgi.executor.Executor`. Token t has the log-probability -(t % 8) / 8, and t + 1, t + 2 follow it."""

    def __init__(self, script: Script, step_seconds: float = 0.0) -> None:
        self.script = script
        self.step_seconds = step_seconds
        self.steps = 0
        """Results handed out."""
        self._pending: deque[Step] = deque()
        self._params: dict[int, LaneParams] = {}

    async def send(self, step: Step) -> None:
        """Hand over a step."""
        self._pending.append(step)

    async def receive(self) -> Result:
        """The result of the oldest step, after `step_seconds`."""
        await trio.sleep(self.step_seconds)
        self.steps += 1
        return self._execute(self._pending.popleft())

    def _execute(self, step: Step) -> Result:
        for params in step.params:
            self._params[params.lane] = params
        rows = zip(unpack_ints(step.lanes).tolist(), unpack_ints(step.draws).tolist(), strict=True)
        tokens = [self.script(self._params[lane], draw) for lane, draw in rows if draw >= 0]
        top = [token + place for token in tokens for place in range(step.top)]
        targets = unpack_ints(step.targets).tolist()
        return Result(
            number=step.number,
            tokens=ints(tokens),
            logprobs=floats(map(logprob, tokens)),
            top_tokens=ints(top),
            top_logprobs=floats(logprob(tokens[n // step.top]) - n % step.top for n in range(len(top))),
            prompt_logprobs=floats(logprob(target) if target >= 0 else float("nan") for target in targets),
            seconds=self.step_seconds,
        )


def logprob(token: int) -> float:
    """What a token is reported with."""
    return -(token % 8) / 8
