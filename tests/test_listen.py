"""Listening sockets: addresses, host names, Unix sockets, and what is said when they cannot be had."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tgi.config import Options
from tgi.listen import ListenError, listen


@contextlib.contextmanager
def listening(options: Options) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(listener) for listener in listen(options)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.contract("--hostname")
@pytest.mark.parametrize(
    ("hostname", "reached"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("[::1]", ["::1"]),
        ("::", ["::1", "127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
    ],
)
def test_a_host_is_listened_on(hostname: str, reached: list[str]) -> None:
    port = free_port()
    with listening(Options(hostname=hostname, port=port)):
        for address in reached:
            socket.create_connection((address, port), timeout=5).close()


@pytest.mark.parametrize("hostname", ["no-such-host.invalid", "1.2.3.4.5", "a b", "x" * 100])
def test_an_unknown_host_is_refused(hostname: str) -> None:
    with pytest.raises(ListenError, match="neither an IP address nor a known host name"):
        listen(Options(hostname=hostname, port=0))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on 192\.0\.2\.1 port 0: Cannot assign"):
        listen(Options(hostname="192.0.2.1", port=0))


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ListenError, match=f"port {port}: Address already in use"):
            listen(Options(hostname="localhost", port=port))


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(Options(uds=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with pytest.raises(ListenError, match="Address already in use"):
            listen(Options(uds=path))


def test_the_unix_socket_of_a_killed_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with listening(Options(uds=path)):
        pass
    with listening(Options(uds=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_path_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on .*/missing/socket: No such file"):
        listen(Options(uds=tmp_path / "missing" / "socket"))
