"""TGI's own routes (tgi-behaviour 2.2, 3.1, 3.2): `/generate`, POST `/`, `/tokenize` and so on."""

import functools
from typing import Any

import msgspec
from msgspec import UNSET
from quart import Response

from tgi.errors import ApiError, ValidationError
from tgi.scheduler import Sequence, Token
from tgi.scheduler.loras import Lora
from tgi.text.stopping import FinishReason
from tgi.text.tokenizer import Tokenizer

from .call import BODY_ERRORS, Call, json_answer, post
from .loras import lora_of_id
from .native_bodies import (
    BestOfSequence,
    CompatGenerateRequest,
    Details,
    DetokenizeRequest,
    DetokenizeResponse,
    GenerateParameters,
    GenerateRequest,
    GenerateResponse,
    PrefillToken,
    StreamDetails,
    StreamResponse,
    TokenBody,
)
from .observe import Observer
from .stream import Finished, best_first, frame
from .validate import Generation, check_known, make_sequences, sampling_params


async def generate(call: Call[GenerateRequest]) -> Response:
    """Answer `/generate`."""
    full_text = bool(call.body.parameters.return_full_text)
    answer, headers = await _generate(call, full_text=full_text)
    return json_answer(answer, headers=headers)


async def generate_stream(call: Call[GenerateRequest]) -> Response:
    """Answer `/generate_stream`."""
    return await _stream(call, full_text=bool(call.body.parameters.return_full_text))


async def compat_generate(call: Call[CompatGenerateRequest]) -> Response:
    """Answer POST `/`: a list of one answer, or a stream."""
    full_text = call.body.parameters.return_full_text
    if full_text is None:  # R2.70
        full_text = call.engine.model.pipeline_tag in (None, "text-generation")
    if call.body.stream:
        return await _stream(call, full_text=full_text)
    answer, headers = await _generate(call, full_text=full_text)
    return json_answer([answer], headers=headers)


async def tokenize(call: Call[GenerateRequest]) -> Response:
    """Answer `/tokenize` in TGI's form."""
    inputs, tokenizer = call.body.inputs, call.engine.tokenizer

    def work() -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode(tokenizer.tokenize(inputs)))

    return json_answer(await call.tokenized(work, len(inputs)))


async def detokenize(call: Call[DetokenizeRequest]) -> Response:
    """Answer `/detokenize`."""
    tokens = call.body.tokens
    check_known(tokens, call.engine)
    work = functools.partial(call.engine.tokenizer.decode, tokens)
    return json_answer(DetokenizeResponse(await call.tokenized(work, len(tokens))))


async def _generate(call: Call[Any], *, full_text: bool) -> tuple[GenerateResponse, dict[str, str]]:
    body: GenerateRequest = call.body
    with call.generating():
        call.take_permits(body.parameters.count(call.engine.limits))
        sequences = await make_sequences(call, _generation(call))
        finished = best_first(await call.generate(sequences))
        headers = call.prompt_headers(len(body.inputs)) | call.finish(finished[:1])
        prefix = body.inputs if full_text else ""
        return _response(body.parameters, finished, call.engine.tokenizer, prefix), headers


async def _stream(call: Call[Any], *, full_text: bool) -> Response:
    body: GenerateRequest = call.body
    with call.generating():
        body.parameters.check_streamable()
        call.take_permits(1)
        sequences = await make_sequences(call, _generation(call))
        events = NativeEvents(
            sequences[0],
            call.engine.tokenizer,
            call.observer,
            prefix=body.inputs if full_text else "",
            details=body.parameters.details,
        )
        return await call.stream(sequences, events, call.prompt_headers(len(body.inputs)))


def _generation(call: Call[Any]) -> Generation:
    body: GenerateRequest = call.body
    named = body.parameters.adapter_id
    lora = lora_of_id(call.engine, named) if named else None
    return generation_of(body.inputs, body.parameters, lora)


def generation_of(inputs: str, parameters: GenerateParameters, lora: Lora | None = None) -> Generation:
    """Return what a request of TGI's API asks for (V06 to V12). Raises ValidationError."""
    best_of = parameters.best_of or 1
    if best_of > 1 and not (parameters.do_sample or parameters.warpers()):
        raise ValidationError("you must use sampling when `best_of` is > 1")
    grammar = parameters.grammar
    return Generation(
        prompt=inputs,
        sampling=sampling_params(parameters, "native", sample=parameters.samples()),
        seed=parameters.seed,
        count=best_of,
        seed_for_several=False,
        max_new_tokens=parameters.max_new_tokens,
        stop=parameters.stop,
        ignore_eos=parameters.ignore_eos,
        stop_token_ids=parameters.stop_token_ids or (),
        truncate=parameters.truncate,
        grammar=None if grammar is None else lambda: grammar.spec,
        prompt_top=0 if parameters.decoder_input_details else None,
        priority=parameters.priority,
        lora=lora,
    )


def generated_text(finished: Finished, special_ids: frozenset[int]) -> str:
    """Return the text of a finished sequence, without its end token and what follows a stop string."""
    return _final_text(finished.sequence, finished.tokens[-1], special_ids)


