"""Checks a generation by TGI's rules (V06 to V22), in its order and words, and makes the sequences."""

import json
import secrets
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any, Literal

import attrs
import msgspec

from tgi.errors import ContextLengthExceeded, ValidationError
from tgi.limits import Limits
from tgi.sampling import Api, SamplingParams, read_body
from tgi.scheduler import Sequence
from tgi.scheduler.loras import Lora
from tgi.text.detokenizer import Detokenizer
from tgi.text.grammar import GrammarError, GrammarSpec, Matcher
from tgi.text.json_schema import read_schema
from tgi.text.stopping import StoppingCriteria
from tgi.text.token_rules import TokenRules, spellings

from .call import Call
from .observe import CHUNK
from .service import Engine

MAX_BAD_WORDS = 1000
"""Maximum number of `bad_words`, each of which is looked for before every token."""


@attrs.frozen
class Names:
    """Names of an API's fields, for messages to its clients."""

    prompt: str = "inputs"
    max_tokens: str = "max_new_tokens"
    top: str = "top_n_tokens"
    context: str = ""
    """Sentence before the others where a text is too long; `{}` stands for the limit."""


@attrs.frozen(kw_only=True)
class Generation:
    """A prompt and how to continue it, whichever API asks for it."""

    prompt: str | Items[int]
    sampling: SamplingParams
    """Parameters without a seed, which each sequence has on its own."""
    seed: int | None
    """Seed of the first sequence; the others count up. None: random seeds."""
    count: int = 1
    seed_for_several: bool = True
    """Whether a seed may be given for more than one sequence."""
    max_new_tokens: int | None = None
    """None: as many as fit."""
    stop: Items[str] = ()
    length_first: bool = True
    """Whether the last token that may be generated ends the text by its length in any case, as in TGI."""
    truncate: int | None = None
    """Number of tokens of the prompt that count; None: all."""
    truncate_end: bool = False
    """Whether `truncate` leaves out tokens at the end of the prompt, not at its beginning."""
    grammar: Callable[[], GrammarSpec | None] | None = None
    """Returns the grammar that the text obeys, or raises ValidationError; None: the text is free."""
    add_special_tokens: bool = True
    """Whether the tokenizer puts its own tokens before a prompt that is text."""
    ignore_eos: bool = False
    stop_token_ids: Items[int] = ()
    allowed_token_ids: Items[int] | None = None
    """Tokens that alone may be generated; None: all."""
    bad_words: Items[str] = ()
    """Texts whose last token may not follow the others."""
    max_top_tokens: int = 0
    """Maximum of `top_n_tokens` if the server's limit is lower."""
    prompt_top: int | None = None
    """Number of most likely tokens to report for each token of the prompt; None: not even its own."""
    priority: int | None = None
    """Place in the queue: lower comes first. None: that of the request's objective."""
    names: Names = Names()
    lora: Lora | None = None
    """LoRA adapter to generate with."""


def sampling_params(body: object, api: Api, **others: Any) -> SamplingParams:
    """Return the sampling parameters that a body asks for (V07 to V12). Raises ValidationError."""
    try:
        return read_body(body, api, **others)
    except ValueError as error:
        raise ValidationError(str(error)) from error


def grammar_spec(
    kind: Literal["json", "regex", "ebnf"], value: object, strict: bool | None = None
) -> GrammarSpec:
    """Return a grammar of the API for the compiler: of a `json` schema, a `regex`, or in `ebnf`.

    A schema is lenient if the client says that it is not `strict`. Raises ValidationError (V22a, V22b).
    """
    if kind != "json":
        return GrammarSpec(kind, str(value))
    if isinstance(value, str):
        try:
            value = read_schema(value)
        except GrammarError as error:
            raise ValidationError(f"grammar is not valid: {error}") from error
    if not isinstance(value, dict | bool):
        raise ValidationError("grammar is not valid: a schema must be an object or a boolean")
    return GrammarSpec("json", json.dumps(value), lenient=strict is False)


def check_known(ids: Items[int], engine: Engine, name: str = "tokenizer error") -> None:
    """Raise ValidationError, which begins with `name`, for a token that the model does not have."""
    size = engine.model.vocab_size
    if (unknown := max(ids, default=0)) >= size:
        raise ValidationError(f"{name} the model has {size} tokens, and no token {unknown}")


async def make_sequences(call: Call[Any], generation: Generation) -> list[Sequence]:
    """Tokenise the prompt and return its sequences (V13 to V22). Raises ValidationError."""
    arrived = time.monotonic()
    engine = call.engine
    _check_counts(generation, engine.limits)
    if not generation.prompt:
        raise ValidationError(f"`{generation.names.prompt}` cannot be empty")
    ids = await _prompt_ids(call, generation)
    max_new_tokens = _check_lengths(len(ids), generation, engine.limits)
    min_tokens = generation.sampling.min_tokens
    if min_tokens > max_new_tokens:
        raise ValidationError(f"`min_tokens` must be <= {max_new_tokens}, the tokens that may be generated")
    grammar = await _matcher(call, generation)
    tokenizer = engine.tokenizer
    ends = frozenset() if generation.ignore_eos and grammar is None else tokenizer.eos_ids
    check_known(generation.stop_token_ids, engine, "`stop_token_ids`:")
    ends |= frozenset(generation.stop_token_ids)
    if grammar is not None:
        min_tokens = 0  # the grammar alone says when the text may end
    matcher = await _with_token_rules(call, generation, grammar)
    tenant = call.tenant
    sequences = [
        Sequence(
            prompt=ids,
            max_new_tokens=max_new_tokens,
            sampling=_seeded(generation, number, min_tokens, ends),
            stopping=StoppingCriteria(
                max_new_tokens, ends, generation.stop, min_tokens, length_first=generation.length_first
            ),
            detokenizer=Detokenizer(tokenizer, ids),
            matcher=matcher if matcher is None or not number else matcher.fork(),
            prompt_top=generation.prompt_top,
            arrived=arrived,
            tenant="" if tenant is None else tenant.name,
            weight=1.0 if tenant is None else tenant.terms.weight,
            priority=call.priority if generation.priority is None else generation.priority,
            lora=generation.lora,
        )
        for number in range(generation.count)
    ]
    call.observer.validated(sequences[0])
    return sequences


