"""HTTP/2 connections, on which no stream ends another."""

import contextlib
import json
from collections.abc import AsyncIterator

import h2.events
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection

from .serving import Server, serving


class HTTP2:
    """A client of HTTP/2 on one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        unchecked = dict.fromkeys(("validate_outbound_headers", "normalize_outbound_headers"), False)
        self._connection = H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8", **unchecked)
        )
        self._connection.initiate_connection()
        self.statuses: dict[int, str] = {}
        self.ended: set[int] = set()
        """Streams that the server has ended or reset."""

    def begin(self, method: str, path: str, body: bytes | None = None, *, end: bool = True) -> int:
        names = {":method": method, ":path": path, ":scheme": "http", ":authority": "x"}
        return self.begin_with({**names, "content-type": "application/json"}, body, end=end)

    def begin_with(self, headers: dict[str, str], body: bytes | None = None, *, end: bool = True) -> int:
        """Begin a stream with headers that may break every rule."""
        number: int = self._connection.get_next_available_stream_id()
        self._connection.send_headers(number, list(headers.items()), end_stream=body is None)
        if body is not None:
            self.send(number, body, end=end)
        return number

    def send(self, number: int, body: bytes, *, end: bool = True) -> None:
        self._connection.send_data(number, body, end_stream=end)

    def reset(self, number: int) -> None:
        self._connection.reset_stream(number)

    async def say_goodbye(self) -> None:
        """Send GOAWAY without an error; h2 itself would then read nothing more."""
        await self._stream.send_all(self._connection.data_to_send())
        await self._stream.send_all(b"\0\0\x08\x07" + bytes(13))

    async def finish(self, *numbers: int) -> None:
        """Read until these streams have ended."""
        await self._stream.send_all(self._connection.data_to_send())
        while not self.ended.issuperset(numbers):
            data = await self._stream.receive_some()
            assert data, "the server has closed the connection"
            for event in self._connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    self.statuses[event.stream_id] = dict(event.headers)[":status"]
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    self.ended.add(event.stream_id)
                elif isinstance(event, h2.events.DataReceived):
                    self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            await self._stream.send_all(self._connection.data_to_send())


@contextlib.asynccontextmanager
async def http2(server: Server) -> AsyncIterator[HTTP2]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        yield HTTP2(stream)


LONG = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 40}}).encode()


async def test_http2_serves_more_than_a_thousand_requests_on_a_connection() -> None:
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        for _ in range(999):
            await client.finish(client.begin("GET", "/health"))
        long = client.begin("POST", "/generate_stream", LONG)
        await client.finish(*(client.begin("GET", "/health") for _ in range(5)))
        await client.finish(long)
        assert set(client.statuses.values()) == {"200"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/nope", "404"), ("PUT", "/generate", "405")]
)
async def test_http2_answers_before_the_end_of_a_body_without_cutting_others(
    method: str, path: str, status: str
) -> None:
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        long = client.begin("POST", "/generate_stream", LONG)
        refused = client.begin(method, path, b"x" * 1000, end=False)
        await client.finish(refused)
        client.send(refused, b"y" * 1000)
        await client.finish(long)
        assert client.statuses == {long: "200", refused: status}


async def test_a_client_that_says_goodbye_gets_the_answers_that_it_waits_for() -> None:
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        streams = [client.begin("POST", path, LONG) for path in ("/generate_stream", "/generate")]
        await client.say_goodbye()
        await client.finish(*streams)
        assert list(client.statuses.values()) == ["200", "200"]
        await client.say_goodbye()
        with pytest.raises(AssertionError, match="closed the connection"):
            await client.finish(99)


HEAD = {":method": "GET", ":path": "/health", ":scheme": "http", ":authority": "x"}
POST = HEAD | {":method": "POST", ":path": "/generate", "content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (HEAD | {"X-Upper": "1"}, None),
        (HEAD | {"connection": "close"}, None),
        (HEAD | {"x-a": "a\r\nb: c"}, None),
        (HEAD | {":path": ""}, None),
        (HEAD | {":path": "/é"}, None),
        (HEAD | {":method": "GÉT"}, None),
        (HEAD | {":authority": "é"}, None),
        ({":method": "CONNECT", ":authority": "x:80"}, None),
        ({":method": "GET", ":scheme": "http", ":authority": "x"}, None),
        (POST | {"content-length": "5"}, b"longer than that"),
        (POST | {"content-length": "50"}, b"shorter"),
        (POST | {"content-length": "x"}, b"{}"),
        (HEAD | {"x-long": "x" * 100_000}, None),
    ],
)
async def test_a_malformed_request_of_http2_ends_alone(headers: dict[str, str], body: bytes | None) -> None:
    """RFC 9113, 8.1.1: malformed requests are errors of a stream."""
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        long = client.begin("POST", "/generate_stream", LONG)
        malformed = client.begin_with(headers, body)
        await client.finish(malformed)
        assert client.statuses.get(malformed) == ("431" if "x-long" in headers else None)
        await client.finish(long, client.begin("GET", "/health"))
        assert client.statuses[long] == "200"


async def test_http2_takes_streams_begun_before_the_limit_is_known() -> None:
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        await client.finish(*(client.begin("GET", "/health") for _ in range(400)))
        assert len(client.statuses) == 400


async def test_http2_streams_that_are_begun_and_reset_at_once_cost_no_other_and_leave_nothing() -> None:
    """Rapid reset (CVE-2023-44487)."""
    async with serving(step_seconds=0.01) as server, http2(server) as client, http2(server) as other:
        assert server.service.engine is not None
        scheduler = server.service.engine.scheduler
        for _ in range(20):
            for _ in range(50):
                client.reset(client.begin("POST", "/generate_stream", LONG))
            await client.finish(client.begin("GET", "/health"))
            await other.finish(other.begin("GET", "/health"))
        assert set(other.statuses.values()) == {"200"}
        with trio.fail_after(10):
            while server.service.in_flight or scheduler.statistics().blocks.used:
                await trio.sleep(0.01)


async def test_http2_headers_without_an_end_are_cut_off() -> None:
    """CONTINUATION flood (CVE-2024-27316)."""
    async with serving() as server:
        stream = await server.connect()
        async with stream:
            first = H2Connection(H2Configuration(client_side=True))
            first.initiate_connection()
            piece = b"\x00\x01x" + b"\x7f\x81\xff\x00" + b"y" * 511  # one header of a literal name
            frames = [b"\x00\x00\x00\x01\x00\x00\x00\x00\x01"]  # HEADERS, of nothing so far
            frames += [len(piece).to_bytes(3, "big") + b"\x09\x00\x00\x00\x00\x01" + piece] * 10_000
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(first.data_to_send())
                for frame in frames:
                    await stream.send_all(frame)
            assert await is_closed_in_the_end(stream)
        assert (await server.ask("GET", "/health")).status == 200


async def is_closed_in_the_end(stream: trio.SocketStream) -> bool:
    """Return whether the server closes the connection after what it has to say."""
    with trio.move_on_after(10):
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some(65536):
                pass
        return True
    return False
