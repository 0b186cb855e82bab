"""Listening sockets of the server."""

import contextlib
import errno
import os
import socket
from pathlib import Path

from .config import OptionError, Options

BACKLOG = 1024
"""Length of the queue of connections waiting to be accepted."""
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of an address family that a host name has but this machine does not, such as localhost's ::1."""


class ListenError(OptionError):
    """Listening is not possible; `errno` is that of the system, 0 for an unknown host name."""

    def __init__(self, message: str, error: OSError | None = None) -> None:
        reason = "" if error is None else f": {os.strerror(error.errno) if error.errno else error}"
        advice = "; choose another --port" if error is not None and error.errno == errno.EADDRINUSE else ""
        super().__init__(message + reason + advice)
        self.errno = 0 if error is None else error.errno


def listen(options: Options) -> list[socket.socket]:
    """Return sockets that listen on --uds, or on every address of --hostname. Raises ListenError."""
    if options.uds is not None:
        return [_listen_on_path(options.uds)]
    host, port = options.hostname.removeprefix("[").removesuffix("]"), options.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ListenError(f"--hostname {host!r} is neither an IP address nor a known host name") from error
    listeners, failure = [], None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        try:
            listeners.append(
                socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=host == "::")
            )
        except OSError as error:
            failure = error
            if error.errno not in _NO_SUCH_ADDRESS:
                break
    if listeners and (failure is None or failure.errno in _NO_SUCH_ADDRESS):
        return listeners
    for listener in listeners:
        listener.close()
    raise ListenError(f"cannot listen on {host} port {port}", failure) from failure


def _listen_on_path(path: Path) -> socket.socket:
    """Return a socket that listens on a path, where a server that was killed may have left one."""
    with contextlib.ExitStack() as stack:
        try:
            with socket.socket(socket.AF_UNIX) as trial:
                if path.is_socket() and trial.connect_ex(str(path)) == errno.ECONNREFUSED:
                    path.unlink()
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            listener.listen(BACKLOG)
        except OSError as error:
            raise ListenError(f"cannot listen on {path}", error) from error
        stack.pop_all()
    return listener