def _final_text(sequence: Sequence, last: Token, special_ids: frozenset[int]) -> str:
    text = sequence.detokenizer.text(leave_out_last=last.finish is FinishReason.EOS_TOKEN)
    return text if last.id in special_ids else sequence.stopping.cut(text)


def _response(
    parameters: GenerateParameters, finished: list[Finished], tokenizer: Tokenizer, prefix: str
) -> GenerateResponse:
    """Return the answer for these sequences, the best one first."""
    best, *others = [_best_of_sequence(parameters, one, tokenizer, prefix) for one in finished]
    if not (parameters.details or parameters.decoder_input_details):
        return GenerateResponse(best.generated_text)
    details = Details(
        finish_reason=best.finish_reason,
        generated_tokens=best.generated_tokens,
        seed=best.seed,
        prefill=best.prefill,
        tokens=best.tokens,
        best_of_sequences=others or UNSET,
        top_tokens=best.top_tokens,
    )
    return GenerateResponse(best.generated_text, details)


def _best_of_sequence(
    parameters: GenerateParameters, finished: Finished, tokenizer: Tokenizer, prefix: str
) -> BestOfSequence:
    tokens = finished.tokens
    return BestOfSequence(
        generated_text=prefix + generated_text(finished, tokenizer.special_ids),
        finish_reason=finished.reason,
        generated_tokens=len(tokens),
        seed=_reported_seed(finished.sequence),
        prefill=_prefill(finished.sequence, tokenizer),
        tokens=[_token_body(token, tokenizer) for token in tokens],
        top_tokens=[_top_tokens(token, tokenizer) for token in tokens] if parameters.top_n_tokens else UNSET,
    )


def _token_body(token: Token, tokenizer: Tokenizer) -> TokenBody:
    return TokenBody(token.id, token.text, token.logprob, token.id in tokenizer.special_ids)


def _top_tokens(token: Token, tokenizer: Tokenizer) -> list[TokenBody]:
    """Return the most likely tokens in the place of this one, each decoded alone (S33)."""
    special = tokenizer.special_ids
    return [
        TokenBody(id_, tokenizer.decode_alone(id_), logprob, id_ in special) for id_, logprob in token.top
    ]


def _prefill(sequence: Sequence, tokenizer: Tokenizer) -> list[PrefillToken]:
    if sequence.prompt_top is None:
        return []
    logprobs = [None, *sequence.prompt_logprobs]
    return [
        PrefillToken(token, tokenizer.decode_alone(token), logprob)
        for token, logprob in zip(sequence.prompt, logprobs, strict=True)
    ]


def _reported_seed(sequence: Sequence) -> int | None:
    """Return the seed if it mattered (R2.73)."""
    return sequence.sampling.seed if sequence.sampling.sample else None


class NativeEvents:
    """Writes the events of one sequence, one for each token."""

    def __init__(
        self,
        sequence: Sequence,
        tokenizer: Tokenizer,
        observer: Observer,
        *,
        prefix: str = "",
        details: bool = False,
    ) -> None:
        """`prefix` comes before the whole text in the last event."""
        self.ended = False
        self._sequence, self._tokenizer, self._observer = sequence, tokenizer, observer
        self._prefix, self._details = prefix, details
        self._count = 0

    def write(self, _index: int, item: Token | ApiError) -> bytes:
        """Return the event of a token, or of the failure that ends the sequence."""
        if isinstance(item, ApiError):
            return self.fail(item)
        self._count += 1
        body = StreamResponse(index=self._count, token=_token_body(item, self._tokenizer))
        if item.top:
            body.top_tokens = _top_tokens(item, self._tokenizer)
        if item.finish is not None:
            self._finish(body, item, item.finish)
        return frame(body)

    def fail(self, error: ApiError) -> bytes:
        """Return the event of an error (3.3)."""
        self.ended = True
        self._observer.failed(error)
        return frame(error.to_body())

    def _finish(self, body: StreamResponse, last: Token, reason: FinishReason) -> None:
        self.ended = True
        sequence = self._sequence
        body.generated_text = self._prefix + _final_text(sequence, last, self._tokenizer.special_ids)
        if self._details:
            body.details = StreamDetails(reason, self._count, _reported_seed(sequence), len(sequence.prompt))
        self._observer.finished(sequence)


_EXAMPLE = {"inputs": "What is deep learning?", "parameters": {"max_new_tokens": 20}}
ROUTES = (
    post(
        "/", "compat_generate", "Generate text: in one piece, or streamed if `stream` is true",
        compat_generate, CompatGenerateRequest,
        answer=list[GenerateResponse], stream=StreamResponse, example=_EXAMPLE,
    ),
    post(
        "/generate", "generate", "Generate text", generate,
        GenerateRequest, answer=GenerateResponse, example=_EXAMPLE,
    ),
    post(
        "/generate_stream", "generate_stream", "Generate text, streamed as server-sent events",
        generate_stream, GenerateRequest, stream=StreamResponse, example=_EXAMPLE,
    ),
    post(
        "/detokenize", "detokenize", "The text of token ids", detokenize,
        DetokenizeRequest, answer=DetokenizeResponse, errors=BODY_ERRORS, example={"tokens": [5, 6]},
    ),
)  # fmt: skip
