"""litellm, over both of its providers that speak to such a server."""

import json
from collections.abc import Callable
from typing import Any

import pytest

PROMPT = "What is a violin?"
WORDS = ("violin", "viola")
PROVIDERS = ("huggingface", "hosted_vllm")


@pytest.fixture(scope="module")
def found(example: Callable[..., Any]) -> Any:
    return example("use_litellm.py")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_chat(found: Any, reference: Any, provider: str) -> None:
    expected = reference.chat(PROMPT)
    plain = found[provider]["plain"]
    assert plain["choices"][0]["message"]["content"] == expected.text
    assert plain["choices"][0]["finish_reason"] == "stop"
    assert plain["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert plain["usage"]["completion_tokens"] == expected.tokens
    assert found[provider]["asynchronous"] == expected.text

    events = found[provider]["stream"]
    pieces = [event["choices"][0]["delta"]["content"] or "" for event in events if event["choices"]]
    assert "".join(pieces) == expected.text
    assert events[-1]["usage"]["completion_tokens"] == expected.tokens


@pytest.mark.parametrize("provider", PROVIDERS)
def test_tools(found: Any, provider: str) -> None:
    choice = found[provider]["tools"]["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] == "define"
    assert json.loads(call["function"]["arguments"])["word"] in WORDS
    assert json.loads(found[provider]["shaped"])["word"] in WORDS


def test_errors(found: Any) -> None:
    assert found["refused"]["status"] == 400
    assert "max_tokens" in found["refused"]["text"]
