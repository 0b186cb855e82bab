"""langchain-huggingface."""

from collections.abc import Callable
from typing import Any

import pytest

PROMPT = "What is a violin?"
WORDS = ("violin", "viola")


@pytest.fixture(scope="module")
def found(example: Callable[..., Any]) -> Any:
    return example("use_langchain.py")


def test_complete(found: Any, reference: Any) -> None:
    expected = reference.complete(PROMPT, 60).text
    assert found["complete"] == expected
    assert found["complete_stop"] == expected.partition(" is")[0]
    assert "".join(found["complete_stream"]) == f"{expected}</s>"  # it passes special tokens on


def test_chat(found: Any, reference: Any) -> None:
    expected = reference.chat(PROMPT)
    usage = {
        "input_tokens": expected.prompt_tokens,
        "output_tokens": expected.tokens,
        "total_tokens": expected.prompt_tokens + expected.tokens,
    }
    answer = found["chat_invoke"]
    assert answer["content"] == expected.text
    assert answer["response_metadata"]["finish_reason"] == "stop"
    assert answer["usage_metadata"] == usage

    chunks = found["chat_stream"]
    assert "".join(chunk["content"] for chunk in chunks) == expected.text
    assert [chunk["usage_metadata"] for chunk in chunks if chunk["usage_metadata"]] == [usage]


def test_tools(found: Any) -> None:
    (call,) = found["chat_tools"]["tool_calls"]
    assert call["name"] == "define"
    assert call["args"]["word"] in WORDS
    assert found["chat_tool_result"]["content"] or found["chat_tool_result"]["tool_calls"]
    assert found["structured"]["function_calling"]["word"] in WORDS
    assert found["structured"]["json_schema"]["word"] in WORDS


def test_asynchronous(found: Any, reference: Any) -> None:
    chat = reference.chat(PROMPT).text
    assert found["asynchronous"] == {
        "complete": reference.complete(PROMPT, 60).text,
        "chat": chat,
        "chat_stream": chat,
    }
