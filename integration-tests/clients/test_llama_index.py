"""llama-index, with its class for servers of OpenAI's API."""

from collections.abc import Callable
from typing import Any

import pytest

PROMPT = "What is a violin?"
WORDS = {"violin", "viola"}


@pytest.fixture(scope="module")
def found(example: Callable[..., Any]) -> Any:
    return example("use_llama_index.py")


def test_complete(found: Any, reference: Any) -> None:
    expected = reference.complete(PROMPT, 60).text
    assert found["complete"] == found["complete_stream"] == expected


def test_chat(found: Any, reference: Any) -> None:
    expected = reference.chat(PROMPT).text
    assert found["chat"] == found["chat_stream"] == found["asynchronous"] == expected


def test_tools(found: Any) -> None:
    assert set(found["tools"]) <= WORDS
    assert found["tools"]
    assert found["structured"] in WORDS
