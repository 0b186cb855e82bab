"""The libraries of Anthropic, Ollama, and OpenAI's Responses API."""

from collections.abc import Callable
from typing import Any

import pytest

QUESTION = "What is a violin?"
WORDS = ("violin", "viola")


@pytest.fixture(scope="module")
def found(example: Callable[..., Any]) -> Any:
    return example("use_other_apis.py")


def test_anthropic(found: Any, reference: Any) -> None:
    expected, claude = reference.chat(QUESTION), found["claude"]
    assert claude["text"] == claude["streamed"] == expected.text
    assert claude["tokens"] == [expected.prompt_tokens, expected.tokens]
    assert claude["counted"] == expected.prompt_tokens
    assert claude["stop"] == ["end_turn", "tool_use", "max_tokens"]
    name, arguments = claude["call"]
    assert name == "define"
    assert arguments["word"] in WORDS
    assert claude["error"] == "invalid_request_error"


def test_responses(found: Any, reference: Any) -> None:
    expected, responses = reference.chat(QUESTION), found["responses"]
    assert responses["text"] == responses["kept"] == expected.text
    assert responses["streamed"] == [expected.text] * 2
    assert responses["tokens"] == [expected.prompt_tokens, expected.tokens]
    assert responses["status"] == ["completed", "incomplete"]
    ((name, arguments),) = responses["calls"]
    assert name == "define"
    assert arguments["word"] in WORDS


def test_ollama(found: Any, reference: Any) -> None:
    expected, llama = reference.chat(QUESTION), found["llama"]
    assert llama["text"] == llama["streamed"] == llama["generated"] == expected.text
    assert llama["tokens"] == [expected.prompt_tokens, expected.tokens]
    assert llama["tools"] is True
    assert llama["shaped"]["word"] in WORDS
    assert "completion" in llama["abilities"]
