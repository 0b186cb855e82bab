"""`commit` applies a step's result: append tokens, check for ends, free blocks, send events to clients.

A synchronous function of plain data, like `plan`; sending is `send_nowait` on channels without a bound.
"""

import struct
import time
from collections.abc import Iterable
from itertools import islice, takewhile

import numpy as np

from tgi.protocol import SAMPLERS, Result, unpack_floats, unpack_ints

from .schedule import PlannedStep, Row, Schedule
from .sequence import Sequence, State, Token

Top = list[tuple[int, float]]
_DIGITS = np.arange(5, 9)[:, None]
"""Numbers of digits after the first one, [4, 1]."""
_POWERS = np.array([float(f"1e{power}") for power in range(23)])
_FEW = 4
"""Numbers that are converted one by one: numpy takes longer, above all when it is out of the caches."""
_FLOAT = struct.Struct("<f")
_LEAST = float(np.finfo(np.float32).tiny)


def commit(schedule: Schedule, planned: PlannedStep, result: Result) -> list[Sequence]:
    """Apply the result of a step and return the sequences whose matchers have a new token to see.

    Ignores rows of sequences that ended or were preempted after the step was planned. A sequence
    that got no token is preempted, and comes back with all that the sampler can do.
    """
    schedule.decode_steps -= any(not row.chunk for row in planned.rows)
    if result.prompt_logprobs:
        _add_prompt_logprobs(planned, result)
    finished, matching = [], []
    running, block_size = State.RUNNING, schedule.allocator.block_size
    tokens = unpack_ints(result.tokens).tolist()
    logprobs = shortest(result.logprobs)
    top = _top_tokens(planned, result) if result.top_tokens else [[]] * len(tokens)
    sampled = zip(tokens, logprobs, top, strict=True)
    for row in planned.rows:
        sequence = row.sequence
        drawn = [next(sampled)] if row.samples == 1 else list(islice(sampled, row.samples))
        if not drawn or sequence.state is not running or sequence.epoch != row.epoch:
            continue
        if drawn[0][0] < 0:
            sequence.least_sampler = len(SAMPLERS) - 1
            schedule.preempt(sequence)
            continue
        if row.guesses:
            drawn = drawn[: 1 + _count_right(row, [token for token, _, _ in drawn])]
        if _append(sequence, drawn):
            finished.append(sequence)
            continue
        if len(sequence.tokens) >= (sequence.registered + 1) * block_size:
            schedule.allocator.register(sequence)
        if sequence.matcher is not None:
            matching.append(sequence)
    for sequence in finished:
        _finish(schedule, sequence)
    return matching


def _append(sequence: Sequence, drawn: Iterable[tuple[int, float, Top]]) -> bool:
    """Append tokens with their log-probabilities and most likely rivals; return whether one ends the text."""
    for token, logprob, best in drawn:
        sequence.tokens.append(token)
        text = sequence.detokenizer.append(token)
        sequence.reason = sequence.stopping.check(token, text)
        if sequence.events is not None:
            sequence.events.send_nowait(Token(token, text, logprob, best, sequence.reason))
        if sequence.reason is not None:
            return True
    return False


def _count_right(row: Row, tokens: list[int]) -> int:
    """Return how many leading guesses of a row were drawn as well, and let its sequence go on after them."""
    pairs = zip(row.guesses, tokens, strict=False)
    right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    sequence = row.sequence
    assert sequence.guesser is not None
    sequence.guesser.learn(len(sequence.tokens), len(row.guesses), right)
    sequence.guessing = False
    sequence.computed += right
    sequence.sampled += right
    sequence.right_guesses += right
    return right


def shortest(column: bytes) -> list[float]:
    """Convert float32 to the Python floats with the fewest digits that identify each float32.

    Nine digits identify any float32, and six tell decimal numbers apart. 10^22 is the last power of ten that
    is a double, so numbers rounded to digits by such powers are the doubles nearest to these digits.
    """
    numbers = unpack_floats(column)
    if len(numbers) <= _FEW and all(abs(number) >= _LEAST for number in numbers.tolist()):
        return [_shorten(number) for number in numbers.tolist()]
    wide = numbers.astype(float)
    with np.errstate(divide="ignore"):
        first = np.floor(np.log10(np.abs(wide)))  # exponent of the first digit; -inf for 0
    if first.max(initial=0) <= _DIGITS[0, 0]:
        powers = _POWERS[np.minimum(_DIGITS - first, len(_POWERS) - 1).astype(int)]
        rounded = np.rint(wide * powers) / powers
        found = rounded.astype(np.float32) == numbers
        if found.any(0).all():  # none is tiny
            return rounded[found.argmax(0), np.arange(len(numbers))].tolist()  # type: ignore[no-any-return]
    return numbers.astype("U").astype(float).tolist()  # type: ignore[no-any-return]


def _shorten(number: float) -> float:
    """Return the number with the fewest digits, six at least, that is the same float32."""
    for digits in (6, 7, 8):
        short = float(f"{number:.{digits}g}")
        if _FLOAT.unpack(_FLOAT.pack(short))[0] == number:
            return short
    return float(f"{number:.9g}")


def _finish(schedule: Schedule, sequence: Sequence) -> None:
    sequence.finished = time.monotonic()
    schedule.allocator.register(sequence)
    schedule.remove(sequence, State.FINISHED)
    if sequence.events is not None:
        sequence.events.close()


def _add_prompt_logprobs(planned: PlannedStep, result: Result) -> None:
    """Append the log-probabilities of chunks of prompts to their sequences."""
    logprobs, width = shortest(result.prompt_logprobs), planned.step.prompt_top
    tops = _pairs(result.prompt_top_tokens, result.prompt_top_logprobs, width) if width else []
    begin = 0
    for row in planned.rows:
        sequence, end = row.sequence, begin + row.targets
        if sequence.state is State.RUNNING and sequence.epoch == row.epoch:
            sequence.prompt_logprobs += logprobs[begin:end]
            if sequence.prompt_top:
                sequence.prompt_tops += [top[: sequence.prompt_top] for top in tops[begin:end]]
        begin = end


def _top_tokens(planned: PlannedStep, result: Result) -> list[Top]:
    """Return the most likely tokens of each sample: as many as wanted, and ties with the last."""
    lists = []
    wishes = [row.sequence.sampling.top_n_tokens for row in planned.rows for _ in range(row.samples)]
    for wanted, pairs in zip(
        wishes, _pairs(result.top_tokens, result.top_logprobs, planned.step.top), strict=True
    ):
        least = pairs[wanted - 1][1] if 0 < wanted <= len(pairs) else float("-inf")
        lists.append([pair for pair in pairs if pair[1] >= least] if wanted else [])
    return lists


def _pairs(tokens: bytes, logprobs: bytes, width: int) -> list[Top]:
    """Pair two columns of `width` values per position, without padding (token -1)."""
    pairs = list(zip(unpack_ints(tokens).tolist(), shortest(logprobs), strict=True))
    return [
        [pair for pair in pairs[begin : begin + width] if pair[0] >= 0]
        for begin in range(0, len(pairs), width)
    ]
