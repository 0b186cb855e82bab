"""How connections of HTTP/1 are kept, cut and ended, and what they refuse to read (tgi-behaviour 1.4)."""

import contextlib
import os
import re

import pytest
import trio

from tgi.api import transport

from .serving import Server, saying, serving


async def is_closed(stream: trio.SocketStream, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        try:
            return await stream.receive_some(65536) == b""
        except trio.BrokenResourceError:
            return True
    return False


async def answered(server: Server, request: bytes) -> trio.SocketStream:
    """Send a request, and read its answer up to an empty body."""
    stream = await server.connect()
    await stream.send_all(request)
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += await stream.receive_some(65536)
    assert b" 200 " in received
    return stream


async def test_200_idle_connections_are_closed() -> None:
    async with serving(keep_alive=0.5) as server:
        request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        streams = [await answered(server, request) for _ in range(200)]
        assert all([await is_closed(stream, 10) for stream in streams])
        for stream in streams:
            await stream.aclose()


async def test_200_connections_that_ask_for_it_are_closed_at_once() -> None:
    async with serving(keep_alive=1000) as server:
        request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        streams = [await answered(server, request) for _ in range(200)]
        assert all([await is_closed(stream, 5) for stream in streams])
        for stream in streams:
            await stream.aclose()


async def test_http_1_0_clients_get_their_end_of_file() -> None:
    async with serving(saying("Hello"), keep_alive=1000) as server:
        stream = await server.connect()
        body = b'{"inputs":"a"}'
        head = b"POST /generate_stream HTTP/1.0\r\nContent-Type: application/json\r\n"
        received = b""
        async with stream:
            await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            while data := await stream.receive_some(65536):
                received += data
        assert received.count(b"data: ") == 2
        assert received.endswith(b"}\n\n")


async def test_a_kept_connection_serves_request_after_request() -> None:
    async with serving() as server:
        stream = await answered(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        async with stream:
            for _ in range(5):
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b" 200 " in await stream.receive_some(65536)


async def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = trio.Event()
    write = transport.Connection._write

    async def write_and_tell(connection: transport.Connection, data: bytes) -> None:
        try:
            await write(connection, data)
        finally:  # giving a client up may cancel the request that was writing
            waited.set()

    monkeypatch.setattr(transport, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(transport.Connection, "_write", write_and_tell)
    async with serving() as server, await server.connect() as stream:
        body = b'{"inputs":"%s"}' % (b"Hello " * 200_000)
        head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await waited.wait()
        received = b""
        while data := await stream.receive_some(1 << 20):
            received += data
        answer = received.partition(b"\r\n\r\n")[2]
        assert len(answer) < int(received.partition(b"content-length: ")[2].partition(b"\r")[0])


@pytest.mark.parametrize("settings", [b"HTTP2-Settings: AAMAAABk\r\n", b"HTTP2-Settings: AAA\r\n", b""])
@pytest.mark.parametrize("body", [b"", b'{"messages":[{"role":"user","content":"Hello"}],"max_tokens":1}'])
async def test_a_request_to_change_to_http2_is_answered_in_http1(settings: bytes, body: bytes) -> None:
    """Java's HttpClient and curl --http2 ask for that on each connection without TLS."""
    async with serving() as server, await server.connect() as stream:
        line = b"POST /v1/chat/completions" if body else b"GET /v1/models"
        head = line + b" HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += b"Content-Length: %d\r\n" % len(body) if body else b""
        asking = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n" + settings
        await stream.send_all(head + asking + b"\r\n" + body)
        await stream.send_all(head + b"Connection: close\r\n\r\n" + body)
        received = b""
        while data := await stream.receive_some(65536):
            received += data
        assert re.findall(rb"HTTP/\d.\d (\d+)", received) == [b"200", b"200"]


async def test_what_hypercorn_cannot_read_ends_its_connection_and_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    headers = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: \xff\r\n"
    async with serving() as server, await server.connect() as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        while await stream.receive_some(65536):
            pass
        assert (await server.ask("GET", "/health")).status == 200
        assert "a connection was lost" in caplog.text


async def test_a_request_with_two_lengths_is_refused_and_what_follows_is_not_read() -> None:
    async with serving() as server, await server.connect() as stream:
        await stream.send_all(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /info HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        received = b""
        while data := await stream.receive_some(65536):
            received += data
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1


async def raw(server: Server, request: bytes) -> bytes:
    """Return the first bytes of the answer to these bytes."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(request)
        return bytes(await stream.receive_some())


@pytest.mark.parametrize("target", [b"?", b"?a=b", b"generate", b"#x"])
async def test_a_target_that_is_no_path_is_400(target: bytes) -> None:
    async with serving() as server:
        answer = await raw(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_status_has_its_reason_phrase() -> None:
    async with serving() as server:
        answer = await raw(server, b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")


@pytest.mark.parametrize("piece", [1, 1_000_000])
@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n\n", b"\r\n" * 100_000])
async def test_empty_lines_before_a_request_are_passed_over(empty: bytes, piece: int) -> None:
    """RFC 9112, 2.2: before the first request of a connection, between two, and behind the last."""
    body = b'{"inputs": "a"}'
    post = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    post += b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    if len(empty) > 100:
        piece = max(piece, 10_000)
    requests = empty + post + empty + post + empty + last + empty
    async with serving() as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        received = b""

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError):  # closed before what is behind the last
                for begin in range(0, len(requests), piece):
                    await stream.send_all(requests[begin : begin + piece])

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                with contextlib.suppress(trio.BrokenResourceError):
                    while data := await stream.receive_some():
                        received += data
    assert received.count(b"HTTP/1.1 200 OK\r\n") == received.count(b"HTTP/1.1 ") == 3


@pytest.mark.parametrize("behind", [b"\r\n", b"\x16\x03", b"POST /generate HTTP/1.1\r\n\r\n"])
async def test_nothing_is_read_behind_a_request_that_closes_its_connection(behind: bytes) -> None:
    request = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with serving() as server:
        assert (await raw(server, request + behind)).startswith(b"HTTP/1.1 404 Not Found\r\n")


async def test_empty_lines_alone_are_no_request_and_keep_no_connection_open() -> None:
    async with serving(keep_alive=0.2) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(b"\r\n\r")
            assert await stream.receive_some() == b""


@pytest.mark.parametrize(("size", "status"), [(60_000, b"200"), (70_000, b"431")])
@pytest.mark.parametrize("piece", [1_000_000, 17_000, 30_000])
async def test_headers_are_limited_however_tcp_cuts_them(size: int, status: bytes, piece: int) -> None:
    request = b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: " + b"x" * size + b"\r\n\r\n"
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            for begin in range(0, len(request), piece):
                await stream.send_all(request[begin : begin + piece])
                await trio.sleep(0.01)
            answer = await stream.receive_some()
    assert answer.split()[1] == status


async def test_a_client_that_closes_leaves_no_socket_open() -> None:
    async with serving(keep_alive=75) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            async with stream:
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await stream.receive_some()
        with trio.fail_after(5):
            while len(os.listdir("/proc/self/fd")) > before:
                await trio.sleep(0.01)
