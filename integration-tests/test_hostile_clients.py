"""Clients that break the rules of HTTP, come in crowds, or go too early; the server stays whole (B1)."""

import contextlib
import json
import os
import re
import resource
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

GOOD = b'{"inputs":"a","parameters":{"max_new_tokens":2}}'
POST = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: 48\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"
WEBSOCKET = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: a\r\nSec-WebSocket-Version: 13\r\n"
)
KEEP_ALIVE = 2.0
AT_ONCE = 8
TOOL = {
    "type": "function",
    "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}},
}
MESSAGES = [{"role": "user", "content": "What is deep learning?"}]
CHAT = {"messages": MESSAGES, "max_tokens": 200}
LONG = {"inputs": "a", "parameters": {"max_new_tokens": 200}}
GENERATING: dict[str, dict[str, Any]] = {
    "/generate": LONG,
    "/generate_stream": LONG,
    "/": {**LONG, "stream": True},
    "/v1/chat/completions": {**CHAT, "stream": True, "n": 2, "tools": [TOOL], "tool_choice": "required"},
    "/v1/completions": {"prompt": ["a", "b"], "stream": True, "n": 2, "max_tokens": 200},
    "/invocations": {**CHAT, "stream": True, "response_format": {"type": "json_object"}},
    "/vertex": {"instances": [LONG, {**CHAT, "tools": [TOOL]}]},
    "/v2/models/m/versions/1/infer": {
        "id": "1",
        "inputs": [{"name": "a", "shape": [1], "datatype": "BYTES", "data": [65]}],
        "outputs": [{"name": "a"}],
        "parameters": {"max_new_tokens": 200},
    },
}

