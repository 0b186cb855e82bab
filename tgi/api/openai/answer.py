"""Parts that chat and completions share: sampling of a request, visible text, and the events of a stream."""

import abc
import time
from collections.abc import Sequence as Items
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from tgi.api.call import FINGERPRINT, Call
from tgi.api.loras import lora_of_model
from tgi.api.stream import Finished, frame
from tgi.api.validate import Generation, Names, sampling_params
from tgi.errors import ApiError, ValidationError
from tgi.limits import Limits
from tgi.sampling import WARPERS
from tgi.scheduler import Sequence, Token
from tgi.text.stopping import FinishReason, overlap
from tgi.text.tokenizer import Tokenizer

from .types import (
    MAX_CHAT_LOGPROBS,
    OpenAIRequest,
    PromptLogprob,
    PromptLogprobs,
    Reason,
    StreamOptions,
    Usage,
)

_DONE = b"data: [DONE]\n\n"
_CONTEXT = "This model's maximum context length is {} tokens. "
"""Beginning of OpenAI's message, by which clients know that they must shorten a conversation."""
_MAX_BIAS = 100.0
_MAX_ID_DIGITS = 10


def make_generation(
    call: Call[Any],
    body: OpenAIRequest,
    prompt: str | Items[int],
    *,
    max_tokens: int | None,
    top: int | None,
    names: tuple[str, str],
    **others: Any,
) -> Generation:
    """Return the generation that a request asks for. `top`: most likely tokens to report for each token.

    `names` are those of the prompt's field and of `top`'s. Raises ValidationError.
    """
    if body.stream_options is not None and not body.stream:
        raise ValidationError("`stream_options` needs `stream`")
    greedy = body.temperature == 0 or body.top_p == 0
    sampling = sampling_params(
        body,
        "openai",
        sample=not greedy,
        logit_bias=_bias(body.logit_bias, call.engine.model.vocab_size),
        top_n_tokens=top or 0,
    )
    if greedy:
        sampling = msgspec.structs.replace(sampling, **{warper.name: warper.neutral for warper in WARPERS})
    return Generation(
        prompt=prompt,
        sampling=sampling,
        seed=body.seed,
        max_new_tokens=max_tokens,
        stop=body.stops,
        length_first=False,
        ignore_eos=bool(body.ignore_eos),
        stop_token_ids=body.stop_token_ids or (),
        allowed_token_ids=body.allowed_token_ids,
        bad_words=body.bad_words or (),
        priority=body.priority or 0,
        lora=lora_of_model(call.engine, body.model),
        truncate=_truncation(body, call.engine.limits),
        truncate_end=body.truncation_side == "right",
        names=Names(
            names[0],
            "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens",
            names[1],
            _CONTEXT,
        ),
        **others,
    )


def _truncation(body: OpenAIRequest, limits: Limits) -> int | None:
    wanted = body.truncate_prompt_tokens
    if wanted is not None and (wanted == 0 or not -1 <= wanted <= limits.max_input_tokens):
        raise ValidationError(
            f"`truncate_prompt_tokens` must be -1, or > 0 and <= {limits.max_input_tokens}. Given: {wanted}"
        )
    return limits.max_input_tokens if wanted == -1 else wanted


def prompt_top(body: OpenAIRequest, limits: Limits, echoed: int | None = None) -> int | None:
    """Return the number of most likely tokens to report for each token of the prompt; None: nothing.

    `echoed` of them are wanted beside an echo of the prompt. Raises ValidationError.
    """
    wanted, maximum = body.prompt_logprobs, max(limits.max_top_n_tokens, MAX_CHAT_LOGPROBS)
    if wanted is not None and wanted > maximum:
        raise ValidationError(f"`prompt_logprobs` must be >= 0 and <= {maximum}. Given: {wanted}")
    return max((count for count in (wanted, echoed) if count is not None), default=None)


def prompt_logprobs(sequence: Sequence, top: int | None, tokenizer: Tokenizer) -> PromptLogprobs | UnsetType:
    """Return the log-probabilities of a prompt's tokens, with the `top` most likely ones."""
    if top is None:
        return UNSET
    tables: PromptLogprobs = [None]
    tops = sequence.prompt_tops or [[]] * len(sequence.prompt_logprobs)
    for own, value, best in zip(sequence.prompt[1:], sequence.prompt_logprobs, tops, strict=True):
        ranks = {token: rank for rank, (token, _) in enumerate(best, 1)}
        entries = dict([*best[:top], (own, value)])
        tables.append(
            {
                str(token): PromptLogprob(logprob, ranks.get(token), tokenizer.decode_alone(token))
                for token, logprob in entries.items()
            }
        )
    return tables


def token_name(token: int) -> str:
    """Return the name of a token for clients that want ids in place of texts."""
    return f"token_id:{token}"


def check_count(name: str, value: int | None, limits: Limits) -> int:
    """Return the number of texts that `n` or `best_of` asks for, each of which takes a permit.

    Raises ValidationError.
    """
    count, maximum = 1 if value is None else value, limits.max_concurrent_requests
    if not 0 < count <= maximum:
        raise ValidationError(f"`{name}` must be > 0 and <= {maximum}. Given: {count}")
    return count


