"""From sequences to all their tokens, and the headers that tell of prompt and time. Knows no body's shape."""

from collections.abc import Sequence as Items

import attrs
import trio

from tgi.errors import ApiError, IncompleteGeneration
from tgi.scheduler import Scheduler, Sequence, Token
from tgi.text.stopping import FinishReason

from .observe import Timings

Receive = trio.MemoryReceiveChannel[tuple[int, Token | ApiError]]
"""Tokens with the index of the sequence that they belong to."""


@attrs.frozen
class Finished:
    """A sequence and all its tokens."""

    sequence: Sequence
    tokens: list[Token]

    @property
    def reason(self) -> FinishReason:
        """Why it ended."""
        reason = self.tokens[-1].finish
        assert reason is not None
        return reason

    @property
    def mean_logprob(self) -> float:
        """What `best_of` chooses by (R3.10)."""
        return sum(token.logprob for token in self.tokens) / len(self.tokens)


async def generate(scheduler: Scheduler, sequences: Items[Sequence]) -> list[Finished]:
    """Generate every sequence to its end; in the order given.

    Raises ApiError when one fails; leaving early, also by cancellation, aborts all.
    """
    finished = [Finished(sequence, []) for sequence in sequences]
    with scheduler.generating_all(sequences) as receive:
        async for index, item in receive:
            if isinstance(item, ApiError):
                raise item
            finished[index].tokens.append(item)
    for one in finished:
        if not one.tokens or one.tokens[-1].finish is None:
            raise IncompleteGeneration
    return finished


def best_first(finished: list[Finished]) -> list[Finished]:
    """By mean log-probability; among equals, and for NaN, the earlier first (R3.10)."""
    best = finished[0]
    for other in finished[1:]:
        if other.mean_logprob > best.mean_logprob:
            best = other
    return [best, *(one for one in finished if one is not best)]


def timing_headers(finished: Items[tuple[Sequence, Timings]]) -> dict[str, str]:
    """What is known at the end, summed over sequences: milliseconds, but for x-compute-time."""

    def milliseconds(name: str) -> str:
        return str(sum(int(getattr(timings, name) * 1000) for _, timings in finished))

    return {
        "x-compute-time": str(max(timings.total for _, timings in finished)),
        "x-total-time": milliseconds("total"),
        "x-validation-time": milliseconds("validation"),
        "x-queue-time": milliseconds("queue"),
        "x-inference-time": milliseconds("inference"),
        "x-time-per-token": milliseconds("per_token"),
        "x-prompt-tokens": str(sum(len(sequence.prompt) for sequence, _ in finished)),
        "x-generated-tokens": str(sum(sequence.generated for sequence, _ in finished)),
    }
