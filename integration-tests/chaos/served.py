"""A running `tgi serve`, as the scripts of this folder see it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

import psutil
from wall_clock import COMPILER, WallClock

QUIET_SECONDS = 60.0
"""Maximum time until a server is ready again, or has ended what it did."""


class Server:
    """A running `tgi serve`."""

    def __init__(self, flags: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.clock = WallClock() if COMPILER else None
        command = [sys.executable, "-m", "tgi", "serve", "--hostname", "127.0.0.1", "--port", str(self.port)]
        environment = os.environ | (self.clock.environment if self.clock else {})
        self.process = subprocess.Popen([*command, *flags], stdout=self.log, stderr=self.log, env=environment)

    def output(self) -> str:
        """Return all that it has printed."""
        self.log.flush()
        size = self.log.seek(0, 2)
        return os.pread(self.log.fileno(), size, 0).decode(errors="replace")

    def ranks(self) -> list[psutil.Process]:
        """Return the rank processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "tgi.worker" in _command(child)]
        return []

    def processes(self) -> list[psutil.Process]:
        """Return the server process and the ranks."""
        return [psutil.Process(self.process.pid), *self.ranks()]

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_ready(self) -> None:
        """Wait until the server is healthy."""
        end = time.monotonic() + 5 * QUIET_SECONDS
        while self.get("/health")[0] != 200:
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server is not ready again"
            time.sleep(0.05)

    def post(self, path: str, body: Any, timeout: float = 300) -> Any:
        """Open an answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=timeout)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def check_quiet(server: Server) -> None:
    """Assert that nothing is held once all streams have ended."""
    end = time.monotonic() + QUIET_SECONDS
    while True:
        status, text = server.get("/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
        held = [lines.get('tgi_kv_blocks{state="used"}'), lines.get("tgi_queue_size")]
        if status == 200 and held == ["0", "0"]:
            return
        assert time.monotonic() < end, f"blocks in use and queue: {held}"
        time.sleep(0.1)
