"""Tokens of sequences, collected or as server-sent events.

A write has all events that are ready (tgi-behaviour 1.6). An `EventWriter` gives events the form of its API.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import ClassVar, Protocol

import attrs
import msgspec
import trio
from quart.wrappers.response import ResponseBody

from tgi.errors import ApiError, DeadlineExceeded, IncompleteGenerationStream
from tgi.scheduler import Sequence, Token
from tgi.text.stopping import FinishReason

KEEP_ALIVE_SECONDS = 15.0
KEEP_ALIVE = b":\n\n"
_LINE_ENDS = {b"\xe2\x80\xa8": rb"\u2028", b"\xe2\x80\xa9": rb"\u2029", b"\xc2\x85": rb"\u0085"}
"""Characters at which some clients end a line, and their escapes in JSON."""

_encode = msgspec.json.Encoder().encode

Item = tuple[int, Token | ApiError]
"""A token of a sequence, or the error that ends it, with the index of the sequence."""
Receive = trio.MemoryReceiveChannel[Item]


@attrs.frozen
class Finished:
    """A finished sequence with its tokens."""

    sequence: Sequence
    tokens: list[Token]

    @property
    def reason(self) -> FinishReason:
        """Reason for its end."""
        reason = self.tokens[-1].finish
        assert reason is not None
        return reason

    @property
    def mean_logprob(self) -> float:
        """Measure by which `best_of` chooses (R3.10)."""
        return sum(token.logprob for token in self.tokens) / len(self.tokens)


def best_first(finished: list[Finished]) -> list[Finished]:
    """Put the sequence with the best mean log-probability first; of equals, or NaN, the earlier (R3.10)."""
    best = finished[0]
    for other in finished[1:]:
        if other.mean_logprob > best.mean_logprob:
            best = other
    return [best, *(other for other in finished if other is not best)]


def one_line(body: object) -> bytes:
    """Return JSON that every client takes for one line."""
    data = _encode(body)
    if not data.isascii():
        for character, escape in _LINE_ENDS.items():
            data = data.replace(character, escape)
    return data


def frame(body: object) -> bytes:
    """Return one event (R1.80)."""
    return b"data: " + one_line(body) + b"\n\n"


class EventWriter(Protocol):
    """Turns tokens into events, and tells the observer."""

    ended: bool
    """Whether all sequences have ended and the last event has been written."""

    def write(self, index: int, item: Token | ApiError) -> bytes:
        """Return the events of the next item of sequence `index`; b"" if none is complete yet."""

    def fail(self, error: ApiError) -> bytes:
        """Return the events that end all running sequences with this error."""


class EventStream(ResponseBody):
    """The body of a streamed answer. It closes `held` with the last event, before that is sent."""

    headers: ClassVar[Mapping[str, str]] = {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-cache",
        "x-accel-buffering": "no",
    }

    def __init__(
        self,
        receive: Receive,
        writer: EventWriter,
        held: ExitStack,
        deadline: float = float("inf"),
        keep_alive: bytes = KEEP_ALIVE,
    ) -> None:
        """End the stream with an error at the deadline, a time on trio's clock.

        `keep_alive` is sent when nothing else was for a while; b"" sends nothing.
        """
        self._keep_alive = keep_alive
        self._receive = receive
        self._writer = writer
        self._held = held
        self._deadline = deadline
        self._ready: list[Item] | None = None
        """Items that were received and not sent yet; empty if none came in time."""
        self._failure: ApiError | None = None
        """Error that ends the stream after the items that are ready."""

    async def __aenter__(self) -> "EventStream":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Hold nothing: `held` is closed elsewhere."""

    def __aiter__(self) -> "EventStream":
        return self

    async def start(self) -> None:
        """Wait up to KEEP_ALIVE_SECONDS for the first token, so that a failure before it has a true status.

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
            if data or (self._keep_alive and not items):
                return data or self._keep_alive

    async def _receive_ready(self) -> list[Item]:
        """Wait up to KEEP_ALIVE_SECONDS for an item, and return all that are there."""
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
