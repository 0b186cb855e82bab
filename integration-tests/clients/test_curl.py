"""curl reads the event streams: the bytes on the wire are what the clients' parsers expect."""

import json
import subprocess
from typing import Any

import pytest

PROMPT = "What is a violin?"
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "temperature": 0}


def curl(url: str, body: Any, *options: str) -> str:
    command = ["curl", "--silent", "--show-error", "--no-buffer", "--max-time", "60", *options]
    command += ["--header", "Content-Type: application/json", "--data-binary", "@-", url]
    return subprocess.run(
        command, input=json.dumps(body).encode(), capture_output=True, check=True
    ).stdout.decode()


def events(text: str) -> list[str]:
    """What follows `data: `: every event is one such line and an empty one."""
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [line.removeprefix("data: ") for line in lines]


def test_native_stream(url: str, reference: Any) -> None:
    body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 60}}
    head, _, text = curl(f"{url}/generate_stream", body, "--include").partition("\r\n\r\n")
    assert "content-type: text/event-stream" in head.lower()
    expected = reference.complete(PROMPT, 60)
    found = [json.loads(event) for event in events(text)]  # there is no [DONE] here
    assert "".join(e["token"]["text"] for e in found if not e["token"]["special"]) == expected.text
    assert [event["generated_text"] for event in found] == [None] * (expected.tokens - 1) + [expected.text]


def test_chat_stream(url: str, reference: Any) -> None:
    *found, done = events(curl(f"{url}/v1/chat/completions", {**CHAT, "stream": True}))
    assert done == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"] for event in found]
    assert "".join(delta.get("content") or "" for delta in deltas) == reference.chat(PROMPT).text


def test_completion_stream(url: str, reference: Any) -> None:
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 60, "stream": True}
    *found, done = events(curl(f"{url}/v1/completions", body))
    assert done == "[DONE]"
    pieces = [json.loads(event)["choices"][0]["text"] for event in found]
    assert "".join(pieces) == reference.complete(PROMPT, 60).text


@pytest.mark.parametrize("body", [{**CHAT, "stream": True, "max_tokens": 10**6}, {"stream": True}])
def test_an_error_before_the_first_event_has_its_status(url: str, body: Any) -> None:
    text, status = curl(f"{url}/v1/chat/completions", body, "--write-out", "\n%{http_code}").rsplit("\n", 1)
    assert status == "400"
    assert "data:" not in text
