"""A server for one program: it listens on a Unix socket only, and ends with the program (`tgi.embedded`)."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import attrs

POLL_SECONDS = 0.05
EXIT_SECONDS = 10.0
"""Seconds that a server has to end by itself before it is killed."""


class StartError(Exception):
    """A server did not start; the text is its last line."""


@attrs.define(eq=False)
class EmbeddedServer:
    """A server process. Made by `start`; must be closed."""

    process: subprocess.Popen[bytes]
    path: Path
    """The socket on which it listens."""
    _log: IO[bytes]
    _folder: tempfile.TemporaryDirectory[str]

    @classmethod
    def start(cls, options: Mapping[str, object]) -> "EmbeddedServer":
        """Start a server with the flags of `tgi serve`, by their names with underscores."""
        folder = tempfile.TemporaryDirectory(prefix="tgi-")
        path, log = Path(folder.name, "socket"), tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "tgi.embedded", *flags({**options, "uds": path})]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )
        return cls(process, path, log, folder)

    def wait_ready(self) -> None:
        """Wait until the model is loaded. Raises StartError with the server's last words."""
        while self.process.poll() is None:
            if self._is_ready():
                return
            time.sleep(POLL_SECONDS)
        raise StartError(self.last_words())

    def _is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:  # httpx leaks sockets that cannot connect
            if connection.connect_ex(str(self.path)):
                return False
            with contextlib.suppress(OSError):
                connection.sendall(b"GET /health HTTP/1.1\r\nhost: tgi\r\nconnection: close\r\n\r\n")
                return connection.recv(64).startswith(b"HTTP/1.1 200 ")
        return False

    def last_words(self) -> str:
        """Return the last line that the server wrote."""
        self._log.seek(0)
        lines = str(self._log.read(), "utf-8", "replace").strip().splitlines()
        return lines[-1].removeprefix("tgi: ") if lines else "the server ended without a word"

    def close(self) -> None:
        """End the server."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()
        self._folder.cleanup()


def flags(options: Mapping[str, object]) -> list[str]:
    """Return options as flags: True and False are switches, and None is left out."""
    made = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            made.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            made += [part for each in value for part in (f"--{flag}", str(each))]
        elif value is not None:
            made += [f"--{flag}", str(value)]
    return made
