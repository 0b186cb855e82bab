"""Thoughts in chats: apart from the content, bounded, and before calls that are required."""

import itertools
import json
from typing import Any

import attrs
import pytest

from tgi.testing.fake_executor import Script

from .serving import LIMITS, Answer, Server, make_tokenizer, saying, serving
from .test_chat import chunks

USER = {"role": "user", "content": "Weather?"}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}},
    "required": ["city"],
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}{{ tools }}"
    'Answer <tool_call>\n{"name": n, "arguments": a}\n</tool_call>{% endif %}'
    "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }}{% endfor %}[assistant]"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
)
"""A template in which the model itself begins thoughts, if it thinks."""
OPENING = TEMPLATE + "<think>\n"
"""A template that begins the thoughts of every answer."""


def serving_thoughts(script: Script, template: str = TEMPLATE) -> Any:
    limits = attrs.evolve(LIMITS, max_input_tokens=2000, max_total_tokens=2500)
    return serving(script, template=template, limits=limits)


async def chat(server: Server, **body: Any) -> Answer:
    default = {"messages": [USER], "temperature": 0, "max_tokens": 400}
    return await server.ask("POST", "/v1/chat/completions", default | body)


def joined(answer: Answer) -> tuple[str, str, str]:
    """Return thoughts, content and finish reason of an answer or a stream."""
    if answer.headers["content-type"] == "application/json":
        assert answer.status == 200, answer.body
        choice = answer.json["choices"][0]
        deltas, reason = [choice["message"]], choice["finish_reason"]
    else:
        choices = [event["choices"][0] for event in chunks(answer)]
        deltas, reason = [choice["delta"] for choice in choices], choices[-1]["finish_reason"]
    thoughts = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert thoughts == "".join(delta.get("reasoning", "") for delta in deltas)
    return thoughts, "".join(delta.get("content") or "" for delta in deltas), reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("template", "said", "thoughts", "content"),
    [
        (TEMPLATE, "<think>\nHm, <b>?\n</think>\n\nIt rains.", "Hm, <b>?", "It rains."),
        (TEMPLATE, "It <think>rains</think>.", "", "It <think>rains</think>."),
        (OPENING, "Hm.\n</think>\n\nIt rains.", "Hm.", "It rains."),
        (OPENING, "\n</think>It rains.", "", "It rains."),
        (TEMPLATE.replace("think>'", "x'"), "<think>Hm.</think>It rains.", "Hm.", "It rains."),
        ("{{ messages[0].content }}", "<think>Hm.</think>It rains.", "", "<think>Hm.</think>It rains."),
    ],
)
async def test_thoughts_are_apart_from_the_content(
    template: str, said: str, thoughts: str, content: str, stream: bool
) -> None:
    async with serving_thoughts(saying(said), template) as server:
        assert joined(await chat(server, stream=stream)) == (thoughts, content, "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_that_are_cut_are_all_of_the_answer(stream: bool) -> None:
    async with serving_thoughts(saying("Hello world"), OPENING) as server:
        assert joined(await chat(server, stream=stream, max_tokens=1)) == ("Hello", "", "length")


@pytest.mark.parametrize("stream", [False, True])
async def test_thoughts_may_be_left_out(stream: bool) -> None:
    async with serving_thoughts(saying("Hm.</think>It rains."), OPENING) as server:
        answer = await chat(server, stream=stream, include_reasoning=False)
        assert joined(answer) == ("", "It rains.", "stop")
        assert b"Hm" not in answer.body


@pytest.mark.parametrize("more", [{}, {"include_reasoning": False}, {"stop": ["rain"]}])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("template", "begin"), [(TEMPLATE, "<think>"), (OPENING, "")])
async def test_usage_tells_the_tokens_of_thoughts(
    template: str, begin: str, stream: bool, more: dict[str, Any]
) -> None:
    said = f"{begin}\nwhat 😀 is\n</think>\nHello"
    tokenizer = make_tokenizer()
    ids = tokenizer.encode(said, add_special_tokens=False)
    read = [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
    thoughts = sum(begin in before and "</think>" not in after for before, after in itertools.pairwise(read))
    assert thoughts > len("what 😀 is"), "no character of several tokens"
    async with serving_thoughts(saying(said), template) as server:
        answer = await chat(
            server, stream=stream, stream_options={"include_usage": True} if stream else None, **more
        )
        usage = chunks(answer)[-1]["usage"] if stream else answer.json["usage"]
        assert usage["completion_tokens_details"] == {"reasoning_tokens": thoughts}
        answer = await server.ask("POST", "/v1/responses", {"input": "Weather?", "temperature": 0})
        assert answer.json["usage"]["output_tokens_details"] == {"reasoning_tokens": thoughts}


async def test_native_routes_have_thoughts_in_the_text() -> None:
    async with serving_thoughts(saying("<think>Hm.</think>It rains.")) as server:
        assert (await server.generate({})).json["generated_text"] == "<think>Hm.</think>It rains."
        body = {"instances": [{"messages": [USER]}]}
        (text,) = (await server.ask("POST", "/vertex", body)).json["predictions"]
        assert text == "<think>Hm.</think>It rains."


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", "weather"])
@pytest.mark.parametrize("thinking", [None, False, True])
@pytest.mark.parametrize("template", [TEMPLATE, OPENING])
async def test_required_call_comes_although_the_model_would_think(
    template: str, thinking: bool | None, choice: str, stream: bool
) -> None:
    """The script would write text for ever."""
    ids = make_tokenizer().encode("<think>Hello", add_special_tokens=False)
    async with serving_thoughts(lambda _, draw: ids[min(draw, len(ids) - 1)], template) as server:
        body = {"tools": [WEATHER], "tool_choice": choice, "stream": stream, "enable_thinking": thinking}
        answer = await chat(server, **body, max_tokens=200)
        _, content, reason = joined(answer)
        assert (content, reason) == ("", "tool_calls")
        assert b'"weather"' in answer.body


@pytest.mark.parametrize("template", [TEMPLATE, OPENING])
async def test_a_required_call_may_come_after_thoughts(template: str) -> None:
    said = ("" if template == OPENING else "<think>\n") + f"Paris?\n</think>\n\n{CALL}"
    async with serving_thoughts(saying(said), template) as server:
        message = (await chat(server, tools=[WEATHER], tool_choice="required")).json["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"]) == (None, "Paris?")
        assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Paris"}