def _bias(bias: dict[str, float] | list[float] | None, size: int) -> tuple[tuple[int, float], ...]:
    pairs = {}
    for key, value in bias.items() if isinstance(bias, dict) else ():
        is_number = key.isascii() and key.isdigit() and len(key) <= _MAX_ID_DIGITS
        token = int(key) if is_number else size
        if token >= size:
            raise ValidationError(f"`logit_bias`: {key[:40]!r} is no id of the model's {size} tokens")
        if not -_MAX_BIAS <= value <= _MAX_BIAS:
            raise ValidationError(f"`logit_bias` must be >= -100 and <= 100. Given: {value:g} for {key}")
        pairs[token] = value
    return tuple(pairs.items())


class VisibleText:
    """The text of one choice as its tokens come, without end tokens and stop strings.

    Text that may begin a stop string is held back until the next token.
    """

    def __init__(
        self, tokenizer: Tokenizer, body: OpenAIRequest, *, shown: frozenset[int] = frozenset()
    ) -> None:
        """Hide special tokens unless they are `shown`, as the marks around tool calls are."""
        hides_special = body.skip_special_tokens is not False
        self._hidden = tokenizer.eos_ids | (tokenizer.special_ids - shown) if hides_special else frozenset()
        self._keeps_end = bool(body.include_stop_str_in_output)
        self._stop = [text for text in body.stops if text]
        self._held = ""

    def feed(self, token: Token) -> str:
        """Return the text that is certain with the next token."""
        ends_text = token.finish is FinishReason.EOS_TOKEN and not self._keeps_end
        text = "" if ends_text or token.id in self._hidden else token.text
        if not self._stop:
            return text
        seen = self._held + text
        if token.finish is FinishReason.STOP_SEQUENCE:
            ends = [(at + len(stop), at) for stop in self._stop if (at := seen.find(stop)) >= 0]
            return seen[: min(ends)[0 if self._keeps_end else 1]] if ends else seen
        certain = len(seen) - (0 if token.finish else max(overlap(seen, stop) for stop in self._stop))
        self._held = seen[certain:]
        return seen[:certain]


def openai_reason(finish: FinishReason) -> Reason:
    """Return OpenAI's name of the reason why a generation ended."""
    return "length" if finish is FinishReason.LENGTH else "stop"


class Answer(abc.ABC):
    """The answer to a request, as events (it is an `EventWriter`) or as a whole, which subclasses write."""

    def __init__(
        self,
        call: Call[Any],
        options: StreamOptions | None,
        sequences: Items[Sequence],
        *,
        prefix: str,
        model: str,
        per_prompt: int,
    ) -> None:
        """`per_prompt` sequences answer one prompt; those of a prompt follow one another."""
        self.ended = False
        self.head = f"{prefix}-{call.exchange.id}", int(time.time()), model, FINGERPRINT
        """Fields that the answer, or every event of it, begins with."""
        self.sequences = sequences
        self.options = options or StreamOptions()
        self.generated = [0] * len(sequences)
        """Number of tokens of each sequence so far."""
        self.counts_tokens = True
        """Whether generated tokens are part of the usage."""
        self._prompts = sequences[::per_prompt]
        self._open = len(sequences)
        self._observer = call.observer
        self._observer.generations = len(sequences)

    def write(self, index: int, item: Token | ApiError) -> bytes:
        """Return the event of a token, and those that close the stream after the last token."""
        if isinstance(item, ApiError):
            self._observer.failed(item)
            return frame(item.to_openai_body()) + self._close(1)
        self.generated[index] += self.counts_tokens
        data = b"".join([frame(event) for event in self.events(index, item)])
        if item.finish is None:
            return data
        self._observer.finished(self.sequences[index])
        return data + self._close(1)

    def fail(self, error: ApiError) -> bytes:
        """Return the event of an error that ends all sequences (R3.59)."""
        self._observer.failed(error)
        return frame(error.to_openai_body()) + self._close(self._open)

    def usage(self) -> Usage:
        """Return the tokens of all prompts and sequences so far."""
        return Usage.of(self._prompts, sum(self.generated))

    def running_usage(self) -> Usage | None:
        """Return the usage that an event tells if the client asks for it."""
        return self.usage() if self.options.continuous_usage_stats else None

    def _close(self, count: int) -> bytes:
        """Return the events after the ends of `count` more sequences."""
        self._open -= count
        if self._open:
            return b""
        self.ended = True
        last = frame(self.usage_event()) if self.options.include_usage else b""
        return last + _DONE

    @abc.abstractmethod
    def events(self, index: int, token: Token) -> Items[object]:
        """Return the events of the next token of a sequence; none if it adds nothing that a client sees."""

    @abc.abstractmethod
    def usage_event(self) -> object:
        """Return the event that tells the usage at the end."""

    @abc.abstractmethod
    def whole(self, finished: Items[Finished]) -> object:
        """Return the body of an answer that is not streamed."""
