"""An executor without ranks: a step is done as soon as its result is asked for, with tokens from a script.

It stands for the whole engine below the scheduler where HTTP or the scheduler's own cost is what matters.
"""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import trio

from tgi.protocol import LaneParams, Result, Step, floats, ints, unpack_ints

Script = Callable[[LaneParams, int], int]
"""Returns the token for a row's parameters and the index of the token."""


def counting(vocab_size: int) -> Script:
    """Make a script of ids that count up from the row's seed, so that each seed has a text of its own.

    A seed beyond the vocabulary, such as one that the server draws, counts from the lower half of the ids: no
    text meets the end token, the id before the first, by chance.
    """

    def script(params: LaneParams, draw: int) -> int:
        seed = params.sampling.seed
        return ((seed if seed < vocab_size else 1 + seed % (vocab_size // 2)) + draw) % vocab_size

    return script


class FakeExecutor:
    """A `tgi.executor.Executor`. Token t has the log-probability -(t % 8) / 8, and t + 1, t + 2 follow it.

    Where the script's token may not come, because of a mask or of `min_tokens`, the lowest that may does. A
    row with the LoRA adapter in slot n gets the token n + 1 after the script's.
    """

    def __init__(self, script: Script, step_seconds: float = 0.0) -> None:
        self.script = script
        self.step_seconds = step_seconds
        self.steps = 0
        """Number of results handed out."""
        self._pending: deque[Step] = deque()
        self._params: dict[int, LaneParams] = {}

    async def send(self, step: Step) -> None:
        """Take a step."""
        self._pending.append(step)

    async def load_lora(self, _slot: int, folder: str) -> str:
        """Take an adapter whose folder exists."""
        await trio.lowlevel.checkpoint()
        return "" if Path(folder).is_dir() else f"there is no folder {folder}"

    async def receive(self) -> Result:
        """Return the result of the oldest step, after `step_seconds`."""
        await trio.sleep(self.step_seconds)
        self.steps += 1
        return self.execute(self._pending.popleft())

    def execute(self, step: Step) -> Result:
        """Return the result of a step at once."""
        for params in step.params:
            self._params[params.lane] = params
        columns = [unpack_ints(column).tolist() for column in (step.lanes, step.samples, step.draws)]
        columns.append(unpack_ints(step.loras).tolist() or [-1] * len(columns[0]))
        sampled = [
            (lane, first + later, slot)
            for lane, count, first, slot in zip(*columns, strict=True)
            for later in range(count)
        ]
        masks = _masks(step)
        tokens = [
            self._token(self._params[lane], draw, slot, masks.get(index))
            for index, (lane, draw, slot) in enumerate(sampled)
        ]
        targets = [target for target in unpack_ints(step.targets).tolist() if target >= 0]
        top_tokens, top_logprobs = _followed(tokens, step.top)
        prompt_top_tokens, prompt_top_logprobs = _followed(targets, step.prompt_top)
        return Result(
            number=step.number,
            tokens=ints(tokens),
            logprobs=floats(map(logprob, tokens)),
            top_tokens=top_tokens,
            top_logprobs=top_logprobs,
            prompt_logprobs=floats(map(logprob, targets)),
            prompt_top_tokens=prompt_top_tokens,
            prompt_top_logprobs=prompt_top_logprobs,
            seconds=self.step_seconds,
        )

    def _token(self, params: LaneParams, draw: int, slot: int, allowed: frozenset[int] | None) -> int:
        token = self.script(params, draw) + 1 + slot
        barred = set(params.sampling.ends) if draw < params.sampling.min_tokens else set()
        if token not in barred and (allowed is None or token in allowed):
            return token
        return min((allowed or set(range(len(barred) + 1))) - barred)


def _masks(step: Step) -> dict[int, frozenset[int]]:
    """Return the tokens that each masked sample may give."""
    rows = unpack_ints(step.masked).tolist()
    bits = np.unpackbits(np.frombuffer(step.masks, np.uint8), bitorder="little").reshape(len(rows) or 1, -1)
    return {row: frozenset(np.flatnonzero(mask).tolist()) for row, mask in zip(rows, bits, strict=False)}


def _followed(tokens: list[int], count: int) -> tuple[bytes, bytes]:
    """Return each token and the ids that follow it, `count` in all, as two columns."""
    pairs = [(token + place, logprob(token) - place) for token in tokens for place in range(count)]
    return ints(token for token, _ in pairs), floats(value for _, value in pairs)


def logprob(token: int) -> float:
    """Return the log-probability that a token is reported with."""
    return -(token % 8) / 8
