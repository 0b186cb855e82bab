"""A real server in a process of its own on a real port, started both ways."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tgi.testing.models import make_llama

PLUGINS = Path(__file__).parent / "plugins"
KINDS = ("tgi serve", "hypercorn")
START_SECONDS = 600 if "TGI_TEST_DEVICE" in os.environ else 180
DEVICE = os.environ.get("TGI_TEST_DEVICE", "cpu")
"""Of servers that a test gives none."""
BOUNDS: dict[str, Any] = {} if DEVICE == "cpu" else {"max_graphs": 16, "max_batch_size": 16}
"""So that a device that compiles has warmed up soon."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Those of integration-tests/models, the first two as in TGI's tests."""
    group = parser.getgroup("models")
    group.addoption("--gaudi", action="store_true", help="the models of the Hub that TGI tests on Gaudi")
    group.addoption("--gaudi-all-models", action="store_true", help="all of them")
    group.addoption("--capture-expected-outputs", action="store_true", help="keep what models answer")


class Server:
    """One server; `options` are those of `tgi serve`, given as flags or as variables by kind."""

    def __init__(self, kind: str, log: Path, options: dict[str, Any], environment: dict[str, str]) -> None:
        self.kind = kind
        self.log = log
        self.port = options.pop("port", None) or free_port()
        inherited = {key: value for key, value in os.environ.items() if key not in ("HOSTNAME", "PORT")}
        environment = {**inherited, "PYTHONPATH": str(PLUGINS), **environment}
        if kind == "hypercorn":
            command = ["hypercorn", "-k", "trio", "-b", f"127.0.0.1:{self.port}", "tgi.app"]
            environment |= {key.upper(): str(value) for key, value in options.items()}
        else:
            command = ["tgi", "serve", "--hostname", "127.0.0.1", "--port", str(self.port)]
            for key, value in options.items():
                command += [f"--{key.replace('_', '-')}", str(value)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", Path(sys.executable).parent / command[0], *command[1:]],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def wait_ready(self) -> "Server":
        """Until /health answers 200."""
        deadline = time.monotonic() + START_SECONDS
        while self.health() != 200:
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.05)
        return self

    def wait_exit(self, seconds: float = 30) -> int:
        """The exit code."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still alive:\n{self.output()}")

    def health(self) -> int:
        """Status of /health; 0 where nobody listens."""
        try:
            return self.get("/health")[0]
        except OSError:
            return 0

    def get(self, path: str) -> tuple[int, str]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def post(self, path: str, body: Any, timeout: float = 120) -> tuple[int, Any]:
        """Status and JSON of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def generate(self, inputs: str, **parameters: Any) -> Any:
        """The JSON of /generate."""
        status, answer = self.post("/generate", {"inputs": inputs, "parameters": parameters})
        assert status == 200, answer
        return answer

    def stream(self, inputs: str, timeout: float = 120, **parameters: Any) -> Iterator[Any]:
        """The events of /generate_stream. Closing the iterator closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            body = json.dumps({"inputs": inputs, "parameters": parameters})
            connection.request("POST", "/generate_stream", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            for line in response:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The sample of that name, labels included; 0 where there is none yet."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_for(self, what: Callable[[], bool], seconds: float = 10) -> None:
        """Until it is true."""
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """To the server process only: as a supervisor does."""
        self.process.send_signal(number)

    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        listed = subprocess.run(
            ["ps", "-e", "-o", "pid=,sid=,stat=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(None, 3) for line in listed.splitlines()]
        ours = str(self.process.pid)
        return [
            int(pid)
            for pid, sid, stat, args in rows
            if sid == ours and "tgi.worker" in args and stat[0] != "Z"
        ]

    def output(self) -> str:
        """All it has printed."""
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        """Kill everything that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama that never ends a text by itself."""
    folder = make_llama(tmp_path_factory.mktemp("model") / "tiny")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        kept = {key: value for key, value in settings.items() if key not in ("eos_token_id", "eos_token")}
        (folder / name).write_text(json.dumps(kept))
    return folder


@pytest.fixture(scope="session")
def start(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Start a server; it is killed at the end of the session if nobody did before."""
    servers: list[Server] = []

    def start_server(
        kind: str = KINDS[0], environment: dict[str, str] | None = None, **options: Any
    ) -> Server:
        log = tmp_path_factory.mktemp("log") / "server.log"
        options = {
            "model_id": checkpoint,
            "device": DEVICE,
            "dtype": "float32",
            "threads": 1,
            **BOUNDS,
            **options,
        }
        servers.append(Server(kind, log, options, environment or {}))
        return servers[-1]

    yield start_server
    for server in servers:
        server.end()


@pytest.fixture(scope="session", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The two ways to start a server."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared(start: Callable[..., Server]) -> Callable[..., Server]:
    """Start a server once, for all tests that ask for these options; they leave it as it was."""
    servers: dict[str, Server] = {}

    def share(kind: str, environment: dict[str, str] | None = None, **options: Any) -> Server:
        key = repr((kind, environment, options))
        if key not in servers:
            servers[key] = start(kind, environment, **options).wait_ready()
        return servers[key]

    return share


@pytest.fixture
def server(kind: str, shared: Callable[..., Server]) -> Server:
    """A server that tests share and leave as it was."""
    return shared(kind, keep_alive_timeout=2)
