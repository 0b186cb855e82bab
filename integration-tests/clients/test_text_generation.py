"""text-generation 0.7.0, TGI's own client."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

PROMPT = "What is a violin?"


@pytest.fixture(scope="module")
def found(example: Callable[..., Any]) -> Any:
    return example("use_text_generation.py")


def text_of(events: list[Any]) -> str:
    return "".join(event["token"]["text"] for event in events if not event["token"]["special"])


def test_generate(found: Any, reference: Any) -> None:
    expected = reference.complete(PROMPT, 60)
    answer = found["generate"]
    assert answer["generated_text"] == expected.text
    assert answer["details"]["finish_reason"] == "eos_token"
    assert answer["details"]["generated_tokens"] == expected.tokens == len(answer["details"]["tokens"])
    assert len(answer["details"]["prefill"]) == expected.prompt_tokens
    assert text_of(found["generate_stream"]) == expected.text
    assert found["generate_stream"][-1]["generated_text"] == expected.text


def test_parameters(found: Any) -> None:
    details = found["sampled"]["details"]
    assert details["seed"] == 7
    assert len(details["top_tokens"]) == details["generated_tokens"]
    assert len(found["best_of"]["details"]["best_of_sequences"]) == 1
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", found["grammar"])


def test_chat(found: Any, reference: Any) -> None:
    expected = reference.chat(PROMPT)
    (choice,) = found["chat"]["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == "stop"
    assert found["chat"]["usage"]["completion_tokens"] == expected.tokens
    (call,) = found["chat_tools"]["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "define"
    assert json.loads(call["function"]["arguments"])["word"] in ("violin", "viola")


def test_errors(found: Any) -> None:
    """Of the class that the `error_type` says."""
    assert "max_new_tokens" in found["refused"]


def test_asynchronous(found: Any, reference: Any) -> None:
    expected = reference.complete(PROMPT, 60)
    assert found["asynchronous"]["generate"]["generated_text"] == expected.text
    assert text_of(found["asynchronous"]["generate_stream"]) == expected.text
