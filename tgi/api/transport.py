"""Adaptations of hypercorn and quart-trio: their limits, their faults, and a shorter way to the socket.

`configure` sets every default that matters, and replaces classes of hypercorn for which it has no setting.
"""

import http
import logging
import math
import secrets
import ssl
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import attrs
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.stream
import h11
import hypercorn.protocol
import hypercorn.trio.run
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.typing import (
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    H11SendableEvent,
)
from quart import request
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection

from tgi.child import write_now

log = logging.getLogger(__name__)
STALLED_SECONDS = 60.0
"""Seconds after which a client that reads nothing is disconnected."""
LAST_SEND_SECONDS = 30.0
"""Seconds that the end of an answer may wait for a client that does not read."""
LINGER_SECONDS = 1.0
"""Seconds that a client may go on sending its body after it has been answered."""
DRAIN_BODY_SECONDS = 5.0
"""Seconds that clients have to complete their bodies once the server is shutting down."""
HANDSHAKE_SECONDS = 10.0
"""Seconds that a client has for the handshake of TLS."""
MAX_ID = 128
"""Maximum length of an `x-request-id` that is taken over, in characters."""
MAX_HEADER_BYTES = 64 * 1024
"""Maximum size of a request's path and headers; larger ones are answered with 431."""
EARLY_STREAMS = 512
"""Streams of HTTP/2 that a connection may have beyond the limit, which clients do not know at first."""
_RECEIVE_BYTES = 64 * 1024
_REASONS = {status.value: status.phrase.encode() for status in http.HTTPStatus}
_EXCHANGE = "tgi.exchange"


def configure(config: Config, *, keep_alive_seconds: float, tls: ssl.SSLContext | None = None) -> None:
    """Set hypercorn's limits, and adapt it in this process. `tls` replaces its own settings of TLS."""
    config.accesslog = config.errorlog = None  # requests are logged by tgi.api.observe
    config.include_server_header = False
    config.graceful_timeout = math.inf  # tgi.server decides when to cut connections
    config.keep_alive_timeout = keep_alive_seconds
    config.keep_alive_max_requests = 2**62  # HTTP/2 would close a connection under its running streams
    config.ssl_handshake_timeout = HANDSHAKE_SECONDS
    if tls is not None:
        config.create_ssl_context = lambda: tls  # type: ignore[method-assign]
    config.read_timeout = None  # a client that reads a stream sends nothing
    # Two reads more than may be accepted: h11 refuses only heads that are still incomplete, and so, with a
    # smaller value, refuses the same head or not depending on how TCP cuts it.
    config.h11_max_incomplete_size = MAX_HEADER_BYTES + 2 * _RECEIVE_BYTES
    config.h2_max_header_list_size = MAX_HEADER_BYTES
    config.h2_max_concurrent_streams = 256  # beyond, clients wait by themselves
    hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined]
    hypercorn.protocol.H11Protocol = _HTTP1  # type: ignore[assignment,attr-defined]
    hypercorn.protocol.H2Protocol = _HTTP2  # type: ignore[assignment,attr-defined]


