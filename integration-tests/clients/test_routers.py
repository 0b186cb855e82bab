"""The routers of vLLM and SGLang, as they come, in front of two servers, of which one is killed."""

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import httpx2 as httpx
import pytest

from .conftest import PYTHONS

QUESTIONS = ("What is a violin?", "What is a bridge?", "What is Deep Learning?", "What is the sea?")
COMMANDS = {"vllm-router": ["vllm-router"], "sglang-router": ["sglang-router", "launch"]}
TRIES = 10
"""Answers 500 at most until a router leaves out a server that is gone; both wait for some failures."""


@attrs.frozen
class Routed:
    """A router that takes turns, and the servers behind it."""

    url: str
    servers: list[Any]

    def chat(self, question: str, *, stream: bool) -> str | None:
        """The greedy answer; None if the router cannot reach a server."""
        messages = [{"role": "user", "content": question}]
        body = {"model": "tgi-demo", "messages": messages, "temperature": 0, "max_tokens": 100}
        answer = httpx.post(f"{self.url}/v1/chat/completions", json={**body, "stream": stream}, timeout=60)
        if answer.status_code in (500, 502, 503):
            return None
        assert answer.status_code == 200, answer.text
        if not stream:
            content: str = answer.json()["choices"][0]["message"]["content"]
            return content
        *events, done = answer.text.removesuffix("\n\n").split("\n\n")
        assert done == "data: [DONE]"
        chunks = [json.loads(event.removeprefix("data: ")) for event in events]
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=COMMANDS)
def routed(request: pytest.FixtureRequest, start: Callable[..., Any], tmp_path: Path) -> Iterator[Routed]:
    """Start two servers of the demo model, in float32, and a router."""
    servers = [start(model_id="", threads=1) for _ in range(2)]
    name, *more = COMMANDS[request.param]
    addresses = [f"http://127.0.0.1:{server.wait_ready().port}" for server in servers]
    port, log = free_port(), tmp_path / "log"
    options = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    options += ["--policy", "round_robin", "--worker-urls", *addresses]
    with log.open("wb") as output:
        command = [PYTHONS["clients"].with_name(name), *more, *options]
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not is_ready(url := f"http://127.0.0.1:{port}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield Routed(url, servers)
    finally:
        process.kill()
        process.wait(30)
        for server in servers:
            server.end()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_router_in_front_of_two_servers(routed: Routed, reference: Any) -> None:
    for question in QUESTIONS:
        for stream in (False, True):
            assert routed.chat(question, stream=stream) == reference.chat(question).text
    counts = [server.metric("tgi_request_success") for server in routed.servers]
    assert sum(counts) == 2 * len(QUESTIONS)
    assert all(counts)

    gone = routed.servers[1]
    gone.signal(signal.SIGKILL)
    gone.wait_exit()
    answers = [routed.chat(QUESTIONS[0], stream=bool(number % 2)) for number in range(2 * TRIES)]
    assert set(answers) <= {reference.chat(QUESTIONS[0]).text, None}
    assert None not in answers[TRIES:]