def _seeded(generation: Generation, number: int, min_tokens: int, ends: frozenset[int]) -> SamplingParams:
    """Return the parameters of one of the sequences, with a seed of its own (R2.73)."""
    seed = generation.seed
    return msgspec.structs.replace(
        generation.sampling,
        seed=secrets.randbits(64) if seed is None else (seed + number) % 2**64,
        min_tokens=min_tokens,
        ends=tuple(sorted(ends)) if min_tokens else (),
    )


async def _matcher(call: Call[Any], generation: Generation) -> Matcher | None:
    """Return the matcher of the text's grammar (V22); None: the text is free."""
    grammar = None if generation.grammar is None else generation.grammar()
    if grammar is None:
        return None
    if call.service.options.disable_grammar_support:
        raise ValidationError("grammar is not supported")
    matcher = await call.engine.grammars.matcher(grammar)
    call.exchange.remarks.extend(matcher.remarks)
    return matcher


async def _with_token_rules(
    call: Call[Any], generation: Generation, grammar: Matcher | None
) -> Matcher | TokenRules | None:
    """Return the matcher of the text's grammar and of the rules about single tokens; None: it is free."""
    allowed, words, engine = generation.allowed_token_ids, generation.bad_words, call.engine
    if allowed is None and not words:
        return grammar
    if len(words) > MAX_BAD_WORDS:
        raise ValidationError(f"`bad_words` supports up to {MAX_BAD_WORDS} words. Given: {len(words)}")
    if allowed is not None:
        check_known(allowed, engine, "`allowed_token_ids`:")

    def make() -> TokenRules:
        barred = [tokens for word in words for tokens in spellings(word, engine.tokenizer)]
        return TokenRules(engine.model.vocab_size, allowed=allowed, barred=barred, matcher=grammar)

    try:
        return await call.tokenized(make, sum(map(len, words)) + len(allowed or ()))
    except GrammarError as error:
        raise ValidationError(f"`allowed_token_ids` and `bad_words` leave nothing: {error}") from error


async def _prompt_ids(call: Call[Any], generation: Generation) -> list[int]:
    """Return the prompt's tokens, all of which the model knows (V16, V17)."""
    engine, prompt, truncate = call.engine, generation.prompt, generation.truncate
    tokenizer = engine.tokenizer
    limit = engine.limits.max_input_tokens
    if truncate is not None and not 0 < truncate <= limit:
        raise ValidationError(
            f"`truncate` must be strictly positive and less than {limit}. Given: {truncate}"
        )
    if isinstance(prompt, str):

        def encode() -> list[int]:
            if truncate is None:
                _check_input(tokenizer.min_tokens(prompt), generation.names, engine.limits, "at least ")
            return tokenizer.encode(
                prompt,
                add_special_tokens=generation.add_special_tokens,
                truncate=None if generation.truncate_end else truncate,
            )

        ids = await call.tokenized(encode, len(prompt))
    else:
        ids = list(prompt)[-truncate:] if truncate and not generation.truncate_end else list(prompt)
    check_known(ids, engine)
    return ids[:truncate] if generation.truncate_end else ids


def _check_counts(generation: Generation, limits: Limits) -> None:
    """Check V13 and V14."""
    if generation.max_new_tokens == 0:
        raise ValidationError(f"`{generation.names.max_tokens}` must be strictly positive")
    stops = len(generation.stop)
    if stops > limits.max_stop_sequences:
        raise ValidationError(
            f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {stops}"
        )
    if generation.seed is not None and generation.count > 1 and not generation.seed_for_several:
        raise ValidationError("`seed` must not be set when `best_of` > 1")
    top = generation.sampling.top_n_tokens
    max_top = max(limits.max_top_n_tokens, generation.max_top_tokens)
    if top > max_top:
        raise ValidationError(f"`{generation.names.top}` must be >= 0 and <= {max_top}. Given: {top}")


def _check_input(prompt: int, names: Names, limits: Limits, about: str = "") -> None:
    """Refuse a prompt that is longer than the limit (V20)."""
    if prompt > limits.max_input_tokens:
        raise ContextLengthExceeded(
            names.context.format(limits.max_total_tokens)
            + f"`{names.prompt}` must have less than {limits.max_input_tokens} tokens. Given: {about}{prompt}"
        )


def _check_lengths(prompt: int, generation: Generation, limits: Limits) -> int:
    """Return the number of tokens that may be generated (V20, V21).

    A number beyond what fits is cut to what fits where TGI would have accepted it: TGI looks at the first
    `CHUNK` tokens only.
    """
    names, most = generation.names, limits.max_total_tokens
    room = most - prompt
    wanted = max(room, 0) if generation.max_new_tokens is None else generation.max_new_tokens
    if min(wanted, CHUNK) > room:
        raise ContextLengthExceeded(
            names.context.format(most) + f"`{names.prompt}` tokens + `{names.max_tokens}` must be <= {most}. "
            f"Given: {prompt} `{names.prompt}` tokens and {wanted} `{names.max_tokens}`"
        )
    _check_input(prompt, names, limits)
    if not prompt:
        raise ValidationError(f"`{names.prompt}` cannot be empty")
    return min(wanted, room)