class Connection(TCPServer):
    """A TCP connection that writes at once, limits how long a write may wait, and fails alone.

    hypercorn writes through a lock, a cancel scope and trio's checkpoints; for the small events of hundreds
    of streams that costs more than all else. It shields writes without a limit, so that a client that stops
    reading could keep the process from ending. An error of one connection, such as a method of HTTP/2 that is
    not ASCII, ends the server.
    """

    async def run(self) -> None:
        """Serve the connection to its end and close it; raise nothing but a cancellation."""
        try:
            await super().run()
        except* Exception as failures:
            failed = failures.exceptions[0]
            while isinstance(failed, ExceptionGroup):
                failed = failed.exceptions[0]
            shown = failures if log.isEnabledFor(logging.DEBUG) else None
            log.warning("a connection was lost: %s: %s", type(failed).__name__, failed, exc_info=shown)

    async def protocol_send(self, event: Event) -> None:
        """Write, at once if the socket has room; return quietly if the client has gone."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        data = event.data
        if not self.send_lock.locked():
            data = data[write_now(self.stream, data) :]
        if data:
            async with self.send_lock:
                await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            with trio.fail_after(STALLED_SECONDS) as scope:
                scope.shield = True
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            await trio.aclose_forcefully(self.stream)
            await self.protocol.handle(Closed())

    async def _read_data(self) -> None:
        """Read until the client closes, then stop the keep-alive timer, which would keep the socket open."""
        await super()._read_data()
        await self.idle_task.stop()


class _Requests(h11.Connection):
    """The server's end of HTTP/1.1, which passes over what may stand around requests.

    That is empty lines before one (RFC 9112, 2.2), and anything behind one that closes the connection (9.6).
    """

    def _extract_next_receive_event(self) -> Any:
        if self.their_state in (h11.IDLE, h11.MUST_CLOSE):
            waiting = bytes(self._receive_buffer)
            rest = waiting.lstrip(b"\r\n") if self.their_state is h11.IDLE else b""
            self._receive_buffer.maybe_extract_at_most(len(waiting) - len(rest))
        return super()._extract_next_receive_event()


class _HTTP1(H11Protocol):
    """HTTP/1.1 with reason phrases, which some clients show to people.

    A request to change to HTTP/2 is answered in HTTP/1.1 (RFC 9113, 3.1, has no such request any more);
    clients that know beforehand, or by TLS, get HTTP/2.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.connection = _Requests(h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size)

    async def _check_protocol(self, event: h11.Request) -> None:
        if event.method == b"PRI":  # the preface of HTTP/2
            await super()._check_protocol(event)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        if isinstance(event, h11.Response):
            reason = _REASONS.get(event.status_code, b"")
            event = h11.Response(status_code=event.status_code, headers=event.headers, reason=reason)
        await super()._send_h11_event(event)


class _Stream(h2.stream.H2Stream):
    """A stream of HTTP/2 that a malformed request ends alone (RFC 9113, 8.1.1)."""

    def receive_headers(self, *given: Any) -> Any:
        with self._ending_alone():
            frames, events = super().receive_headers(*given)
            if isinstance(events[0], h2.events.RequestReceived):
                named = {name: value for name, value in events[0].headers if name.startswith(b":")}
                if b":path" not in named or not all(value.isascii() for value in named.values()):
                    raise h2.exceptions.ProtocolError("a path and a method of ASCII are missing")
            return frames, events

    def receive_data(self, *given: Any) -> Any:
        with self._ending_alone():
            return super().receive_data(*given)

    @contextmanager
    def _ending_alone(self) -> Iterator[None]:
        """Turn an error that would end the connection into one that h2 answers with RST_STREAM."""
        try:
            yield
        except h2.exceptions.StreamClosedError:
            raise
        except h2.exceptions.ProtocolError as error:
            self.reset_stream(error.error_code)
            try:
                self.state_machine.reset_stream_on_error(h2.stream.StreamState.OPEN)
            except h2.exceptions.StreamClosedError as closed:
                closed.error_code = error.error_code
                raise closed from error


class _Streams(h2.connection.H2Connection):
    """A connection of HTTP/2 whose requests fail alone, without priorities (RFC 9113, 5.3.2)."""

    @property
    def open_inbound_streams(self) -> int:
        """Number of open streams without those that a client opens before it has read the limit."""
        return max(0, super().open_inbound_streams - EARLY_STREAMS)

    def _begin_new_stream(self, *given: Any) -> h2.stream.H2Stream:
        stream = super()._begin_new_stream(*given)
        stream.__class__ = _Stream
        return stream

    def _receive_headers_frame(self, frame: Any) -> Any:
        frame.flags.discard("PRIORITY")
        return super()._receive_headers_frame(frame)

    def _receive_priority_frame(self, _frame: Any) -> Any:
        return [], []

    def _receive_goaway_frame(self, frame: Any) -> Any:
        """Let a client that begins nothing more have the answers that it waits for (RFC 9113, 6.8)."""
        if frame.error_code == h2.errors.ErrorCodes.NO_ERROR and super().open_inbound_streams:
            return [], []
        return super()._receive_goaway_frame(frame)


