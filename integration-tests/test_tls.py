"""HTTPS over a real port, under `tgi serve` and under hypercorn alike."""

import http.client
import json
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import h2.events
import pytest
import trustme
from h2.config import H2Configuration
from h2.connection import H2Connection

CA = trustme.CA()
NAMES = ("first.example", "second.example")


def write(folder: Path, name: str) -> None:
    issued = CA.issue_cert(name)
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")


def connect(server: Any, name: str, *protocols: str) -> ssl.SSLSocket:
    """Connect as a client that trusts the authority and wants a server of that name."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    context.set_alpn_protocols(list(protocols))
    plain = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    return context.wrap_socket(plain, server_hostname=name)


def get(connection: ssl.SSLSocket, path: str) -> int:
    """Return the status, by HTTP/1.1 on an open connection."""
    client = http.client.HTTPConnection("x")
    client.sock = connection
    client.request("GET", path)
    response = client.getresponse()
    response.read()
    return response.status


def generate_by_http2(connection: ssl.SSLSocket) -> tuple[str, bytes]:
    """Return status and body of /generate_stream."""
    client = H2Connection(H2Configuration(header_encoding="utf-8"))
    client.initiate_connection()
    body = json.dumps({"inputs": "a", "parameters": {"max_new_tokens": 5}}).encode()
    names = {":method": "POST", ":path": "/generate_stream", ":scheme": "https", ":authority": "x"}
    client.send_headers(1, [*names.items(), ("content-type", "application/json")])
    client.send_data(1, body, end_stream=True)
    status, answer, ended = "", b"", False
    while not ended:
        connection.sendall(client.data_to_send())
        for event in client.receive_data(connection.recv(65536)):
            if isinstance(event, h2.events.ResponseReceived):
                status = dict(event.headers)[":status"]
            elif isinstance(event, h2.events.DataReceived):
                answer += event.data
            ended |= isinstance(event, h2.events.StreamEnded | h2.events.ConnectionTerminated)
    return status, answer


def is_ready(server: Any, name: str) -> bool:
    assert server.process.poll() is None, server.output()
    try:
        with connect(server, name) as connection:
            return get(connection, "/health") == 200
    except OSError:
        return False


@pytest.mark.seconds(120)
def test_https_by_both_versions_of_http_with_a_certificate_that_is_replaced(
    kind: str, start: Any, tmp_path: Path
) -> None:
    first, second = NAMES
    write(tmp_path, first)
    server = start(kind, tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    server.wait_for(lambda: is_ready(server, first), 90)
    with connect(server, first, "h2", "http/1.1") as kept:
        assert kept.selected_alpn_protocol() == "h2"
        assert kept.version() in ("TLSv1.2", "TLSv1.3")
        status, answer = generate_by_http2(kept)
        assert status == "200"
        assert answer.count(b"data: ") == 5
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in plain.recv(1000)
    with connect(server, first) as kept:
        assert get(kept, "/health") == 200
        kept.sendall(b"\r\n")  # an empty line before a request
        assert get(kept, "/health") == 200
        write(tmp_path, second)
        if kind == "tgi serve":
            server.signal(signal.SIGHUP)
        server.wait_for(lambda: is_ready(server, second), 30)
        assert get(kept, "/health") == 200
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(server, first)
    server.signal(signal.SIGTERM)
    assert server.wait_exit() == 0
    if kind == "tgi serve":
        server.wait_for(lambda: " at https://" in server.output())


@pytest.mark.parametrize("spoil", ["missing", "empty"])
def test_a_certificate_that_cannot_be_used_ends_the_start(start: Any, tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "cert.pem"
    if spoil == "empty":
        path.touch()
    server = start("tgi serve", tls_cert=path)
    assert server.wait_exit(30) == (2 if spoil == "missing" else 1)
    assert str(path) in server.output()
    assert "Traceback" not in server.output()
