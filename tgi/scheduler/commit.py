"""What has come of a step: append its tokens, see who has finished, free what they had, tell the clients.

A synchronous function of plain data, like `plan`; telling is `send_nowait` on unlimited channels.
"""

import time

from tgi.protocol import Result, unpack_floats, unpack_ints

from .policy import Planned, Schedule, register
from .sequence import Sequence, State, Token

Top = list[tuple[int, float]]


def commit(schedule: Schedule, planned: Planned, result: Result) -> list[Sequence]:
    """Apply the result of a planned step; returns the sequences whose matchers must see their new token.

    Rows of sequences that have ended or were preempted since the step was planned are ignored.
    """
    if result.prompt_logprobs:
        _add_prompt_logprobs(planned, result)
    finished, matching = [], []
    tokens = unpack_ints(result.tokens).tolist()
    logprobs = shortest(result.logprobs)
    top = iter(_top_tokens(planned, result)) if result.top_tokens else None
    sampled = zip((row for row in planned.rows if row.draw >= 0), tokens, logprobs, strict=True)
    for row, token, logprob in sampled:
        sequence = row.sequence
        best = next(top) if top else []
        if sequence.state is not State.RUNNING or sequence.epoch != row.epoch:
            continue
        sequence.tokens.append(token)
        text = sequence.detokenizer.append(token)
        reason = sequence.stopping.check(token, text)
        if sequence.events is not None:
            sequence.events.send_nowait(Token(token, text, logprob, best, reason))
        if reason is not None:
            sequence.reason = reason
            finished.append(sequence)
            continue
        register(schedule, sequence)
        if sequence.matcher is not None:
            matching.append(sequence)
    for sequence in finished:
        _finish(schedule, sequence)
    return matching


def shortest(column: bytes) -> list[float]:
    """float32 values as the Python floats that print with the fewest digits that identify the float32."""
    return unpack_floats(column).astype("U").astype(float).tolist()  # type: ignore[no-any-return]


def _finish(schedule: Schedule, sequence: Sequence) -> None:
    sequence.finished = time.monotonic()
    register(schedule, sequence)
    schedule.remove(sequence, State.FINISHED)
    if sequence.events is not None:
        sequence.events.close()


def _add_prompt_logprobs(planned: Planned, result: Result) -> None:
    """Such a step has one row."""
    row = planned.rows[0]
    sequence = row.sequence
    if sequence.state is not State.RUNNING or sequence.epoch != row.epoch:
        return
    wanted = len(sequence.prompt) - 1 - row.start
    sequence.prompt_logprobs += shortest(result.prompt_logprobs)[:wanted]
    if width := planned.step.prompt_top:
        tops = _pairs(result.prompt_top_tokens, result.prompt_top_logprobs, width)
        sequence.prompt_tops += tops[:wanted]


def _top_tokens(planned: Planned, result: Result) -> list[Top]:
    """For each sampled row its most likely tokens: as many as asked for, and those that tie with the last."""
    lists = []
    rows = (row for row in planned.rows if row.draw >= 0)
    for row, pairs in zip(
        rows, _pairs(result.top_tokens, result.top_logprobs, planned.step.top), strict=True
    ):
        wanted = row.sequence.sampling.top_n_tokens
        least = pairs[wanted - 1][1] if 0 < wanted <= len(pairs) else float("-inf")
        lists.append([pair for pair in pairs if pair[1] >= least] if wanted else [])
    return lists


def _pairs(tokens: bytes, logprobs: bytes, width: int) -> list[Top]:
    """Two columns of `width` values for each place, without what has no probability."""
    pairs = list(zip(unpack_ints(tokens).tolist(), shortest(logprobs), strict=True))
    return [
        [pair for pair in pairs[begin : begin + width] if pair[0] >= 0]
        for begin in range(0, len(pairs), width)
    ]
