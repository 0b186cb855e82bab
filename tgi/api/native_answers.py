"""The answers of TGI's own routes, key for key (tgi-behaviour 3.1 and 3.2)."""

import msgspec
from msgspec import UNSET, UnsetType

from tgi.errors import ApiError
from tgi.scheduler import Sequence, Token
from tgi.text.stopping import FinishReason
from tgi.text.tokenizer import Tokenizer

from .generate import Finished
from .observe import Observer
from .stream import frame
from .validate import Generation


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


class StreamDetailsBody(msgspec.Struct):
    """How the text came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class EventBody(msgspec.Struct):
    """One event of a stream."""

    index: int
    token: TokenBody
    top_tokens: list[TokenBody] | UnsetType
    generated_text: str | None
    details: StreamDetailsBody | None


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


class NativeEvents:
    """Writes the events of `/generate_stream`: one for each token of the one sequence."""

    def __init__(self, generation: Generation, tokenizer: Tokenizer, observer: Observer) -> None:
        self._generation = generation
        self._sequence: Sequence = generation.sequences[0]
        self._tokenizer = tokenizer
        self._observer = observer
        self._count = 0
        self.ended = False

    def write(self, _index: int, item: Token | ApiError) -> bytes:
        """The event of a token, or of the failure that ends it."""
        if isinstance(item, ApiError):
            return self.fail(item)
        self._count += 1
        special = item.id in self._tokenizer.special_ids
        body = EventBody(
            self._count,
            TokenBody(item.id, item.text, item.logprob, special),
            top_bodies(item, self._tokenizer) if item.top else UNSET,
            None,
            None,
        )
        if item.finish is not None:
            self._finish(body, item)
        return frame(body)

    def fail(self, error: ApiError) -> bytes:
        """The event of an error (3.3)."""
        self.ended = True
        self._observer.failed(error)
        return frame(error.to_body())

    def _finish(self, body: EventBody, last: Token) -> None:
        self.ended = True
        sequence, generation = self._sequence, self._generation
        body.generated_text = generated_text(generation, sequence, last, self._tokenizer)
        if generation.parameters.details:
            assert last.finish is not None
            body.details = StreamDetailsBody(
                last.finish, self._count, reported_seed(sequence), len(sequence.prompt)
            )
        self._observer.finished(sequence)
