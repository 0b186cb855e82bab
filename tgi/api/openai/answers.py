"""Answers of chat and completions: their JSON, and the way from tokens to it (tgi-behaviour 3.4 to 3.7)."""

import abc
import time
from collections.abc import Sequence as Items
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from tgi.api.call import FINGERPRINT, Call
from tgi.api.stream import Finished, frame
from tgi.errors import ApiError
from tgi.sampling import about
from tgi.scheduler import Sequence, Token
from tgi.text.stopping import FinishReason, overlap
from tgi.text.tokenizer import Piece, Tokenizer

from .requests import OpenAIRequest, StreamOptions

Reason = Literal["stop", "length", "tool_calls", "function_call"]
_DONE = b"data: [DONE]\n\n"

# JSON


class PromptTokensDetails(msgspec.Struct):
    """Tokens of prompts by their origin."""

    cached_tokens: Annotated[int, about("Number of tokens that the prefix cache had.")]


class CompletionTokensDetails(msgspec.Struct):
    """Tokens of answers by their kind."""

    reasoning_tokens: Annotated[int, about("Number of tokens that are thoughts.")]


class Usage(msgspec.Struct):
    """Numbers of tokens of prompts and answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: Annotated[
        CompletionTokensDetails | UnsetType,
        about("In chats, if the chat template has marks around thoughts."),
    ] = UNSET

    @classmethod
    def of(cls, prompts: Items[Sequence], completion: int) -> "Usage":
        """Return the usage of prompts, given by a sequence each, and of generated tokens."""
        tokens = sum(len(sequence.prompt) for sequence in prompts)
        cached = sum(sequence.cached for sequence in prompts)
        return cls(tokens, completion, tokens + completion, PromptTokensDetails(cached))


class PromptLogprob(msgspec.Struct):
    """A token in the place of one of the prompt."""

    logprob: float | None
    rank: Annotated[int | None, about("Place among the most likely tokens; null if it is not one of them.")]
    decoded_token: str


PromptLogprobs: TypeAlias = list[dict[str, PromptLogprob] | None]
"""Tokens of a prompt and the most likely ones in their places, by id; null for the first one."""


class ChatCompletionTopLogprob(msgspec.Struct):
    """One of the most likely tokens in the place of a generated one."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChatCompletionLogprob(ChatCompletionTopLogprob):
    """A generated token."""

    top_logprobs: list[ChatCompletionTopLogprob]


class ChatCompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a chat answer."""

    content: list[ChatCompletionLogprob]
    refusal: None = None


class OutputFunction(msgspec.Struct):
    """The function of a tool call; `arguments` is JSON text."""

    description: str | None
    name: str
    arguments: str


class OutputToolCall(msgspec.Struct):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: OutputFunction


class OutputMessage(msgspec.Struct):
    """The message of the model."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: Annotated[str | UnsetType, about("Thoughts before the content.")] = UNSET
    reasoning: Annotated[str | UnsetType, about("Another name of `reasoning_content`.")] = UNSET
    tool_calls: list[OutputToolCall] | UnsetType = UNSET
    function_call: Annotated["Function | UnsetType", about("Answer to the older `functions`.")] = UNSET


class ChatCompletionComplete(msgspec.Struct):
    """One of `n` answers."""

    index: int
    message: OutputMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: Reason
    token_ids: list[int] | UnsetType = UNSET


class _Head(msgspec.Struct, tag_field="object"):
    """The fields that every answer and event begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(_Head, tag="chat.completion"):
    """The answer of `/v1/chat/completions`."""

    choices: list[ChatCompletionComplete]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class Function(msgspec.Struct):
    """A piece of a tool call; the first one has the name."""

    arguments: str
    name: str | UnsetType = UNSET


class DeltaToolCall(msgspec.Struct):
    """A piece of tool call `index`; the first one has id and type."""

    index: int
    function: Function
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatCompletionDelta(msgspec.Struct):
    """The addition of an event to the message; the first one has the role."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[DeltaToolCall] | UnsetType = UNSET
    function_call: Function | UnsetType = UNSET


class ChatCompletionChoice(msgspec.Struct):
    """The addition of an event to one of `n` answers."""

    index: int
    delta: ChatCompletionDelta
    logprobs: ChatCompletionLogprobs | None
    finish_reason: Reason | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(_Head, tag="chat.completion.chunk"):
    """An event of `/v1/chat/completions`."""

    choices: list[ChatCompletionChoice]
    usage: Usage | None
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a completion, in columns; null for the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class CompletionComplete(msgspec.Struct):
    """One answer to a prompt, or the addition of an event to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionFinal(_Head, tag="text_completion"):
    """The answer of `/v1/completions`, and its events."""

    choices: list[CompletionComplete]
    usage: Usage | UnsetType | None = UNSET


class ChatTokenizeResponse(msgspec.Struct):
    """The answer of `/chat_tokenize`."""

    tokenize_response: list[Piece]
    templated_text: str


# From tokens to answers


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


class VisibleText:
    """The text of one choice as its tokens come, without end tokens and stop strings.

    Text that may begin a stop string is held back until the next token.
    """

    def __init__(
        self, tokenizer: Tokenizer, body: OpenAIRequest, *, shown: frozenset[int] = frozenset()
    ) -> None:
        """Hide special tokens unless they are `shown`, as the marks around tool calls are."""
        hides_special = body.skip_special_tokens is not False
        self.hidden = tokenizer.eos_ids | (tokenizer.special_ids - shown) if hides_special else frozenset()
        self._keeps_end = bool(body.include_stop_str_in_output)
        self._stop = [text for text in body.stops if text]
        self._held = ""

    def feed(self, token: Token) -> str:
        """Return the text that is certain with the next token."""
        ends_text = token.finish is FinishReason.EOS_TOKEN and not self._keeps_end
        text = "" if ends_text or token.id in self.hidden else token.text
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
