"""Whether a request can be served, rule by rule in TGI's order and words (V01-V22), and what it comes to."""

import functools
import json
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import TypeVar

import attrs
import trio

from tgi.errors import ValidationError
from tgi.limits import Limits
from tgi.sampling import SamplingParams
from tgi.scheduler import Sequence
from tgi.text.detokenizer import Detokenizer
from tgi.text.grammar import GrammarError, GrammarSpec, Matcher
from tgi.text.json_schema import read_schema
from tgi.text.stopping import StoppingCriteria
from tgi.text.tokenizer import TokenizerError

from .observe import CHUNK
from .schema import GenerateParameters, Grammar
from .service import Engine, Service

T = TypeVar("T")
INLINE_CHARACTERS = 500
"""A text up to this length is tokenised at once: handing it to a thread would take longer (some 0.2 ms)."""


@attrs.frozen(kw_only=True)
class Generation:
    """A request of TGI's own routes that may be served."""

    inputs: str
    parameters: GenerateParameters
    sequences: list[Sequence]
    """One for each of `best_of`."""
    full_text: bool
    """Whether the prompt comes before the generated text."""


@attrs.frozen(kw_only=True)
class Extras:
    """What only the OpenAI routes offer beside TGI's parameters; neutral by default."""

    count: int = 1
    """Sequences for the prompt."""
    add_special_tokens: bool = True
    """Whether the tokeniser puts its own before a prompt that is text."""
    presence_penalty: float = 0.0
    count_penalty: float = 0.0
    """OpenAI's `frequency_penalty`: for each time that the token was generated."""
    min_p: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
    most_top_tokens: int = 0
    """How many top tokens may be asked for where the server's limit is lower."""
    prompt_top: int | None = None
    """How many of the most likely tokens to report for each token of the prompt; None: not even its own."""


_NO_EXTRAS = Extras()


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
    prompt: str | Items[int],
    parameters: GenerateParameters,
    service: Service,
    engine: Engine,
    *,
    extras: Extras = _NO_EXTRAS,
    grammar: GrammarSpec | None = None,
) -> list[Sequence]:
    """V06 to V22: tokenise, and make the sequences of one prompt. Raises ValidationError.

    `grammar` is one that does not come from the parameters.
    """
    arrived = time.monotonic()
    _check_numbers(parameters)
    _check_counts(parameters, engine.limits, extras)
    if not prompt:
        raise ValidationError("`inputs` cannot be empty")
    ids = await _prompt_ids(prompt, parameters.truncate, service, engine, extras)
    most = _check_lengths(len(ids), parameters.max_new_tokens, engine.limits)
    if extras.min_tokens > most:
        raise ValidationError(f"`min_tokens` must be <= {most}, the tokens that may be generated")
    matcher = await _matcher(parameters, grammar, service, engine)
    tokenizer = engine.tokenizer
    ends = frozenset() if extras.ignore_eos and matcher is None else tokenizer.eos_ids
    ends |= frozenset(extras.stop_token_ids)
    return [
        Sequence(
            prompt=ids,
            max_new_tokens=most,
            sampling=_sampling_params(parameters, extras, number, ends),
            stopping=StoppingCriteria(most, ends, parameters.stop, min_tokens=extras.min_tokens),
            detokenizer=Detokenizer(tokenizer, ids),
            matcher=matcher if matcher is None or not number else matcher.fork(),
            wants_prompt_logprobs=parameters.decoder_input_details or extras.prompt_top is not None,
            prompt_top=extras.prompt_top or 0,
            arrived=arrived,
        )
        for number in range(parameters.best_of or extras.count)
    ]


async def _matcher(
    parameters: GenerateParameters, grammar: GrammarSpec | None, service: Service, engine: Engine
) -> Matcher | None:
    """V22; None where the text is free."""
    if parameters.grammar is not None:
        grammar = grammar_spec(parameters.grammar)
    if grammar is None:
        return None
    if service.options.disable_grammar_support:
        raise ValidationError("grammar is not supported")
    return await engine.grammars.matcher(grammar)


def grammar_spec(grammar: Grammar) -> GrammarSpec:
    """A grammar of the API as the compiler takes it. Raises ValidationError (V22a, V22b)."""
    value = grammar.value
    if grammar.type == "regex":
        return GrammarSpec("regex", value)
    if grammar.type == "json_schema":
        value = value.schema
    if isinstance(value, str):
        try:
            value = read_schema(value)
        except GrammarError as error:
            raise ValidationError(f"grammar is not valid: {error}") from error
    if not isinstance(value, dict | bool):
        raise ValidationError("grammar is not supported")
    return GrammarSpec("json", json.dumps(value))


async def _prompt_ids(
    prompt: str | Items[int], truncate: int | None, service: Service, engine: Engine, extras: Extras
) -> list[int]:
    """V16, V17, and that the model knows every token."""
    limit = engine.limits.max_input_tokens
    if truncate is not None and not 0 < truncate <= limit:
        raise ValidationError(
            f"`truncate` must be strictly positive and less than {limit}. Given: {truncate}"
        )
    if isinstance(prompt, str):
        encode = functools.partial(
            engine.tokenizer.encode,
            prompt,
            add_special_tokens=extras.add_special_tokens,
            truncate=truncate,
        )
        ids = await tokenized(encode, len(prompt), service.tokenizing)
    else:
        ids = list(prompt)
    check_known(ids, engine)
    return ids


def check_known(ids: Items[int], engine: Engine) -> None:
    """Raises ValidationError for a token that the model does not have."""
    size = engine.model.vocab_size
    if (unknown := max(ids, default=0)) >= size:
        raise ValidationError(f"tokenizer error the model has {size} tokens, and no token {unknown}")


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


def _sampling_params(
    parameters: GenerateParameters, extras: Extras, number: int, ends: frozenset[int]
) -> SamplingParams:
    """Of sequence `number` of a prompt, with a seed of its own where none is given (R2.73)."""
    seed = secrets.randbits(64) if parameters.seed is None else (parameters.seed + number) % 2**64
    return SamplingParams(
        sample=samples(parameters),
        seed=seed,
        temperature=_or(parameters.temperature, 1.0),
        top_k=parameters.top_k or 0,
        top_p=_or(parameters.top_p, 1.0),
        typical_p=_or(parameters.typical_p, 1.0),
        min_p=extras.min_p,
        repetition_penalty=_or(parameters.repetition_penalty, 1.0),
        frequency_penalty=_or(parameters.frequency_penalty, 0.0),
        presence_penalty=extras.presence_penalty,
        count_penalty=extras.count_penalty,
        logit_bias=extras.logit_bias,
        min_tokens=extras.min_tokens,
        ends=tuple(sorted(ends)) if extras.min_tokens else (),
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


def _check_counts(parameters: GenerateParameters, limits: Limits, extras: Extras) -> None:
    """V14."""
    stops, most = len(parameters.stop), limits.max_stop_sequences
    if stops > most:
        raise ValidationError(f"`stop` supports up to {most} stop sequences. Given: {stops}")
    if parameters.seed is not None and (parameters.best_of or 1) > 1:
        raise ValidationError("`seed` must not be set when `best_of` > 1")
    top = parameters.top_n_tokens or 0
    most = max(limits.max_top_n_tokens, extras.most_top_tokens)
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
