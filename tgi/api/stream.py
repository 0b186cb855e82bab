"""A generation as server-sent events: one write for all events that are ready (tgi-behaviour 1.6, 3.2)."""

from contextlib import ExitStack
from types import TracebackType

import msgspec
import trio
from msgspec import UNSET, UnsetType
from quart.wrappers.response import ResponseBody

from tgi.errors import ApiError, IncompleteGenerationStream
from tgi.scheduler import Sequence, Token
from tgi.text.stopping import FinishReason
from tgi.text.tokenizer import Tokenizer

from .generate import (
    Receive,
    TokenBody,
    encode,
    generated_text,
    reported_seed,
    top_bodies,
)
from .observe import Observer, Timings
from .validate import Generation

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b":\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


class StreamDetailsBody(msgspec.Struct):
    """How the text came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class EventBody(msgspec.Struct):
    """One event."""

    index: int
    token: TokenBody
    top_tokens: list[TokenBody] | UnsetType
    generated_text: str | None
    details: StreamDetailsBody | None


class EventStream(ResponseBody):
    """The body of a streamed answer. Closes `held` with the last event, before that is sent."""

    def __init__(
        self,
        generation: Generation,
        receive: Receive,
        tokenizer: Tokenizer,
        observer: Observer,
        held: ExitStack,
    ) -> None:
        self._generation = generation
        self._sequence: Sequence = generation.sequences[0]
        self._receive = receive
        self._tokenizer = tokenizer
        self._observer = observer
        self._held = held
        self._ready: list[Token | ApiError] | None = None
        """Received but not yet sent; empty: nothing came in time."""
        self._index = 0
        self._ended = False

    async def __aenter__(self) -> "EventStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is held here."""

    def __aiter__(self) -> "EventStream":
        return self

    async def start(self) -> None:
        """Wait for the first token, up to `KEEP_ALIVE_SECONDS`: a failure before it still gets a true status.

        Raises ApiError.
        """
        self._ready = await self._receive_ready()
        if self._ready and isinstance(self._ready[0], ApiError):
            raise self._ready[0]

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        items = await self._receive_ready() if self._ready is None else self._ready
        self._ready = None
        data = b"".join(map(self._event, items))
        if self._ended:
            self._held.close()
        return data or KEEP_ALIVE

    async def _receive_ready(self) -> list[Token | ApiError]:
        """Wait for an item, and take all that are there; none if nothing comes in `KEEP_ALIVE_SECONDS`."""
        items: list[Token | ApiError] = []
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            try:
                items.append(await self._receive.receive())
                while True:
                    items.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                pass
            except trio.EndOfChannel:
                if not items or not _is_last(items[-1]):
                    items.append(IncompleteGenerationStream())
        return items

    def _event(self, item: Token | ApiError) -> bytes:
        if isinstance(item, ApiError):
            self._ended = True
            self._observer.failed(item)
            return b"data: " + encode(item.to_body()) + b"\n\n"
        self._index += 1
        if self._index == 1:
            self._observer.first_token(self._sequence)
        special = item.id in self._tokenizer.special_ids
        body = EventBody(
            self._index,
            TokenBody(item.id, item.text, item.logprob, special),
            top_bodies(item, self._tokenizer) if item.top else UNSET,
            None,
            None,
        )
        if item.finish is not None:
            self._finish(body, item)
        return b"data: " + encode(body) + b"\n\n"

    def _finish(self, body: EventBody, last: Token) -> None:
        self._ended = True
        sequence, generation = self._sequence, self._generation
        body.generated_text = generated_text(generation, sequence, last, self._tokenizer)
        if generation.parameters.details:
            assert last.finish is not None
            body.details = StreamDetailsBody(
                last.finish, self._index, reported_seed(sequence), len(sequence.prompt)
            )
        self._observer.finished(sequence, Timings.of(sequence))


def _is_last(item: Token | ApiError) -> bool:
    return isinstance(item, ApiError) or item.finish is not None
