"""OpenAI's client: the newest beside the server, an older one beside the other clients."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

PROMPT = "What is a violin?"
WORDS = ("violin", "viola")


@pytest.fixture(scope="module", params=["server", "clients"])
def found(example: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    return example("use_openai.py", request.param)


def test_models(found: Any) -> None:
    assert found["models"] == ["tgi-demo", "tgi-demo"]


def test_chat(found: Any, reference: Any) -> None:
    expected = reference.chat(PROMPT)
    (choice,) = found["chat"]["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "stop"
    assert found["chat"]["usage"]["prompt_tokens"] == expected.prompt_tokens
    assert found["chat"]["usage"]["completion_tokens"] == expected.tokens

    tokens = choice["logprobs"]["content"]
    assert "".join(bytes(token["bytes"]).decode() for token in tokens).startswith(expected.text)
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    assert all(token["top_logprobs"][0]["token"] == token["token"] for token in tokens)


def test_chat_stream(found: Any, reference: Any) -> None:
    expected = reference.chat(PROMPT)
    *events, last = found["chat_stream"]
    assert "".join(event["choices"][0]["delta"]["content"] or "" for event in events) == expected.text
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons == [None] * (len(events) - 1) + ["stop"]
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == expected.tokens
    assert len({event["id"] for event in found["chat_stream"]}) == 1


def test_chat_options(found: Any, reference: Any) -> None:
    assert found["chat_stop"]["message"]["content"] == reference.chat(PROMPT).text.partition(" is")[0]
    assert found["chat_stop"]["finish_reason"] == "stop"
    assert [choice["index"] for choice in found["chat_choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in found["chat_choices"]}) > 1


def test_tools(found: Any) -> None:
    asked, told = found["tools"]["asked"], found["tools"]["told"]
    assert asked["finish_reason"] == "tool_calls"
    assert asked["message"]["content"] is None
    (call,) = asked["message"]["tool_calls"]
    assert call["function"]["name"] == "define"
    assert json.loads(call["function"]["arguments"])["word"] in WORDS
    assert told["finish_reason"] in ("stop", "length")
    assert not told["message"]["tool_calls"]
    assert told["message"]["content"]

    streamed = found["tools_stream"]
    assert streamed["name"] == "define"
    assert streamed["finish_reason"] in ("stop", "tool_calls")
    assert streamed["parsed"]["word"] in WORDS
    assert "tool_calls.function.arguments.delta" in streamed["kinds"]


def test_parse(found: Any) -> None:
    for parsed in (found["parse"], found["parse_stream"]):
        assert parsed["name"] in WORDS
        assert 1 <= parsed["strings"] <= 9


def test_completions(found: Any, reference: Any) -> None:
    expected = reference.complete(PROMPT, 12)
    for answer, count in zip(found["completions"], (1, 2, 1, 2), strict=True):
        assert [choice["text"] for choice in answer["choices"]] == [expected.text] * count
        assert [choice["index"] for choice in answer["choices"]] == list(range(count))
        assert answer["usage"]["prompt_tokens"] == expected.prompt_tokens * count
        assert answer["usage"]["completion_tokens"] == expected.tokens * count
    assert found["completions_stream"] == [
        reference.complete(prompt, 12).text for prompt in (PROMPT, "What is a viola?")
    ]


def test_completions_score_the_prompt(found: Any, reference: Any) -> None:
    scored = found["completions_scored"]
    assert scored["text"] == PROMPT + reference.complete(PROMPT, 1).text
    assert scored["logprobs"]["token_logprobs"][0] is None
    direct = reference.score("", PROMPT)
    assert math.fsum(scored["logprobs"]["token_logprobs"][1:-1]) == pytest.approx(
        direct.log_likelihood, abs=1e-5 * direct.tokens
    )


def test_errors(found: Any) -> None:
    """A class by the status, and the message in its text and in `body`."""
    classes = [error["class"] for error in found["refused"]]
    assert classes == ["BadRequestError"] * 3 + ["NotFoundError"]
    assert all(error["body"]["message"] in error["message"] for error in found["refused"])
    assert "max_tokens" in found["refused"][0]["message"]


def test_asynchronous(found: Any, reference: Any) -> None:
    assert found["asynchronous"] == [reference.chat(PROMPT).text] * 2
