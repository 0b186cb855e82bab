"""What has come of a step: append its tokens, see who has finished, free what they had, tell the clients.

A synchronous function of plain data, like `plan`; telling is `send_nowait` on unlimited channels.
"""

import time

from tgi.protocol import Result, unpack_floats, unpack_ints

from .policy import Planned, Row, Schedule, register
from .sequence import Sequence, State, Token

Top = list[tuple[int, float]]


def commit(schedule: Schedule, planned: Planned, result: Result) -> list[Sequence]:
    """Apply the result of a planned step; returns the sequences that have finished with it.

    Rows of sequences that have ended or were preempted since the step was planned are ignored.
    """
    if result.prompt_logprobs:
        _add_prompt_logprobs(planned.rows[0], result)
    finished = []
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
        else:
            register(schedule, sequence)
    for sequence in finished:
        _finish(schedule, sequence)
    return finished


def shortest(column: bytes) -> list[float]:
    """float32 values as the Python floats that print with the fewest digits that identify the float32."""
    return unpack_floats(column).astype("U").astype(float).tolist()  # type: ignore[no-any-return]


def _finish(schedule: Schedule, sequence: Sequence) -> None:
    sequence.finished = time.monotonic()
    register(schedule, sequence)
    schedule.remove(sequence, State.FINISHED)
    if sequence.events is not None:
        sequence.events.close()


def _add_prompt_logprobs(row: Row, result: Result) -> None:
    sequence = row.sequence
    if sequence.state is State.RUNNING and sequence.epoch == row.epoch:
        wanted = len(sequence.prompt) - 1 - row.start
        sequence.prompt_logprobs += shortest(result.prompt_logprobs)[:wanted]


def _top_tokens(planned: Planned, result: Result) -> list[Top]:
    """For each sampled row its most likely tokens: as many as asked for, and those that tie with the last."""
    width = planned.step.top
    tokens = unpack_ints(result.top_tokens).tolist()
    logprobs = shortest(result.top_logprobs)
    lists = []
    for index, row in enumerate(row for row in planned.rows if row.draw >= 0):
        wanted = row.sequence.sampling.top_n_tokens
        pairs = [
            (token, logprob)
            for token, logprob in zip(
                tokens[index * width : (index + 1) * width],
                logprobs[index * width : (index + 1) * width],
                strict=True,
            )
            if token >= 0
        ]
        least = pairs[wanted - 1][1] if 0 < wanted <= len(pairs) else float("-inf")
        lists.append([pair for pair in pairs if pair[1] >= least] if wanted else [])
    return lists
