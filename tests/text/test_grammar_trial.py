"""The process that tries grammars: it outlives every bomb, and says no in time (scenario B2)."""

import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tgi.parent import Parent
from tgi.text.grammar import MAX_SOURCE, GrammarSpec
from tgi.text.grammar_trial import CLOCK_SECONDS, Start, Verdict

from .matching import demo_compiler

COMMAND = [sys.executable, "-m", "tgi.text.grammar_trial"]


class Trials:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(COMMAND, stdin=theirs, stderr=subprocess.DEVNULL)
        theirs.close()
        self.connection = Parent(ours)  # the ends of a connection are alike
        compiler = demo_compiler()
        self.send(Start(compiler.tokenizer_json(), compiler.ends, compiler.vocab_size))

    def send(self, message: Any) -> None:
        self.connection.send(msgspec.json.encode(message))

    def ask(self, kind: str, source: Any) -> Verdict:
        text = source if isinstance(source, str) else json.dumps(source)
        self.send(GrammarSpec(kind, text))  # type: ignore[arg-type]
        payload = self.connection.receive()
        assert payload is not None
        return msgspec.json.decode(payload, type=Verdict)


@contextlib.contextmanager
def started() -> Iterator[Trials]:
    made = Trials()
    made.ask("regex", "a")  # it has started
    yield made
    with made.process:
        made.connection.connection.close()
        assert made.process.wait(10) == 0


@pytest.fixture(scope="module")
def trials() -> Iterator[Trials]:
    with started() as made:
        yield made


def fields(count: int) -> dict[str, Any]:
    return {"type": "object", "properties": {f"f{i}": {"type": "string"} for i in range(count)}}


def chain(count: int, link: Any) -> dict[str, Any]:
    """Return definitions, each of which refers to the next."""
    definitions = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$defs": {**definitions, f"d{count}": {"type": "integer"}}, "$ref": "#/$defs/d0"}


TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "v": {"type": "integer"},
                "c": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
        }
    },
    "$ref": "#/$defs/node",
}


@pytest.mark.parametrize("count", [8, 16, 30, 300])
def test_schemas_with_optional_fields_are_allowed(trials: Trials, count: int) -> None:
    assert trials.ask("json", fields(count)).error == ""


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json", TREE),
        ("json", chain(100, lambda ref: {"type": "object", "properties": {"x": ref, "y": ref}})),
        ("json", chain(30, lambda ref: {"anyOf": [ref, ref]})),
        ("json", {"type": "array", "items": {"type": "integer"}, "maxItems": 2_000_000_000}),
        ("json", {"type": "string", "maxLength": 1_000_000_000}),
        ("regex", "[a-z]{1,100000}"),
        ("regex", "(a+)+b(a|aa)+$"),
        ("regex", "(a|b)*a(a|b){20}"),
        ("regex", "[a-z]" * 13_000),
        ("regex", "|".join(f"word{i}" for i in range(7000))),
    ],
)
def test_harmless_large_grammars_are_allowed(trials: Trials, kind: str, source: Any) -> None:
    assert trials.ask(kind, source).error == ""


LOST = "it is too complex to compile|it takes more than 1 s to compile|the schema is too large"
"""Which of the limits it meets first depends on the machine."""
TOO_LARGE = {kind: "x" * (size + 1) for kind, size in MAX_SOURCE.items()}


@pytest.mark.parametrize(
    ("kind", "source", "error"),
    [
        # Each of these overflows the stack, takes minutes, or grows without end.
        ("json", chain(10_000, lambda ref: ref), LOST),
        (
            "json",
            chain(10_000, lambda ref: {"properties": {"x": ref}, "required": ["x"]}),
            LOST,
        ),
        ("json", {"type": "integer", "multipleOf": 1_000_003}, LOST),
        ("regex", "a?" * 30_000, LOST),
        ("lark", "start: /" + "[a-z]" * 320_000 + "/", LOST),
        ("lark", "start:" + ' "a"' * 100_000, "it is too large"),
        ("regex", "((a{1,100}){1,100}){1,100}", "too many expressions"),
        ("regex", "(((a{1,1000}){1,1000}){1,1000}){1,1000}", "too many expressions"),
        ("regex", "(" * 30_000 + ")" * 30_000, "exceed the maximum number of nested"),
        ("regex", TOO_LARGE["regex"], "too large"),
        ("json", TOO_LARGE["json"], "too large"),
        ("lark", TOO_LARGE["lark"], "too large"),
        ("json", fields(30_000), "too large"),
        ("json", {"allOf": [{"anyOf": [fields(1), fields(2)]} for _ in range(22)]}, "too large|too complex"),
        ("json", {"$ref": "#"}, "no text obeys it"),
    ],
)
def test_bombs_are_refused_in_time(trials: Trials, kind: str, source: Any, error: str) -> None:
    began = time.monotonic()
    verdict = trials.ask(kind, source)
    assert time.monotonic() - began < CLOCK_SECONDS + 0.5
    assert verdict.late or any(part in verdict.error for part in error.split("|")), verdict
    assert trials.ask("regex", "a").error == ""


def test_memory_of_a_grammar_is_reported() -> None:
    with started() as trials:  # one that other grammars have made grow tells less
        small = min(trials.ask("regex", "a").grown for _ in range(5))
        large = max(trials.ask("regex", "[a-z]" * 13_000).grown for _ in range(5))
    assert 0 < small < 10 << 20
    assert large > small


def test_trial_process_ends_with_its_server() -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(COMMAND, stdin=theirs)
    theirs.close()
    ours.send(b"\x09\0")
    ours.close()
    assert process.wait(10) == 0
