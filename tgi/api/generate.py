"""From a validated request to the answers of the native routes: generated tokens, JSON shapes, timings.

The shapes are those of tgi-behaviour 3.1 and 3.2, key for key.
"""

from contextlib import ExitStack

import attrs
import msgspec
import trio
from msgspec import UNSET, UnsetType

from tgi.errors import ApiError, IncompleteGeneration
from tgi.scheduler import Scheduler, Sequence, Token
from tgi.text.stopping import FinishReason
from tgi.text.tokenizer import Tokenizer

from .observe import Timings
from .validate import Generation

Receive = trio.MemoryReceiveChannel[Token | ApiError]
encode = msgspec.json.encode


class TokenBody(msgspec.Struct):
    """A generated token."""

    id: int
    text: str
    logprob: float
    special: bool


class PrefillTokenBody(msgspec.Struct):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None


class BestOfBody(msgspec.Struct):
    """One of the sequences that `best_of` did not choose."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillTokenBody]
    tokens: list[TokenBody]
    top_tokens: list[list[TokenBody]] | UnsetType


class DetailsBody(msgspec.Struct):
    """How the text came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillTokenBody]
    tokens: list[TokenBody]
    best_of_sequences: list[BestOfBody] | UnsetType
    top_tokens: list[list[TokenBody]] | UnsetType


class AnswerBody(msgspec.Struct):
    """The answer of `/generate`."""

    generated_text: str
    details: DetailsBody | UnsetType


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


async def generate(scheduler: Scheduler, generation: Generation) -> list[Finished]:
    """Generate every sequence to its end, the best one first.

    Raises ApiError when one fails; leaving early, also by cancellation, aborts all.
    """
    with ExitStack() as stack:
        running = [(one, stack.enter_context(scheduler.generating(one))) for one in generation.sequences]
        finished = [Finished(sequence, await _collect(receive)) for sequence, receive in running]
    best = finished[0]
    for other in finished[1:]:
        if other.mean_logprob > best.mean_logprob:
            best = other
    return [best, *(one for one in finished if one is not best)]


async def _collect(receive: Receive) -> list[Token]:
    tokens = []
    async for item in receive:
        if isinstance(item, ApiError):
            raise item
        tokens.append(item)
    if not tokens or tokens[-1].finish is None:
        raise IncompleteGeneration
    return tokens


def answer(generation: Generation, finished: list[Finished], tokenizer: Tokenizer) -> AnswerBody:
    """The body for these sequences, the best one first."""
    parameters = generation.parameters
    losers = [_best_of_body(generation, one, tokenizer) for one in finished]
    best = losers.pop(0)
    details: DetailsBody | UnsetType = UNSET
    if parameters.details or parameters.decoder_input_details:
        details = DetailsBody(
            best.finish_reason,
            best.generated_tokens,
            best.seed,
            best.prefill,
            best.tokens,
            losers or UNSET,
            best.top_tokens,
        )
    return AnswerBody(best.generated_text, details)


def _best_of_body(generation: Generation, finished: Finished, tokenizer: Tokenizer) -> BestOfBody:
    tokens = finished.tokens
    top = [top_bodies(token, tokenizer) for token in tokens] if generation.parameters.top_n_tokens else UNSET
    return BestOfBody(
        generated_text(generation, finished.sequence, tokens[-1], tokenizer),
        finished.reason,
        len(tokens),
        reported_seed(finished.sequence),
        _prefill_bodies(finished.sequence, tokenizer),
        [TokenBody(one.id, one.text, one.logprob, one.id in tokenizer.special_ids) for one in tokens],
        top,
    )


def generated_text(generation: Generation, sequence: Sequence, last: Token, tokenizer: Tokenizer) -> str:
    """The text of a finished sequence, without its end-of-sequence token and what follows a stop string."""
    text = sequence.detokenizer.text(leave_out_last=last.finish is FinishReason.EOS_TOKEN)
    if last.id not in tokenizer.special_ids:
        text = sequence.stopping.cut(text)
    return generation.inputs + text if generation.full_text else text


def top_bodies(token: Token, tokenizer: Tokenizer) -> list[TokenBody]:
    """The most likely tokens in the place of this one, each decoded alone (S33)."""
    special = tokenizer.special_ids
    return [TokenBody(other, tokenizer.decode_alone(other), lp, other in special) for other, lp in token.top]


def _prefill_bodies(sequence: Sequence, tokenizer: Tokenizer) -> list[PrefillTokenBody]:
    if not sequence.wants_prompt_logprobs:
        return []
    logprobs = [None, *sequence.prompt_logprobs]
    return [
        PrefillTokenBody(token, tokenizer.decode_alone(token), logprob)
        for token, logprob in zip(sequence.prompt, logprobs, strict=True)
    ]


def reported_seed(sequence: Sequence) -> int | None:
    """The seed, if it mattered (R2.73)."""
    return sequence.sampling.seed if sequence.sampling.sample else None


def prompt_headers(generation: Generation, compute_type: str) -> dict[str, str]:
    """What is known before anything is generated (1.5)."""
    return {"x-compute-type": compute_type, "x-compute-characters": str(len(generation.inputs))}


def timing_headers(sequence: Sequence, timings: Timings) -> dict[str, str]:
    """What is known at the end: milliseconds, but for x-compute-time."""
    return {
        "x-compute-time": str(timings.total),
        "x-total-time": _milliseconds(timings.total),
        "x-validation-time": _milliseconds(timings.validation),
        "x-queue-time": _milliseconds(timings.queue),
        "x-inference-time": _milliseconds(timings.inference),
        "x-time-per-token": _milliseconds(timings.per_token),
        "x-prompt-tokens": str(len(sequence.prompt)),
        "x-generated-tokens": str(sequence.generated),
    }


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1000))
