"""The events of `/v1/chat/completions` and `/v1/completions` (tgi-behaviour 3.5 and 3.7)."""

from collections.abc import Sequence as Items

import attrs
from msgspec import UNSET, UnsetType

from tgi.api.observe import Observer
from tgi.api.service import Engine
from tgi.api.stream import frame
from tgi.errors import ApiError
from tgi.scheduler import Sequence, Token
from tgi.text.tool_formats import CallDelta

from .chat import ChatPrompt, chat_logprobs, choice_content
from .text import ChoiceText, LogprobColumns, joined, openai_reason
from .types import (
    ChatCompletionChoice,
    ChatCompletionChunk,
    ChatCompletionDelta,
    ChatRequest,
    CompletionComplete,
    CompletionFinal,
    CompletionRequest,
    DeltaToolCall,
    Function,
    StreamOptions,
    Usage,
)

DONE = b"data: [DONE]\n\n"
_NO_OPTIONS = StreamOptions()


@attrs.frozen
class Head:
    """What all events of an answer have in common."""

    id: str
    created: int
    model: str
    fingerprint: str


class OpenAIEvents:
    """Counts what is generated, and ends the stream; what an event looks like is the subclass's affair."""

    def __init__(
        self,
        head: Head,
        options: StreamOptions | None,
        sequences: Items[Sequence],
        prompts: Items[Sequence],
        observer: Observer,
    ) -> None:
        """`prompts`: one sequence of each prompt."""
        self.ended = False
        self._head = head
        self._options = options or _NO_OPTIONS
        self._sequences = sequences
        self._prompts = prompts
        self._observer = observer
        self._generated = [0] * len(sequences)
        self._open = len(sequences)

    def write(self, index: int, item: Token | ApiError) -> bytes:
        """The event of a token, and at the end those that close the stream."""
        if isinstance(item, ApiError):
            self._observer.failed(item)
            return frame(item.to_openai_body()) + self._close(1)
        self._generated[index] += 1
        data = self._event(index, item)
        if item.finish is None:
            return data
        self._observer.finished(self._sequences[index])
        return data + self._close(1)

    def fail(self, error: ApiError) -> bytes:
        """R3.59, once for all that still run."""
        self._observer.failed(error)
        return frame(error.to_openai_body()) + self._close(self._open)

    def _close(self, count: int) -> bytes:
        """`count` more sequences have ended."""
        self._open -= count
        if self._open:
            return b""
        self.ended = True
        last = frame(self._usage_event()) if self._options.include_usage else b""
        return last + DONE

    def _usage(self) -> Usage:
        """Of everything up to now."""
        prompt = sum(len(sequence.prompt) for sequence in self._prompts)
        return Usage.of(prompt, sum(self._generated))

    def _running_usage(self) -> Usage | None:
        return self._usage() if self._options.continuous_usage_stats else None

    def _event(self, index: int, token: Token) -> bytes:
        raise NotImplementedError

    def _usage_event(self) -> object:
        raise NotImplementedError


class ChatEvents(OpenAIEvents):
    """Of a chat answer: one event for each token, but for those that only frame tool calls."""

    def __init__(
        self,
        head: Head,
        body: ChatRequest,
        prompt: ChatPrompt,
        engine: Engine,
        sequences: Items[Sequence],
        observer: Observer,
    ) -> None:
        super().__init__(head, body.stream_options, sequences, sequences[:1], observer)
        self._body = body
        self._engine = engine
        self._contents = [choice_content(body, prompt, engine) for _ in sequences]
        self._untold: list[list[Token]] = [[] for _ in sequences]
        """Of each choice the tokens that no event has told of."""

    def _event(self, index: int, token: Token) -> bytes:
        content, untold = self._contents[index], self._untold[index]
        pieces = content.feed(token)
        thoughts = "" if self._body.include_reasoning is False else pieces.thoughts
        untold.append(token)
        if content.parser is not None and not (thoughts or pieces.content or pieces.calls or token.finish):
            return b""
        delta = ChatCompletionDelta()
        if not content.begun:
            content.begun = True
            delta.role = "assistant"
        if thoughts:
            delta.reasoning_content = delta.reasoning = thoughts
        if pieces.calls:
            delta.tool_calls = [_call_delta(call) for call in pieces.calls]
        if pieces.content or not (pieces.calls or thoughts):
            delta.content = pieces.content
        reason = None if token.finish is None else content.reason(token.finish)
        logprobs = chat_logprobs(self._body, self._engine, untold)
        untold.clear()
        return frame(
            self._chunk([ChatCompletionChoice(index, delta, logprobs, reason)], self._running_usage())
        )

    def _usage_event(self) -> object:
        return self._chunk([], self._usage())

    def _chunk(self, choices: list[ChatCompletionChoice], usage: Usage | None) -> ChatCompletionChunk:
        head = self._head
        return ChatCompletionChunk(
            "chat.completion.chunk", head.id, head.created, head.model, head.fingerprint, choices, usage
        )


def _call_delta(call: CallDelta) -> DeltaToolCall:
    """Id, type and name come once: clients put strings that come again behind one another."""
    if call.id is None or call.name is None:
        return DeltaToolCall(call.index, Function(call.arguments))
    return DeltaToolCall(call.index, Function(call.arguments, call.name), id=call.id, type="function")


class CompletionEvents(OpenAIEvents):
    """Of completions of one or several prompts; events of different prompts come as they are ready."""

    def __init__(
        self,
        head: Head,
        body: CompletionRequest,
        engine: Engine,
        prompts: Items[str],
        sequences: Items[Sequence],
        observer: Observer,
    ) -> None:
        """`prompts` are texts; the sequences of one prompt follow one another."""
        self._count = len(sequences) // len(prompts)
        super().__init__(head, body.stream_options, sequences, sequences[:: self._count], observer)
        self._body = body
        self._texts = [ChoiceText(engine.tokenizer, body.stops) for _ in sequences]
        self._echoes = [prompts[n // self._count] if body.echo else "" for n in range(len(sequences))]
        self._logprobs = [LogprobColumns(engine.tokenizer, body.logprobs or 0) for _ in sequences]

    def _event(self, index: int, token: Token) -> bytes:
        echo, hidden = self._echoes[index], self._body.echo and self._body.max_tokens == 0
        text = "" if hidden else self._texts[index].feed(token)
        logprobs = None
        if self._body.logprobs is not None:
            columns = self._logprobs[index]
            first = columns.prompt(self._sequences[index], echo) if self._is_echo(index) else None
            logprobs = columns.tokens([] if hidden else [token])
            logprobs = logprobs if first is None else joined(first, logprobs)
        if self._is_echo(index):
            text = echo + text
        reason = None if token.finish is None else openai_reason(token.finish)
        choice = CompletionComplete(index, text, logprobs, reason)
        return frame(self._chunk([choice], self._event_usage(index, token)))

    def _is_echo(self, index: int) -> bool:
        return bool(self._body.echo) and self._generated[index] == 1

    def _event_usage(self, index: int, token: Token) -> Usage | UnsetType | None:
        """3.7: the last event of a prompt has its usage, where the client does not ask for that of all."""
        if self._options.include_usage:
            return self._running_usage()
        if token.finish is None:
            return UNSET
        return Usage.of(len(self._sequences[index].prompt), self._generated[index])

    def _usage_event(self) -> object:
        return self._chunk([], self._usage())

    def _chunk(self, choices: list[CompletionComplete], usage: Usage | UnsetType | None) -> CompletionFinal:
        head = self._head
        return CompletionFinal(
            "text_completion", head.id, head.created, head.model, head.fingerprint, choices, usage
        )
