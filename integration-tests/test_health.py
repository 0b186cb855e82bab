"""The three questions about health, while something of the machine or of the server is stopped or used up.

Streams of a minute and a half run beside them, and are not cut.
"""

import contextlib
import http.client
import json
import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psutil
import pytest

PATHS = ("/health", "/health/live", "/health/startup")
SLOW = {"SLOW_SECONDS": "0.1"}

pytestmark = [pytest.mark.slow, pytest.mark.seconds(240)]


def asked(server: Any, seconds: float = 5) -> dict[str, int | str]:
    """Return the answer of each path on a new connection: the status, or "none" within some seconds."""
    answers: dict[str, int | str] = {}
    for path in PATHS:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=seconds)
        try:
            connection.request("GET", path)
            answers[path] = connection.getresponse().status
        except OSError:
            answers[path] = "none"
        finally:
            connection.close()
    return answers


def all_say(answer: int | str) -> dict[str, int | str]:
    return dict.fromkeys(PATHS, answer)


def begin(server: Any, tokens: int = 60) -> Iterator[Any]:
    """Begin a stream; return its further events."""
    events: Iterator[Any] = server.stream("What is a violin?", max_new_tokens=tokens)
    next(events)
    return events


def text(events: Iterator[Any]) -> str:
    """Return the text of the stream that ends with these events."""
    *_, last = events
    assert "error" not in last, last
    return str(last["generated_text"])


@contextlib.contextmanager
def limited(server: Any, kind: int, limit: int) -> Iterator[None]:
    """Limit a resource of the running server process, and of ranks that it starts."""
    before = resource.prlimit(server.process.pid, kind)
    resource.prlimit(server.process.pid, kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server.process.pid, kind, before)


Long = tuple[float, list[Any]]


@pytest.fixture(scope="module", autouse=True)
def long_streams(start: Any) -> Iterator[list[Future[Long]]]:
    """Streams of 92 tokens, one a second, under `tgi serve` and hypercorn, beside the tests of this file."""

    kinds = "tgi serve", "hypercorn"
    servers = [start(kind, {"SLOW_SECONDS": "1"}, device="slow") for kind in kinds]

    def read(server: Any) -> Long:
        server.wait_ready()
        begun = time.monotonic()
        events = list(server.stream("What is a violin?", max_new_tokens=92))
        return time.monotonic() - begun, events

    with ThreadPoolExecutor() as pool:
        yield [pool.submit(read, server) for server in servers]
        for server in servers:
            server.end()


def test_a_stopped_rank(start: Any) -> None:
    """Not ready as soon as a step takes too long, then while new ranks start; alive all the time."""
    server = start(device="slow", environment=SLOW, stall_timeout=1, step_timeout=4).wait_ready()
    wanted = server.generate("What is a violin?", max_new_tokens=60)["generated_text"]
    events = begin(server)
    (rank,) = server.ranks()
    os.kill(rank, signal.SIGSTOP)
    seen: list[str] = []
    for phase in ("ready", "recovering"):
        server.wait_for(lambda phase=phase: _phase(server) == phase, 30)
        seen.append(server.get("/health")[1])
        assert asked(server) == {"/health": 503, "/health/live": 200, "/health/startup": 200}
    assert "a step has taken" in seen[0]
    assert json.loads(seen[1])["stage"]
    assert text(events) == wanted
    assert asked(server) == all_say(200)
    assert server.metric("tgi_engine_restarts") == 1
    server.end()


def _phase(server: Any) -> str:
    """Return the phase that a 503 names; "" if the server is ready."""
    status, body = server.get("/health")
    return "" if status == 200 else str(json.loads(body)["status"])


def test_a_frozen_event_loop(start: Any) -> None:
    """Nobody is answered, so that the liveness probe fails; when it goes on, nothing is lost or replaced."""
    server = start(device="slow", environment=SLOW, stall_timeout=1, step_timeout=2).wait_ready()
    wanted = server.generate("What is a violin?", max_new_tokens=60)["generated_text"]
    events = begin(server)
    server.signal(signal.SIGSTOP)
    assert asked(server, 1.5) == all_say("none")
    server.signal(signal.SIGCONT)
    assert text(events) == wanted
    assert asked(server) == all_say(200)
    assert server.metric("tgi_engine_restarts") == 0
    server.end()


def test_a_disk_on_which_nothing_can_be_written(start: Any, tmp_path: Any) -> None:
    """All is well as long as no rank is lost; several new ranks cannot meet, and the server keeps trying."""
    server = start(
        device="slow",
        environment=SLOW,
        num_shard=2,
        threads=2,
        record_shapes=tmp_path / "shapes",
        max_restarts=9,
    ).wait_ready()
    wanted = server.generate("What is a violin?", max_new_tokens=60)["generated_text"]
    events = begin(server)
    with limited(server, resource.RLIMIT_FSIZE, 0):
        assert server.generate("Not logged", max_new_tokens=5)
        assert asked(server) == all_say(200)
        os.kill(server.ranks()[1], signal.SIGKILL)
        server.wait_for(lambda: server.metric("tgi_engine_restarts") >= 2, 60)
        assert asked(server) == {"/health": 503, "/health/live": 200, "/health/startup": 200}
    assert text(events) == wanted
    assert asked(server) == all_say(200)
    server.end()


def test_an_exhausted_file_table(start: Any) -> None:
    """New connections get no answer, those that are open do; lost ranks are replaced when there is room."""
    server = start(device="slow", environment=SLOW, max_restarts=9).wait_ready()
    wanted = server.generate("What is a violin?", max_new_tokens=60)["generated_text"]
    events = begin(server)
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    kept.request("GET", "/health")
    assert kept.getresponse().read() == b""
    with limited(server, resource.RLIMIT_NOFILE, psutil.Process(server.process.pid).num_fds()):
        assert asked(server, 1) == all_say("none")
        for path in PATHS:
            kept.request("GET", path)
            response = kept.getresponse()
            assert (response.status, response.read()) == (200, b"")
        (rank,) = server.ranks()
        os.kill(rank, signal.SIGKILL)
        server.wait_for(lambda: "no rank can be started: Too many open files" in server.output(), 60)
        kept.request("GET", "/health")
        response = kept.getresponse()
        health = json.loads(response.read())
        assert (response.status, health["status"]) == (503, "recovering")
        assert re.fullmatch(r"waiting \d+ s before the ranks start again", health["stage"])
    kept.close()
    assert text(events) == wanted
    server.wait_for(lambda: asked(server) == all_say(200), 30)
    assert "Traceback" not in server.output()
    server.end()


@pytest.mark.contract("R1.41")
def test_a_stream_of_90_seconds_is_not_cut(long_streams: list[Future[Long]]) -> None:
    for stream in long_streams:
        seconds, events = stream.result()
        assert seconds > 90
        assert events[-1]["details"] is None
        assert len(events) == 92
