"""Chats in the form of another API: its request becomes one for chat completions; the answer is its own."""

import abc
import functools
import re
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import msgspec
from quart import Response

from tgi.errors import ApiError, WrongShape
from tgi.scheduler import Sequence, Token
from tgi.text.tool_calls import AnswerDelta

from .call import Call, json_answer
from .openai.answers import Reason, Usage
from .openai.chat import Choice
from .openai.prompts import ChatPrompt, chat_sequences
from .openai.requests import ChatRequest
from .stream import KEEP_ALIVE, Finished, frame

Json = dict[str, Any]


def chat_request(**fields: Any) -> ChatRequest:
    """Return a request for chat completions; fields that are None are not given. Raises WrongShape."""
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return msgspec.convert(given, ChatRequest)
    except msgspec.ValidationError as error:
        raise WrongShape(str(error)) from error


Handler = Callable[[Call[Any]], Awaitable[Response]]


def naming(**names: str) -> Callable[[Handler], Handler]:
    """Make a decorator of handlers whose refusals name fields as their API does, not chat completions."""
    field = re.compile(rf"`(\$\.)?({'|'.join(names)})\b")

    def add(handler: Handler) -> Handler:
        @functools.wraps(handler)
        async def answer(call: Call[Any]) -> Response:
            try:
                return await handler(call)
            except ApiError as error:
                error.args = (field.sub(lambda found: f"`{found[1] or ''}{names[found[2]]}", str(error)),)
                raise

        return answer

    return add


class TranslatedAnswer(abc.ABC):
    """One answer to a conversation, as events (it is an `EventWriter`) or as a whole."""

    media_type: ClassVar[str] = "text/event-stream; charset=utf-8"
    """Content type of a stream."""
    keep_alive: ClassVar[bytes] = KEEP_ALIVE
    """Bytes of a stream that say nothing, sent to keep the connection alive."""

    def __init__(self, call: Call[Any], chat: ChatRequest, prompt: ChatPrompt, sequence: Sequence) -> None:
        self.ended = False
        self.call = call
        self.sequence = sequence
        self.model = chat.model or call.engine.model.served_name
        self.generated = 0
        """Number of tokens so far."""
        self._choice = Choice(call.engine.tokenizer, chat, prompt)
        self._begun = False

    def write(self, _index: int, item: Token | ApiError) -> bytes:
        """Return the events of a token, those before the first, and those after the last."""
        if isinstance(item, ApiError):
            return self.fail(item)
        before = b"" if self._begun else self.begin()
        self._begun = True
        self.generated += 1
        data = before + self.add(self._choice.feed(item))
        if item.finish is None:
            return data
        self.call.observer.finished(self.sequence)
        self.ended = True
        return data + self.end(self._choice.reason(item.finish))

    def fail(self, error: ApiError) -> bytes:
        """Return the events of an error, which ends the answer."""
        self.call.observer.failed(error)
        self.ended = True
        return self.error(error)

    def whole(self, finished: Finished) -> Json:
        """Return the body of an answer that is not streamed."""
        self.generated = len(finished.tokens)
        deltas = [self._choice.feed(token) for token in finished.tokens]
        return self.body(deltas, self._choice.reason(finished.reason))

    @property
    def usage(self) -> Usage:
        """Numbers of tokens so far."""
        return Usage.of([self.sequence], self.generated)

    @abc.abstractmethod
    def begin(self) -> bytes:
        """Return the events before the first token."""

    @abc.abstractmethod
    def add(self, delta: AnswerDelta) -> bytes:
        """Return the events of the next pieces of the answer."""

    @abc.abstractmethod
    def end(self, reason: Reason) -> bytes:
        """Return the events after the last token."""

    @abc.abstractmethod
    def error(self, error: ApiError) -> bytes:
        """Return the events of an error."""

    @abc.abstractmethod
    def body(self, deltas: list[AnswerDelta], reason: Reason) -> Json:
        """Return the body of an answer with these pieces."""


async def answer_chat(
    call: Call[Any],
    chat: ChatRequest,
    kind: type[TranslatedAnswer],
    make: Callable[..., TranslatedAnswer] | None = None,
) -> Response:
    """Answer a conversation; `make` makes the answer if it needs more than `TranslatedAnswer` does."""
    with call.generating():
        call.take_permits(1)
        prompt, sequences = await chat_sequences(call, chat)
        answer = (make or kind)(call, chat, prompt, sequences[0])
        call.observer.generations = 1
        headers = call.prompt_headers(len(prompt.text))
        if chat.stream:
            headers |= {"content-type": kind.media_type}
            return await call.stream(sequences, answer, headers, kind.keep_alive)
        finished = await call.generate(sequences)
        headers |= call.finish(finished)
    return json_answer(answer.whole(finished[0]), headers=headers)


def named_event(name: str, body: Json) -> bytes:
    """Return a server-sent event with a name."""
    return f"event: {name}\n".encode() + frame(body)
