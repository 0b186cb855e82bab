"""Grammars made to be expensive: refused or compiled in two seconds, and nobody else notices (B2)."""

import contextlib
import http.client
import itertools
import json
import os
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

pytestmark = pytest.mark.slow

SECONDS = 4.0
"""The two of B2, and what is around: the request, a busy machine."""
GAP = 1 if os.environ.get("TGI_TEST_DEVICE", "cpu") == "cpu" else 10
"""Seconds between two tokens of a neighbour; a simulated card shares its processors with the bombs."""
ANSWERS = {200, 400, 422, 429}
"""429: the machine is too busy to find out."""


def optional(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"key{i}": {"type": "string"} for i in range(count)}}


def tree(depth: int) -> dict[str, Any]:
    if not depth:
        return {"type": "string"}
    return {"type": "object", "properties": {f"key{i}": tree(depth - 1) for i in range(3)}}


def doubling(kind: str) -> dict[str, Any]:
    """2**40 schemas in 40 lines."""
    definitions: dict[str, Any] = {"d40": {"type": "string"}}
    for i in range(40):
        twice = [{"$ref": f"#/$defs/d{i + 1}"}] * 2
        definitions[f"d{i}"] = {kind: dict(zip("ab", twice, strict=True)) if kind == "properties" else twice}
    return {"$defs": definitions, "$ref": "#/$defs/d0"}


REGEXES = {
    "nested repetitions": "((((a{1,30}){1,30}){1,30}){1,30}){1,30}",
    "a repetition of anything": "(a|b|ab){1,1000}c{0,5000}",
    "a huge repetition": "[a-z]{2147483647}",
    "an automaton of 2**40 states": "(a|b)*a(a|b){40}",
    "letters of all alphabets": r"(\p{L}\p{N}){1,500}",
    "1 MB": "a" * 1_000_000,
    "9,000 words": "|".join(f"w{i}" for i in range(9000)),
    "30,000 parentheses": "(" * 30_000 + "a" + ")" * 30_000,
    "30,000 stars": "a" + "*" * 30_000,
}
NODE: dict[str, Any] = {
    "properties": {"a": {"$ref": "#/$defs/node"}, "b": {"$ref": "#/$defs/node"}},
    "type": "object",
}
SCHEMAS: dict[str, dict[str, Any]] = {
    **{f"{count} optional fields": optional(count) for count in (8, 15, 22, 30)},
    "itself": {"$ref": "#"},
    "a tree": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    **{f"doubling {kind}": doubling(kind) for kind in ("properties", "allOf", "anyOf", "oneOf")},
    "7,000 objects": tree(8),
    "a million strings": {"type": "array", "items": {"type": "string", "minLength": 999}, "minItems": 10**6},
    "1,000 choices": {"anyOf": [{"properties": {f"k{i}": {}}, "required": [f"k{i}"]} for i in range(1000)]},
    "20,000 values": {"enum": [f"value {i}" for i in range(20_000)]},
    "a pattern": {"type": "string", "pattern": f"^{REGEXES['nested repetitions']}$"},
    "multiples of a large prime product": {"type": "integer", "multipleOf": 62_615_533, "maximum": 10**18},
    "a file": {"$ref": "file:///etc/passwd"},
    "another server": {"$ref": "http://127.0.0.1:9/schema.json"},
}  # fmt: skip
MESSAGES: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def bombs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, path and body."""
    for name, regex in REGEXES.items():
        grammar: dict[str, Any] = {"type": "regex", "value": regex}
        yield name, "/generate", {"inputs": "a", "parameters": {"max_new_tokens": 4, "grammar": grammar}}
        yield name, "/v1/chat/completions", {**MESSAGES, "response_format": grammar}
    for name, schema in SCHEMAS.items():
        grammar = {"type": "json", "value": schema}
        yield name, "/generate", {"inputs": "a", "parameters": {"max_new_tokens": 4, "grammar": grammar}}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        yield name, "/v1/chat/completions", {**MESSAGES, "response_format": wanted}
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        yield name, "/v1/chat/completions", {**MESSAGES, "tools": [tool], "tool_choice": "required"}


class Neighbour:
    """A stream that goes on and on, from `with` to its end; `gaps` are the seconds between its events."""

    def __init__(self, server: Any) -> None:
        self.gaps: list[float] = []
        self._port = server.port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        body = json.dumps(
            {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "temperature": 1, "stream": True}
        )
        while not self._ended.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
            with contextlib.closing(connection):
                connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
                response = connection.getresponse()
                assert response.status == 200
                events = (time.monotonic() for line in response if line.startswith(b"data:"))
                for before, now in itertools.pairwise(events):
                    self.gaps.append(now - before)
                    if self._ended.is_set():
                        break

    def taken(self) -> list[float]:
        """The gaps since they were last taken; waits for some."""
        while len(self.gaps) < 300:
            assert self._thread.is_alive()
            time.sleep(0.01)
        gaps, self.gaps = self.gaps, []
        return gaps


@pytest.fixture(scope="module")
def demo(start: Any) -> Any:
    """A server that tests share."""
    server = start(model_id="", max_total_tokens=1024).wait_ready()
    yield server
    server.end()


def send(server: Any, bomb: tuple[str, str, dict[str, Any]]) -> tuple[str, int, float, Any]:
    """Name, status, seconds and answer."""
    name, path, body = bomb
    begun = time.monotonic()
    status, answer = server.post(path, body)
    return name, status, time.monotonic() - begun, answer


def test_bombs_are_refused_or_compiled_in_two_seconds_and_a_neighbour_is_served_as_before(demo: Any) -> None:
    with Neighbour(demo) as neighbour:
        alone = neighbour.taken()
        answers = [send(demo, bomb) for bomb in bombs()]
        beside = neighbour.taken()
    for name, status, seconds, answer in answers:
        assert status in ANSWERS, (name, answer)
        assert seconds < SECONDS, name
    refused = {name for name, status, _, _ in answers if status != 200}
    assert {"nested repetitions", "1 MB", "30,000 stars", "itself", "a circle", "a file"} <= refused
    assert {name for name, status, _, _ in answers if status == 200} >= {
        f"{n} optional fields" for n in (8, 30)
    }
    assert statistics.median(beside) < 2 * statistics.median(alone) + 0.005
    assert max(beside) < GAP


def test_all_bombs_at_once_end_neither_the_server_nor_a_stream(demo: Any) -> None:
    everything = list(bombs())
    with Neighbour(demo) as neighbour, ThreadPoolExecutor(len(everything)) as pool:
        neighbour.taken()
        answers = list(pool.map(lambda bomb: send(demo, bomb), everything))
        assert max(neighbour.taken()) < 3 * GAP  # each bomb is tried in a process, and two cores are few
    assert {200, 400, 422} <= {status for _, status, _, _ in answers} <= ANSWERS
    assert demo.generate("a", max_new_tokens=2)["generated_text"]
    assert " ERROR " not in demo.output()
    assert len(demo.ranks()) == 1
