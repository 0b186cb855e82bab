"""What the parameters of OpenAI's API come to (2.3): generations, whose values TGI would refuse left out."""

from collections.abc import Sequence as Items
from typing import Any

from tgi.api.call import Call
from tgi.api.validate import Generation, sampling_params
from tgi.errors import BatchSizeExceeded, SuffixNotSupported, ValidationError
from tgi.limits import Limits
from tgi.text.grammar import GrammarSpec

from .types import MAX_CHAT_LOGPROBS, MAX_COMPLETION_LOGPROBS, ChatRequest, CompletionRequest

MAX_BIAS = 100.0
_MAX_ID_DIGITS = 10


def chat_count(body: ChatRequest, limits: Limits) -> int:
    """Return the number of sequences. Raises ValidationError."""
    return _count("n", body.n, limits)


def chat_generation(
    call: Call[ChatRequest], body: ChatRequest, prompt: str, grammar: GrammarSpec | None
) -> Generation:
    """Return what a chat request asks for. Raises ValidationError."""
    return _generation(
        call,
        body,
        prompt,
        count=chat_count(body, call.engine.limits),
        max_tokens=body.max_tokens,
        top=body.top_logprobs,
        max_top=MAX_CHAT_LOGPROBS,
        grammar=lambda: grammar,
        add_special_tokens=False,
    )


def completion_count(body: CompletionRequest, limits: Limits) -> int:
    """Return the number of sequences of each prompt (V30, V31). Raises ApiError."""
    if body.suffix is not None:
        raise SuffixNotSupported
    prompts = len(body.prompts)
    if prompts > limits.max_client_batch_size:
        raise BatchSizeExceeded(str(limits.max_client_batch_size))
    count = _count("n", body.n, limits)
    best_of = count if body.best_of is None else _count("best_of", body.best_of, limits)
    if best_of < count:
        raise ValidationError(f"`best_of` must be >= `n`. Given: {best_of} and {count}")
    if best_of * prompts > limits.max_concurrent_requests:
        raise ValidationError(
            f"`n` or `best_of` times the prompts must be <= {limits.max_concurrent_requests}. "
            f"Given: {best_of * prompts}"
        )
    if best_of > count and body.stream:
        raise ValidationError("`best_of` > `n` is not supported when streaming tokens")
    return best_of


def completion_generation(call: Call[CompletionRequest], prompt: str | Items[int], count: int) -> Generation:
    """Return what a completion request asks for one of its prompts. Raises ValidationError.

    With `max_tokens` 0 and `echo`, which ask for the prompt alone, one token is generated and not shown.
    """
    body = call.body
    return _generation(
        call,
        body,
        prompt,
        count=count,
        max_tokens=1 if body.echo and body.max_tokens == 0 else body.max_tokens,
        top=body.logprobs,
        max_top=MAX_COMPLETION_LOGPROBS,
        prompt_top=body.logprobs if body.echo else None,
    )


def _generation(
    call: Call[Any],
    body: ChatRequest | CompletionRequest,
    prompt: str | Items[int],
    *,
    count: int,
    max_tokens: int | None,
    top: int | None,
    max_top: int,
    **others: Any,
) -> Generation:
    size = call.engine.model.vocab_size
    ends = body.stop_token_ids or ()
    if (unknown := max(ends, default=0)) >= size:
        raise ValidationError(f"`stop_token_ids`: the model has {size} tokens, and no token {unknown}")
    greedy = body.temperature == 0
    sampling = sampling_params(
        body,
        "openai",
        sample=not greedy,
        logit_bias=_bias(body.logit_bias, size),
        top_n_tokens=top or 0,
        **({"top_p": 1.0, "top_k": 0} if greedy else {}),
    )
    return Generation(
        prompt=prompt,
        sampling=sampling,
        seed=body.seed,
        count=count,
        max_new_tokens=max_tokens,
        stop=body.stops,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=ends,
        max_top_tokens=max_top,
        **others,
    )


def _count(name: str, value: int | None, limits: Limits) -> int:
    """Return `n` or `best_of`, each of which holds a permit."""
    count, most = 1 if value is None else value, limits.max_concurrent_requests
    if not 0 < count <= most:
        raise ValidationError(f"`{name}` must be > 0 and <= {most}. Given: {count}")
    return count


def _bias(bias: dict[str, float] | list[float] | None, size: int) -> tuple[tuple[int, float], ...]:
    pairs = {}
    for key, value in bias.items() if isinstance(bias, dict) else ():
        is_number = key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS
        token = int(key) if is_number else size
        if token >= size:
            raise ValidationError(f"`logit_bias`: {key[:40]!r} is no id of the model's {size} tokens")
        if not -MAX_BIAS <= value <= MAX_BIAS:
            raise ValidationError(f"`logit_bias` must be >= -100 and <= 100. Given: {value:g} for {key}")
        pairs[token] = value
    return tuple(pairs.items())
