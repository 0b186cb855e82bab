"""Whether a request can be served, rule by rule in TGI's order and words (V01-V22), and what it comes to."""

import functools
import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import attrs
import trio

from tgi.config import Limits
from tgi.errors import ValidationError
from tgi.scheduler import SamplingParams, Sequence
from tgi.text.detokenizer import Detokenizer
from tgi.text.stopping import StoppingCriteria
from tgi.text.tokenizer import Tokenizer, TokenizerError

from .observe import CHUNK
from .schema import GenerateParameters

T = TypeVar("T")
INLINE_CHARACTERS = 500
"""A text up to this length is tokenised at once: handing it to a thread would take longer (some 0.2 ms)."""


@attrs.frozen(kw_only=True)
class Generation:
    """A request that may be served."""

    inputs: str
    parameters: GenerateParameters
    sequences: list[Sequence]
    """One for each of `best_of`."""
    full_text: bool
    """Whether the prompt comes before the generated text."""


def check_streamable(parameters: GenerateParameters) -> None:
    """V01, V02: raises ValidationError."""
    if parameters.best_of not in (None, 1):
        raise ValidationError("`best_of` != 1 is not supported when streaming tokens")
    if parameters.decoder_input_details:
        raise ValidationError("`decoder_input_details` == true is not supported when streaming tokens")


