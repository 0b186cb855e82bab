"""What the parameters of the OpenAI routes come to: TGI's parameters, and the extras that TGI does not have.

A value that OpenAI calls neutral is left out where TGI refuses it (`top_p: 1`), and a temperature of 0 means
the most likely token (2.3).
"""

from tgi.errors import ValidationError
from tgi.limits import Limits

from .openai_schema import ChatRequest, CompletionRequest
from .schema import GenerateParameters
from .service import Engine
from .validate import Extras

MOST_CHAT_LOGPROBS = 20
MOST_COMPLETION_LOGPROBS = 5
"""OpenAI's limits; the server's own may be higher."""
MOST_BIAS = 100.0
_LONGEST_ID = 10
"""Digits; Python refuses to read a number of thousands of them."""


def chat_parameters(body: ChatRequest, engine: Engine) -> tuple[GenerateParameters, Extras]:
    """Of a chat request. Raises ValidationError."""
    count = _count("n", body.n, engine.limits)
    extras = _extras(body, engine, count, MOST_CHAT_LOGPROBS, add_special_tokens=False)
    return _parameters(body, body.max_tokens, body.top_logprobs), extras


def completion_parameters(body: CompletionRequest, engine: Engine) -> tuple[GenerateParameters, Extras]:
    """Of a completion request. Raises ValidationError.

    Nothing but the prompt itself is wanted where `max_tokens` is 0 and `echo` is set: one token is generated
    then, and not shown.
    """
    count = _count("n", body.n, engine.limits)
    best_of = count if body.best_of is None else _count("best_of", body.best_of, engine.limits)
    if best_of < count:
        raise ValidationError(f"`best_of` must be >= `n`. Given: {best_of} and {count}")
    texts, most = best_of * len(body.prompt), engine.limits.max_concurrent_requests
    if texts > most:
        raise ValidationError(f"`n` or `best_of` times the prompts must be <= {most}. Given: {texts}")
    if best_of > count and body.stream:
        raise ValidationError("`best_of` > `n` is not supported when streaming tokens")
    prompt_top = body.logprobs if body.echo else None
    extras = _extras(body, engine, best_of, MOST_COMPLETION_LOGPROBS, prompt_top=prompt_top)
    max_tokens = 1 if body.echo and body.max_tokens == 0 else body.max_tokens
    return _parameters(body, max_tokens, body.logprobs), extras


def _parameters(
    body: ChatRequest | CompletionRequest, max_tokens: int | None, top: int | None
) -> GenerateParameters:
    greedy = body.temperature == 0
    return GenerateParameters(
        do_sample=not greedy,
        temperature=None if greedy else body.temperature,
        top_p=None if body.top_p == 1 or greedy else body.top_p,
        top_k=None if body.top_k in (-1, 0) or greedy else body.top_k,
        repetition_penalty=body.repetition_penalty,
        max_new_tokens=max_tokens,
        stop=body.stop or [],
        seed=body.seed,
        top_n_tokens=top,
        details=True,
    )


def _extras(
    body: ChatRequest | CompletionRequest,
    engine: Engine,
    count: int,
    most_top: int,
    *,
    add_special_tokens: bool = True,
    prompt_top: int | None = None,
) -> Extras:
    for name in ("frequency_penalty", "presence_penalty"):
        value = getattr(body, name)
        if value is not None and not -2.0 <= value <= 2.0:
            raise ValidationError(f"`{name}` must be >= -2.0 and <= 2.0")
    if body.min_p is not None and not 0.0 <= body.min_p <= 1.0:
        raise ValidationError("`min_p` must be >= 0.0 and <= 1.0")
    size = engine.model.vocab_size
    ends = tuple(body.stop_token_ids or ())
    if (unknown := max(ends, default=0)) >= size:
        raise ValidationError(f"`stop_token_ids`: the model has {size} tokens, and no token {unknown}")
    return Extras(
        count=count,
        add_special_tokens=add_special_tokens,
        presence_penalty=body.presence_penalty or 0.0,
        count_penalty=body.frequency_penalty or 0.0,
        min_p=body.min_p or 0.0,
        logit_bias=_bias(body.logit_bias or {}, size),
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=ends,
        most_top_tokens=most_top,
        prompt_top=prompt_top,
    )


def _count(name: str, value: int | None, limits: Limits) -> int:
    """`n` or `best_of`: each holds a permit."""
    count, most = 1 if value is None else value, limits.max_concurrent_requests
    if not 0 < count <= most:
        raise ValidationError(f"`{name}` must be > 0 and <= {most}. Given: {count}")
    return count


def _bias(bias: dict[str, float], size: int) -> tuple[tuple[int, float], ...]:
    pairs = {}
    for key, value in bias.items():
        is_number = key.isascii() and key.isdigit() and len(key) <= _LONGEST_ID
        token = int(key) if is_number else size
        if token >= size:
            raise ValidationError(f"`logit_bias`: {key[:40]!r} is no id of the model's {size} tokens")
        if not -MOST_BIAS <= value <= MOST_BIAS:
            raise ValidationError(f"`logit_bias` must be >= -100 and <= 100. Given: {value:g} for {key}")
        pairs[token] = value
    return tuple(pairs.items())
