"""huggingface_hub's client: the newest beside the server, the last one of 0.x beside the other clients."""

import json
from collections.abc import Callable
from typing import Any

import pytest

PROMPT = "What is a violin?"
WORDS = ("violin", "viola")


@pytest.fixture(scope="module", params=["server", "clients"])
def found(example: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    return example("use_huggingface_hub.py", request.param)


def test_about(found: Any) -> None:
    assert found["about"]["model"] == "tgi-demo"
    assert found["about"]["version"].startswith("3.3.7+")
    assert found["about"]["healthy"] is True


def test_text_generation(found: Any, reference: Any) -> None:
    expected = reference.complete(PROMPT, 60)
    details = found["generate"]["details"]
    assert found["generate"]["text"] == expected.text
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == expected.tokens == len(details["tokens"])
    assert len(details["prefill"]) == expected.prompt_tokens

    events = found["generate_stream"]
    assert "".join(e["token"]["text"] for e in events if not e["token"]["special"]) == expected.text
    assert events[-1]["details"]["generated_tokens"] == expected.tokens
    assert json.loads(found["grammar"])["word"] in WORDS


def test_chat(found: Any, reference: Any) -> None:
    expected = reference.chat(PROMPT)
    (choice,) = found["chat"]["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == "stop"
    assert len(choice["logprobs"]["content"]) == expected.tokens
    assert found["chat"]["usage"]["total_tokens"] == expected.prompt_tokens + expected.tokens

    *events, last = found["chat_stream"]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta["content"] or "" for delta in deltas) == expected.text
    assert last["usage"]["completion_tokens"] == expected.tokens


def test_tools(found: Any) -> None:
    (choice,) = found["chat_tools"]["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "define"
    assert json.loads(call["function"]["arguments"])["word"] in WORDS

    deltas = [event["choices"][0]["delta"] for event in found["chat_tools_stream"]]
    pieces = [call["function"] for delta in deltas for call in delta["tool_calls"] or []]
    assert [piece["name"] for piece in pieces if piece["name"]] == ["define"]
    assert json.loads("".join(piece["arguments"] for piece in pieces))["word"] in WORDS


def test_response_format(found: Any) -> None:
    assert all(json.loads(text)["word"] in WORDS for text in found["shaped"])


def test_errors(found: Any) -> None:
    """Of the class that the `error_type` says."""
    assert "max_new_tokens" in found["refused"]


def test_asynchronous(found: Any, reference: Any) -> None:
    complete, chat = reference.complete(PROMPT, 60).text, reference.chat(PROMPT).text
    assert found["asynchronous"]["text"] == complete
    assert found["asynchronous"]["text_stream"].removesuffix("</s>") == complete
    assert found["asynchronous"]["chat"] == found["asynchronous"]["chat_stream"] == chat