# What is sent, and the status of the one answer; the connection is closed after it.
REFUSED = {
    "two lengths": (POST + LENGTH + b"Content-Length: 5\r\n\r\n" + GOOD, 400),
    "a length and chunks": (POST + LENGTH + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED, 400),
    "chunks and a length": (POST + CHUNKED + LENGTH + b"\r\n0\r\n\r\n" + SMUGGLED, 400),
    "two codings": (POST + CHUNKED + b"Transfer-Encoding: identity\r\n\r\n0\r\n\r\n" + SMUGGLED, 501),
    "an unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 501),
    "a space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "a vertical tab": (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "a negative length": (POST + b"Content-Length: -5\r\n\r\n" + GOOD, 400),
    "a signed length": (POST + b"Content-Length: +48\r\n\r\n" + GOOD, 400),
    "a length of 23 digits": (POST + b"Content-Length: " + b"9" * 23 + b"\r\n\r\n" + GOOD, 400),
    "a length that is none": (POST + b"Content-Length: many\r\n\r\n" + GOOD, 400),
    "no chunk": (POST + CHUNKED + b"\r\nzz\r\n" + GOOD, 400),
    "a negative chunk": (POST + CHUNKED + b"\r\n-1\r\n" + GOOD, 400),
    "a chunk of another length": (POST + CHUNKED + b"\r\n5\r\n" + GOOD + b"\r\n0\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "a header without a colon": (GET + b"x\r\n\r\n", 400),
    "a zero in a header": (GET + b"x: \x00\r\n\r\n", 400),
    "a zero in the method": (b"G\x00T /health HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a path that is no ASCII": (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "a header of 100 kB": (GET + b"x: " + b"x" * 100_000 + b"\r\n\r\n", 431),
    "20,000 headers": (GET + b"x: y\r\n" * 20_000 + b"\r\n", 431),
    "a path of 100 kB": (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "the greeting of TLS": (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"x" * 99 + b"\r\n\r\n", 400),
}  # fmt: skip


def http2(*headers: tuple[str, str | bytes]) -> bytes:
    """A client's first words in HTTP/2, with these headers as they are."""
    client = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
    client.initiate_connection()
    client.send_headers(1, headers, end_stream=True)
    return client.data_to_send()


# What hypercorn cannot take; its connection may end in any way.
INDIGESTIBLE = {
    "a method that is no ASCII": http2(
        (":method", b"\xff"), (":path", "/"), (":scheme", "http"), (":authority", "x")
    ),
    "a path that is no ASCII": http2(
        (":method", "GET"), (":path", b"/\xff"), (":scheme", "http"), (":authority", "x")
    ),
    "CONNECT": http2((":method", "CONNECT"), (":authority", "x")),
    "a protocol that is no ASCII": GET + WEBSOCKET + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
    "an extension that is no ASCII": GET + WEBSOCKET + b"Sec-WebSocket-Extensions: \xff\r\n\r\n",
    "a websocket": GET + WEBSOCKET + b"\r\n\x81\x85abcdefghi",
}


@pytest.fixture(scope="module")
def demo(start: Any) -> Any:
    """A server that tests share, for few requests at once."""
    server = start(
        model_id="", max_total_tokens=512, max_concurrent_requests=AT_ONCE, keep_alive_timeout=KEEP_ALIVE
    ).wait_ready()
    yield server
    server.end()


def connect(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_to_end(connection: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while more := connection.recv(65536):
            data += more
    return bytes(data)


def request(path: str, body: Any, *headers: str) -> bytes:
    data = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1", "Host: x", "Connection: close", "Content-Type: application/json",
        f"Content-Length: {len(data)}", *headers, "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode() + data


def answered(server: Any, data: bytes) -> tuple[int, bytes]:
    """Status and all bytes of the answer to a request that asks for the end of its connection."""
    with connect(server) as connection:
        connection.sendall(data)
        answer = read_to_end(connection)
    return int(answer.split(b" ", 2)[1]), answer


def files(server: Any) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def memory(server: Any) -> float:
    """Megabytes that the process holds."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def wait_idle(server: Any, most_files: int) -> None:
    """Until nothing of any request is left."""
    server.wait_for(lambda: server.metric("tgi_batch_current_size") == 0)
    server.wait_for(lambda: server.metric('tgi_kv_blocks{state="used"}') == 0)
    server.wait_for(lambda: files(server) <= most_files, KEEP_ALIVE + 10)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_http_is_refused_and_nothing_after_it_is_read(demo: Any, name: str) -> None:
    data, status = REFUSED[name]
    with connect(demo) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        answer = read_to_end(connection)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert demo.post("/generate", json.loads(GOOD))[0] == 200


@pytest.mark.parametrize("name", INDIGESTIBLE)
def test_what_hypercorn_cannot_take_ends_no_other_connection(demo: Any, name: str) -> None:
    with connect(demo) as other, connect(demo) as connection:
        connection.sendall(INDIGESTIBLE[name])
        connection.shutdown(socket.SHUT_WR)
        read_to_end(connection)
        other.sendall(GET + b"Connection: close\r\n\r\n")
        assert read_to_end(other).startswith(b"HTTP/1.1 200 ")


def test_headers_that_come_drop_by_drop_are_cut(demo: Any) -> None:
    begun = time.monotonic()
    with connect(demo) as connection:
        connection.sendall(GET)
        connection.settimeout(0.1)
        ended = False
        while not ended:
            assert time.monotonic() - begun < 2 * KEEP_ALIVE
            try:
                connection.sendall(b"x: y\r\n")
                ended = not connection.recv(1)
            except TimeoutError:
                pass
            except ConnectionError:
                ended = True
    assert time.monotonic() - begun > KEEP_ALIVE / 2


def test_too_long_a_body_is_answered_though_its_client_goes_on_sending(demo: Any) -> None:
    with connect(demo) as connection:
        connection.sendall(POST + b"Connection: close\r\nContent-Length: 8000000\r\n\r\n")
        connection.sendall(b"x" * 8_000_000)
        assert read_to_end(connection).startswith(b"HTTP/1.1 413 ")


def test_a_thousand_idle_connections_keep_nobody_out(demo: Any) -> None:
    wait_idle(demo, 1000)
    before = files(demo)
    with contextlib.ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connect(demo))
        demo.wait_for(lambda: files(demo) >= before + 990)
        assert demo.post("/generate", json.loads(GOOD))[0] == 200
        wait_idle(demo, before + 5)


def test_a_server_takes_as_many_files_as_it_may(start: Any) -> None:
    """A shell allows 1024, which are soon taken by connections that do nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        server = start(model_id="").wait_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)[0] == min(hard, 65_536)
    server.end()


def test_200_requests_at_once_are_answered_or_refused_with_the_time_to_come_again(demo: Any) -> None:
    requests = [request(path, body) for path, body in GENERATING.items()] * 25
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda data: answered(demo, data), requests))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 429}
    assert all(b"\r\nretry-after: " in answer.lower() for status, answer in answers if status == 429)
    wait_idle(demo, files(demo))
    assert demo.post("/generate", json.loads(GOOD))[0] == 200


@pytest.mark.parametrize("path", GENERATING)
def test_a_deadline_of_a_millisecond(demo: Any, path: str) -> None:
    status, answer = answered(demo, request(path, GENERATING[path], "x-request-timeout: 0.001"))
    assert status in (408, 503), "it has passed, or the measured speed says that it will have"
    assert (b"x-should-retry: false" in answer.lower()) == (status == 408)
    wait_idle(demo, files(demo))


def test_clients_that_go_at_any_moment_leave_nothing_behind(demo: Any) -> None:
    """In the head, in the body, before the answer, within it; with a FIN or with a reset."""
    wait_idle(demo, 1000)
    held = files(demo), memory(demo)
    reset = struct.pack("ii", 1, 0)
    for path, body in GENERATING.items():
        data = request(path, body)
        for bytes_sent in (20, data.index(b"\r\n\r\n") + 10, len(data) - 1):
            with connect(demo) as connection:
                connection.sendall(data[:bytes_sent])
        for seconds in (0.001, 0.005, 0.02, 0.05):
            with connect(demo) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                connection.sendall(data)
                connection.settimeout(seconds)
                with contextlib.suppress(TimeoutError):
                    connection.recv(1)
        for bytes_read in (1, 600, 1200):
            with connect(demo) as connection:
                connection.sendall(data)
                while bytes_read > 0 and (more := connection.recv(bytes_read)):
                    bytes_read -= len(more)
    wait_idle(demo, held[0] + 3)
    assert memory(demo) < held[1] + 100
    assert demo.post("/generate", json.loads(GOOD))[0] == 200
    assert " ERROR " not in demo.output()
    assert demo.process.poll() is None
