"""Generations as server-sent events: one write for all events that are ready (tgi-behaviour 1.6).

What the events look like is the writer's affair: TGI's own (native_answers) or OpenAI's (openai_stream).
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import ClassVar, Protocol

import msgspec
import trio
from quart.wrappers.response import ResponseBody

from tgi.errors import ApiError, DeadlineExceeded, IncompleteGenerationStream
from tgi.scheduler import Token

from .generate import Receive

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b":\n\n"
Item = tuple[int, Token | ApiError]
_encode = msgspec.json.encode


def frame(body: object) -> bytes:
    """One event (R1.80)."""
    return b"data: " + _encode(body) + b"\n\n"


class EventWriter(Protocol):
    """Turns what is generated into events, and tells the observer."""

    ended: bool
    """All generations have ended, and the last event has been written."""

    def write(self, index: int, item: Token | ApiError) -> bytes:
        """The events of the next item of sequence `index`; b"" where there is nothing to say yet."""

    def fail(self, error: ApiError) -> bytes:
        """The events that end every generation that still runs with this error."""


class EventStream(ResponseBody):
    """The body of a streamed answer. Closes `held` with the last event, before that is sent."""

    headers: ClassVar[Mapping[str, str]] = {
        "content-type": "text/event-stream",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
    }

    def __init__(
        self, receive: Receive, writer: EventWriter, held: ExitStack, deadline: float = float("inf")
    ) -> None:
        """`deadline`: on trio's clock; the stream then ends with an error."""
        self._receive = receive
        self._writer = writer
        self._held = held
        self._deadline = deadline
        self._ready: list[Item] | None = None
        """Received but not yet sent; empty: nothing came in time."""
        self._failure: ApiError | None = None
        """What ends the stream after the items that are ready."""

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
        if self._ready:
            _, first = self._ready[0]
            if isinstance(first, ApiError):
                raise first
        elif self._failure is not None:
            raise self._failure

    async def __anext__(self) -> bytes:
        writer = self._writer
        if writer.ended:
            raise StopAsyncIteration
        while True:
            items = await self._receive_ready() if self._ready is None else self._ready
            self._ready = None
            data = b"".join([writer.write(index, item) for index, item in items])
            if self._failure is not None and not writer.ended:
                data += writer.fail(self._failure)
            if writer.ended:
                self._held.close()
            if data or not items:
                return data or KEEP_ALIVE

    async def _receive_ready(self) -> list[Item]:
        """Wait for an item, and take all that are there; none if nothing comes in `KEEP_ALIVE_SECONDS`."""
        items: list[Item] = []
        until = min(trio.current_time() + KEEP_ALIVE_SECONDS, self._deadline)
        with trio.move_on_at(until) as patience:
            try:
                items.append(await self._receive.receive())
                while True:
                    items.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                pass
            except trio.EndOfChannel:
                self._failure = IncompleteGenerationStream()
        if patience.cancelled_caught and until == self._deadline:
            self._failure = DeadlineExceeded()
        return items