class _HTTP2(H2Protocol):
    """HTTP/2 whose requests fail alone, also with data for a stream that has been answered already."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        settings = self.connection.local_settings
        self.connection = _Streams(self.connection.config)
        self.connection.local_settings = settings
        # A decoder that gives up would cost the connection; `_refusal` looks at the size again.
        self.connection.decoder.max_header_list_size = 4 * MAX_HEADER_BYTES

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            else:
                await super()._handle_events([event])
        await self._flush()


@attrs.define(eq=False)
class Exchange:
    """A request and its answer, from the head of the request to the last byte or the client's departure."""

    id: str
    """The client's `x-request-id`, or a random one."""
    resources: ExitStack
    """Closed at the end of the exchange. Leaving a resource must not need an await."""
    arrived: float = attrs.field(factory=time.monotonic)
    """Time at which the head of the request had been read."""
    remarks: list[str] = attrs.field(factory=list)
    """Remarks for the client, sent in the header `x-grammar-warning`."""
    limits: dict[str, str] = attrs.field(factory=dict)
    """Headers of the answer about the limits of the client."""


class HTTPConnection(TrioASGIHTTPConnection):
    """One `Exchange`, whose resources are released however it ends.

    The end of an answer is shielded: hypercorn reports a disconnect as soon as it is sent, quart-trio cancels
    the request for that, and hypercorn would never close the connection. It also waits for the end of the
    body: hypercorn closes the connection of a client that is still sending, which would lose the answer.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:  # noqa: D102
        status = self._refusal()
        if status:
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            await send(
                {"type": "http.response.start", "status": status, "headers": headers, "trailers": False}
            )
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        received = trio.Event()
        receiving: set[trio.CancelScope] = self.app.config["RECEIVING"]

        async def receive_and_note() -> ASGIReceiveEvent:
            """Return the next message; a disconnect if `cut_bodies` gives up waiting for it."""
            if received.is_set():
                return await receive()
            message: ASGIReceiveEvent = {"type": "http.disconnect"}
            with trio.CancelScope() as scope:
                receiving.add(scope)
                try:
                    message = await receive()
                finally:
                    receiving.remove(scope)
            if not message.get("more_body", False):  # the end of the body, or of the connection
                received.set()
            return message

        async def send_end_shielded(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                with trio.move_on_after(LINGER_SECONDS):
                    await received.wait()
                with trio.move_on_after(LAST_SEND_SECONDS, shield=True):
                    await send(message)
            else:
                await send(message)

        with ExitStack() as stack:
            cast(dict[str, Any], self.scope)[_EXCHANGE] = Exchange(_request_id(self.scope["headers"]), stack)
            await super().__call__(receive_and_note, send_end_shielded)

    def _refusal(self) -> int:
        """Return the status for a request that quart cannot take, else 0; strip --root-path."""
        scope = self.scope  # a header line has four more bytes
        head = len(scope["raw_path"]) + len(scope["query_string"])
        if head + sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return 431
        path, root = self.scope["path"], self.app.config["ROOT_PATH"]
        if root and (path == root or path.startswith(f"{root}/")):
            path = self.scope["path"] = path[len(root) :] or "/"
        return 0 if path.startswith("/") or "://" in path or path == "*" else 400


async def cut_bodies(app: QuartTrio) -> None:
    """End requests whose bodies are not complete, every DRAIN_BODY_SECONDS, until cancelled."""
    while True:
        await trio.sleep(DRAIN_BODY_SECONDS)
        for scope in app.config["RECEIVING"]:
            scope.cancel()


def current_exchange() -> Exchange:
    """Return the exchange of the request that this task answers."""
    return cast(Exchange, cast(dict[str, Any], request.scope)[_EXCHANGE])


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    given = next((value.decode("latin-1") for name, value in headers if name.lower() == b"x-request-id"), "")
    usable = 0 < len(given) <= MAX_ID and given.isascii() and given.isprintable()
    return given if usable else secrets.token_hex(16)
