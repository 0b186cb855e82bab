"""Connections that end early, late, or in old-fashioned ways."""

import selectors
import socket
import time
from typing import Any

import pytest


def connect(server: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_to_end(connection: socket.socket) -> bytes:
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


@pytest.fixture
def slow(kind: str, shared: Any) -> Any:
    """A server that takes 50 ms for a step."""
    return shared(kind, {"SLOW_SECONDS": "0.05"}, device="slow")


def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_its_row_and_blocks(slow: Any) -> None:
    dropped = slow.metric('tgi_request_failure{err="dropped"}')
    events = slow.stream("What is a violin?", max_new_tokens=1500)
    for _ in range(3):
        next(events)
    assert slow.metric("tgi_batch_current_size") == 1
    assert slow.metric("tgi_batch_current_max_tokens") > 0
    events.close()
    left = time.monotonic()
    slow.wait_for(lambda: slow.metric("tgi_batch_current_size") == 0)
    assert time.monotonic() - left < 2
    assert slow.metric("tgi_batch_current_max_tokens") == 0
    assert slow.metric('tgi_request_failure{err="dropped"}') == dropped + 1
    assert slow.generate("What is a violin?", max_new_tokens=2)["generated_text"] is not None


def test_a_client_that_leaves_before_its_answer(slow: Any) -> None:
    body = b'{"inputs":"What is a violin?","parameters":{"max_new_tokens":1500}}'
    head = (
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    with connect(slow) as connection:
        connection.sendall(head % len(body) + body)
        slow.wait_for(lambda: slow.metric("tgi_batch_current_size") == 1)
    slow.wait_for(lambda: slow.metric("tgi_batch_current_size") == 0)


def test_idle_connections_are_closed(server: Any) -> None:
    """200 that have been answered, and then say nothing; keep_alive_timeout is 2 s here."""
    connections = [connect(server) for _ in range(200)]
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            selector.register(connection, selectors.EVENT_READ)
        closed = 0
        deadline = time.monotonic() + 30
        while closed < 200 and time.monotonic() < deadline:
            for key, _ in selector.select(1):
                if not key.fileobj.recv(65536):  # type: ignore[union-attr]
                    selector.unregister(key.fileobj)
                    closed += 1
    for connection in connections:
        connection.close()
    assert closed == 200


def test_connection_close_is_honoured(server: Any) -> None:
    connections = [connect(server) for _ in range(200)]
    for connection in connections:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    begun = time.monotonic()
    for connection in connections:
        with connection:
            assert read_to_end(connection).startswith(b"HTTP/1.1 200")
    assert time.monotonic() - begun < 10


def test_http_1_0_clients_get_their_end_of_file(server: Any) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        assert b" 200" in read_to_end(connection).partition(b"\r\n")[0]
    body = b'{"inputs":"What is a violin?","parameters":{"max_new_tokens":4}}'
    head = b"POST /generate_stream HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with connect(server) as connection:
        connection.sendall(head % len(body) + body)
        assert read_to_end(connection).count(b"data:") == 4