async def test_a_response_format_holds_after_thoughts() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    async with serving_thoughts(saying('Hm.</think>{"city":"Paris"}'), OPENING) as server:
        answer = await chat(server, response_format=wanted)
        assert joined(answer) == ("Hm.", '{"city":"Paris"}', "stop")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("template", [TEMPLATE, OPENING])
async def test_thoughts_have_a_budget(template: str, stream: bool) -> None:
    hello = make_tokenizer().encode("Hello", add_special_tokens=False)
    said = make_tokenizer().encode("" if template == OPENING else "<think>", add_special_tokens=False)
    script = [*said, *hello * 100]
    async with serving_thoughts(lambda _, draw: script[draw], template) as server:
        answer = await chat(server, max_thinking_tokens=4, max_tokens=60, stream=stream)
        thoughts, content, _ = joined(answer)
        assert 0 < len(thoughts) <= 4 * len("Hello")
        assert content.endswith("HelloHello")


@pytest.mark.parametrize(
    ("body", "variables"),
    [
        ({}, "||"),
        ({"reasoning_effort": "low"}, "low||"),
        ({"reasoning_effort": "none"}, "none|False|"),
        ({"enable_thinking": True}, "|True|"),
        ({"documents": [{"title": "t", "text": "x"}]}, "||t"),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "|False|"),
    ],
)
async def test_fields_about_thoughts_and_documents_are_variables(body: Any, variables: str) -> None:
    template = "{{ reasoning_effort }}|{{ enable_thinking }}|{{ (documents or [{}])[0].title }}"
    async with serving(saying("x"), template=template) as server:
        answer = await server.ask("POST", "/chat_tokenize", {"messages": [USER], **body})
        assert answer.json["templated_text"] == variables


async def test_an_unknown_effort_is_refused_and_any_word_is_a_variable() -> None:
    async with serving(saying("x"), template="{{ reasoning_effort }}|{{ verbosity }}") as server:
        for field in ("reasoning_effort", "verbosity"):
            answer = await server.ask("POST", "/v1/chat/completions", {"messages": [USER], field: "huge"})
            assert (answer.status, f"`$.{field}`" in answer.json["error"]["message"]) == (400, True)
        body = {
            "messages": [USER],
            "chat_template_kwargs": {"reasoning_effort": "no_think"},
            "verbosity": "low",
        }
        answer = await server.ask("POST", "/chat_tokenize", body)
        assert answer.json["templated_text"] == "no_think|low"


@pytest.mark.parametrize(
    ("body", "variables"),
    [
        ({"enable_thinking": False}, "False|False|"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "False|False|"),
        ({"enable_thinking": True, "max_thinking_tokens": 9}, "True|True|9"),
        ({}, "||"),
    ],
)
async def test_variables_of_other_templates_turn_thoughts_off(body: Any, variables: str) -> None:
    """Of DeepSeek V3.1 and Granite, Command A, and Seed-OSS."""
    async with serving(
        saying("x"), template="{{ thinking }}|{{ reasoning }}|{{ thinking_budget }}"
    ) as server:
        answer = await server.ask("POST", "/chat_tokenize", {"messages": [USER], **body})
        assert answer.json["templated_text"] == variables


@pytest.mark.parametrize("tools", [None, [WEATHER]])
async def test_special_tokens_are_no_content(tools: Any) -> None:
    """Those of a format of calls are, if tools may be called."""
    async with serving_thoughts(lambda _, draw: 0 if draw < 3 else 1) as server:
        assert joined(await chat(server, tools=tools))[1:] == ("", "stop")