def check_best_of(parameters: GenerateParameters, limits: Limits) -> int:
    """V03, V04: how many sequences to generate. Raises ValidationError. 0 counts as 1, as in TGI."""
    best_of = parameters.best_of or 1
    if best_of > 1 and limits.max_best_of == 1:
        raise ValidationError("`best_of` != 1 is not allowed for this endpoint")
    if best_of > limits.max_best_of:
        raise ValidationError(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
    return best_of


async def validate(
    inputs: str,
    parameters: GenerateParameters,
    *,
    tokenizer: Tokenizer,
    limits: Limits,
    vocab_size: int,
    threads: trio.CapacityLimiter,
    full_text: bool,
) -> Generation:
    """V06 to V22: tokenise, and make the sequences. Raises ValidationError."""
    arrived = time.monotonic()
    _check_numbers(parameters)
    _check_counts(parameters, limits)
    if not inputs:
        raise ValidationError("`inputs` cannot be empty")
    truncate = parameters.truncate
    if truncate is not None and not 0 < truncate <= limits.max_input_tokens:
        limit = limits.max_input_tokens
        raise ValidationError(
            f"`truncate` must be strictly positive and less than {limit}. Given: {truncate}"
        )
    encode = functools.partial(tokenizer.encode, inputs, truncate=truncate)
    prompt = await tokenized(encode, len(inputs), threads)
    if (unknown := max(prompt, default=0)) >= vocab_size:
        raise ValidationError(f"tokenizer error the model has {vocab_size} tokens, and no token {unknown}")
    max_new_tokens = _check_lengths(len(prompt), parameters.max_new_tokens, limits)
    if parameters.grammar is not None:
        raise ValidationError("grammar is not supported")
    sequences = [
        Sequence(
            prompt=prompt,
            max_new_tokens=max_new_tokens,
            sampling=sampling_params(parameters),
            stopping=StoppingCriteria(max_new_tokens, tokenizer.eos_ids, parameters.stop),
            detokenizer=Detokenizer(tokenizer, prompt),
            wants_prompt_logprobs=parameters.decoder_input_details,
            arrived=arrived,
        )
        for _ in range(parameters.best_of or 1)
    ]
    return Generation(inputs=inputs, parameters=parameters, sequences=sequences, full_text=full_text)


async def tokenized(call: Callable[[], T], characters: int, threads: trio.CapacityLimiter) -> T:
    """What a call of the tokenizer returns; a long text is left to a thread. Raises ValidationError (V17)."""
    try:
        if characters <= INLINE_CHARACTERS:
            return call()
        return await trio.to_thread.run_sync(call, limiter=threads)
    except TokenizerError as error:
        raise ValidationError(f"tokenizer error {error}") from error


def samples(parameters: GenerateParameters) -> bool:
    """S1: whether the tokens are drawn, or the most likely ones taken."""
    return (
        parameters.do_sample
        or parameters.temperature not in (None, 1.0)
        or any(value is not None for value in (parameters.top_k, parameters.top_p, parameters.typical_p))
    )


def sampling_params(parameters: GenerateParameters) -> SamplingParams:
    """With a seed of its own where none is given (R2.73)."""
    return SamplingParams(
        sample=samples(parameters),
        seed=secrets.randbits(64) if parameters.seed is None else parameters.seed,
        temperature=_or(parameters.temperature, 1.0),
        top_k=parameters.top_k or 0,
        top_p=_or(parameters.top_p, 1.0),
        typical_p=_or(parameters.typical_p, 1.0),
        repetition_penalty=_or(parameters.repetition_penalty, 1.0),
        frequency_penalty=_or(parameters.frequency_penalty, 0.0),
        watermark=parameters.watermark,
        top_n_tokens=parameters.top_n_tokens or 0,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _check_numbers(parameters: GenerateParameters) -> None:
    """V06 to V13."""
    warpers = (parameters.temperature, parameters.top_k, parameters.top_p, parameters.typical_p)
    drawn = parameters.do_sample or any(value is not None for value in warpers)
    if _or(parameters.best_of, 1) > 1 and not drawn:
        raise ValidationError("you must use sampling when `best_of` is > 1")
    if _or(parameters.temperature, 1.0) <= 0:
        raise ValidationError("`temperature` must be strictly positive")
    if _or(parameters.repetition_penalty, 1.0) <= 0:
        raise ValidationError("`repetition_penalty` must be strictly positive")
    if not -2.0 <= _or(parameters.frequency_penalty, 0.0) <= 2.0:
        raise ValidationError("`frequency_penalty` must be >= -2.0 and <= 2.0")
    if not 0.0 < _or(parameters.top_p, 0.5) < 1.0:
        raise ValidationError("`top_p` must be > 0.0 and < 1.0")
    if not 0.0 < _or(parameters.typical_p, 0.5) < 1.0:
        raise ValidationError("`typical_p` must be > 0.0 and < 1.0")
    if _or(parameters.top_k, 1) <= 0:
        raise ValidationError("`top_k` must be strictly positive")
    if parameters.max_new_tokens == 0:
        raise ValidationError("`max_new_tokens` must be strictly positive")


def _check_counts(parameters: GenerateParameters, limits: Limits) -> None:
    """V14."""
    stops, most = len(parameters.stop), limits.max_stop_sequences
    if stops > most:
        raise ValidationError(f"`stop` supports up to {most} stop sequences. Given: {stops}")
    if parameters.seed is not None and (parameters.best_of or 1) > 1:
        raise ValidationError("`seed` must not be set when `best_of` > 1")
    top, most = parameters.top_n_tokens or 0, limits.max_top_n_tokens
    if top > most:
        raise ValidationError(f"`top_n_tokens` must be >= 0 and <= {most}. Given: {top}")


def _check_lengths(prompt: int, max_new_tokens: int | None, limits: Limits) -> int:
    """V20, V21: how many tokens may be generated.

    A wish beyond what fits is cut to what fits where TGI would have accepted it: it looks at no more than
    the first `CHUNK` tokens.
    """
    room = limits.max_total_tokens - prompt
    wanted = max(room, 0) if max_new_tokens is None else max_new_tokens
    chunk = min(wanted, CHUNK)
    if chunk > room:
        raise ValidationError(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {prompt} `inputs` tokens and {chunk} `max_new_tokens`"
        )
    if prompt > limits.max_input_tokens:
        raise ValidationError(
            f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {prompt}"
        )
    if not prompt:
        raise ValidationError("`inputs` cannot be empty")
    return min(wanted, room)
