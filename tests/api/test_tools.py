"""Tools in chat: tgi-behaviour 4.6 as far as OpenAI's words do not differ, V32, V33, R3.42, R3.57."""

import json
from typing import Any

import attrs
import jsonschema
import pytest

from tests.text.chat_templates import TEMPLATES
from tests.text.tool_templates import TOOL_TEMPLATES
from tgi.testing.fake_executor import Script

from .serving import LIMITS, TEMPLATE, Answer, Server, make_tokenizer, saying, serving
from .test_chat import chunks

PATH = "/v1/chat/completions"
USER = {"role": "user", "content": "Weather in Paris?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": SCHEMA}}
CLOCK = {"type": "function", "function": {"name": "clock"}}
HERMES = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>"
    'Answer <tool_call>\n{"name": n, "arguments": a}\n</tool_call>{% endif %}'
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.name }}:{{ c.function.arguments | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""A template of the kind of Hermes and Qwen."""
CALL = '{"name": "weather", "parameters": {"city": "Paris"}}'
HERMES_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


async def chat(server: Server, **body: Any) -> Answer:
    given = {"messages": [USER], "tools": [WEATHER, CLOCK], "temperature": 0, "max_tokens": 400}
    return await server.ask("POST", PATH, given | body)


def message_of(answer: Answer) -> tuple[dict[str, Any], str]:
    """Return message and finish reason of an answer, or of a stream joined as clients join it."""
    if answer.headers["content-type"] == "application/json":
        assert answer.status == 200, answer.body
        choice = answer.json["choices"][0]
        return choice["message"], choice["finish_reason"]
    message: dict[str, Any] = {"role": None, "content": ""}
    reason = None
    calls: list[dict[str, Any]] = []
    for event in chunks(answer):
        choice = event["choices"][0]
        delta, reason = choice["delta"], choice["finish_reason"]
        message["role"] = delta.get("role", message["role"])
        message["content"] += delta.get("content", "")
        for piece in delta.get("tool_calls", []):
            if piece["index"] == len(calls):
                calls.append({"id": piece["id"], "type": piece["type"], "function": piece["function"]})
            else:
                assert set(piece) == {"index", "function"}
                assert set(piece["function"]) == {"arguments"}
                calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
    if calls:
        message |= {"tool_calls": calls, "content": message["content"] or None}
    assert reason is not None
    return message, reason


def serving_tools(script: Script, template: str = TEMPLATE) -> Any:
    """Serve with limits for the long prompts that tools make."""
    limits = attrs.evolve(LIMITS, max_input_tokens=2000, max_total_tokens=2500)
    return serving(script, template=template, limits=limits)


@pytest.mark.contract("R3.57", "T2")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", [None, "auto", "required", "weather", {"name": "weather"}])
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (TEMPLATE, CALL),
        (HERMES, HERMES_CALL),
        (
            TOOL_TEMPLATES["Qwen3-Coder, Qwen3.5"],
            "<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        ),
        (
            TOOL_TEMPLATES["Llama 3.2, Llama 4, Gemma 3 and ToolACE with pythonic templates"],
            '[weather(city="Paris")]',
        ),
        (
            TEMPLATES["gpt-oss"],
            "<|channel|>analysis<|message|>Paris?<|end|><|start|>assistant<|channel|>commentary"
            ' to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}',
        ),
    ],
    ids=["generic", "hermes", "qwen3-coder", "pythonic", "gpt-oss"],
)
async def test_call_of_every_choice_and_format(choice: Any, template: str, text: str, stream: bool) -> None:
    async with serving_tools(saying(text), template) as server:
        named = {"type": "function", "function": choice} if isinstance(choice, dict) else choice
        message, reason = message_of(await chat(server, tool_choice=named, stream=stream))
        assert reason == "tool_calls"
        assert message["role"] == "assistant"
        assert message["content"] is None
        (call,) = message["tool_calls"]
        assert call["type"] == "function"
        assert call["function"]["name"] == "weather"
        assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
        assert len(call["id"]) == 9


async def test_stream_has_the_log_probability_of_every_token() -> None:
    """Tokens that only frame a call are in the next event."""
    async with serving_tools(saying(HERMES_CALL), HERMES) as server:
        whole = (await chat(server, logprobs=True)).json["choices"][0]["logprobs"]["content"]
        assert "".join(entry["token"] for entry in whole) == HERMES_CALL + "</s>"
        events = chunks(await chat(server, logprobs=True, stream=True))
        assert len(events) < len(whole)
        logprobs = [event["choices"][0]["logprobs"] for event in events]
        told = [entry for one in logprobs if one is not None for entry in one["content"]]
        assert told == whole


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("template", [TEMPLATE, HERMES])
async def test_auto_may_answer_text(template: str, stream: bool) -> None:
    async with serving_tools(saying("It rains."), template) as server:
        message, reason = message_of(await chat(server, stream=stream))
        assert (message, reason) == ({"role": "assistant", "content": "It rains."}, "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_parallel_calls_have_ids_of_their_own(stream: bool) -> None:
    text = f'Well. {HERMES_CALL}\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>'
    async with serving_tools(saying(text), HERMES) as server:
        message, reason = message_of(await chat(server, stream=stream))
        assert reason == "tool_calls"
        assert message["content"] == "Well."
        first, second = message["tool_calls"]
        assert first["id"] != second["id"]
        assert [c["function"]["name"] for c in (first, second)] == ["weather", "clock"]
        assert json.loads(second["function"]["arguments"]) == {}
        message, _ = message_of(await chat(server, stream=stream, parallel_tool_calls=False))
        assert len(message["tool_calls"]) == 1


@pytest.mark.parametrize(
    ("choice", "parallel", "count"),
    [
        ("auto", None, 2),
        ("auto", False, 1),
        ("required", None, 1),
        ("required", True, 2),
        ("required", False, 1),
        ("weather", None, 1),
        ("weather", True, 1),
    ],
)
async def test_a_call_that_must_come_comes_once(choice: str, parallel: bool | None, count: int) -> None:
    """Unless the client asks for several: a small model goes on calling."""
    async with serving_tools(saying(f"{HERMES_CALL}\n{HERMES_CALL}"), HERMES) as server:
        message, reason = message_of(await chat(server, tool_choice=choice, parallel_tool_calls=parallel))
        assert (len(message["tool_calls"]), reason) == (count, "tool_calls")


@pytest.mark.parametrize("stream", [False, True])
async def test_required_call_is_enforced(stream: bool) -> None:
    """The script writes other text; the mask leaves it a call only."""
    async with serving_tools(saying("Nothing but text, as often as it takes.")) as server:
        answer = await chat(server, tool_choice="required", stream=stream, tools=[WEATHER])
        message, reason = message_of(answer)
        (call,) = message["tool_calls"]
        assert call["function"]["name"] == "weather"
        if reason == "tool_calls":
            jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)


@pytest.mark.contract("T3")
@pytest.mark.parametrize(("tools", "choice"), [([WEATHER], "none"), ([], "auto"), ([], None), (None, None)])
async def test_choice_none_hides_the_tools(tools: Any, choice: Any) -> None:
    async with serving_tools(saying(CALL)) as server:
        message, reason = message_of(await chat(server, tools=tools, tool_choice=choice))
        assert (message, reason) == ({"role": "assistant", "content": CALL}, "stop")
        body = {"messages": [USER], "tools": tools, "tool_choice": choice}
        answer = await server.ask("POST", "/chat_tokenize", body)
        assert answer.json["templated_text"] == "<s>[user]Weather in Paris?[assistant]"


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_allowed_tools_limit_the_choice(mode: str) -> None:
    allowed = {"mode": mode, "tools": [{"type": "function", "function": {"name": "clock"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    text = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    async with serving_tools(saying(text), HERMES) as server:
        message, reason = message_of(await chat(server, tool_choice=choice))
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["clock"]
        assert reason == "tool_calls"
        body = {"messages": [USER], "tools": [WEATHER, CLOCK], "tool_choice": choice}
        assert b"weather" not in (await server.ask("POST", "/chat_tokenize", body)).body


@pytest.mark.contract("V33")
async def test_choice_of_an_unknown_tool_is_refused() -> None:
    async with serving_tools(saying("x")) as server:
        for stream in (False, True):
            answer = await chat(server, tool_choice="nope", stream=stream)
            assert (answer.status, answer.json["error_type"]) == (400, "tool_error")
            assert answer.json["error"]["message"] == "Tool error: Tool with name nope not found"


@pytest.mark.parametrize("parameters", [[1], {"type": "array", "items": {"type": "integer"}}])
async def test_parameters_that_are_no_object_are_refused(parameters: Any) -> None:
    async with serving_tools(saying("x")) as server:
        broken = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        answer = await chat(server, tools=[WEATHER, broken])
        assert answer.status == 400
        message = answer.json["error"]["message"]
        assert message == "Tool error: the parameters of `f` must have a schema of an object"


ODD = [
    ({"type": "strin"}, '`type` at properties/a: "strin" is not a type'),
    ({"pattern": "("}, "`pattern` at properties/a: `(`, a `(` is not closed"),
    ({"pattern": r"a\b"}, r"`pattern` at properties/a: `a\b`, `\b`, the edge of a word, cannot be enforced"),
    ({"pattern": r"(a)\1"}, r"`pattern` at properties/a: `(a)\1`, back-references cannot be enforced"),
    ({"not": {"format": "date"}}, "`not` at properties/a: `format` within `not` cannot be enforced"),
    ({"$ref": "http://h/x"}, "`$ref` at properties/a: `http://h/x` is in no part of this schema, and "),
    ({"minimum": 2**63}, "`minimum` at properties/a: 9223372036854775808 is beyond 2^53, from where on"),
    ({"format": "é\n"}, r'`format` at properties/a: "\xe9\n" is not enforced'),
]
"""Schemas that cannot be enforced, and what is told of them."""


@pytest.mark.parametrize("choice", ["auto", "required"])
async def test_one_tool_among_many_never_refuses_a_request(
    choice: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A header and the log tell what cannot be enforced, with the tool, the keyword and the place."""
    async with serving_tools(saying("x")) as server:
        for schema, remark in ODD:
            parameters = {"type": "object", "properties": {"a": schema, "b": {"type": "null"}}}
            odd = {"type": "function", "function": {"name": "f", "parameters": parameters}}
            answer = await chat(server, tools=[WEATHER, odd], tool_choice=choice)
            assert answer.status == 200
            assert answer.headers["x-grammar-warning"].startswith(f"the parameters of `f`: {remark}")
            assert "the parameters of `f`: `" in caplog.text
        answer = await chat(server, tools=[WEATHER], tool_choice=choice)
        assert "x-grammar-warning" not in answer.headers


@pytest.mark.contract("T6", "T8")
async def test_tools_are_described_in_the_prompt() -> None:
    async with serving_tools(saying("x")) as server:
        body: dict[str, Any] = {"messages": [USER], "tools": [WEATHER], "tool_prompt": "Use them."}
        text = (await server.ask("POST", "/chat_tokenize", body)).json["templated_text"]
        assert text.startswith("<s>[user]Weather in Paris?\n---\n[{")
        assert text.endswith("\nUse them.[assistant]")
        body["tool_prompt"] = ""
        text = (await server.ask("POST", "/chat_tokenize", body)).json["templated_text"]
        assert "Given the functions available" in text
    async with serving_tools(saying("x"), HERMES) as server:
        text = (await server.ask("POST", "/chat_tokenize", body)).json["templated_text"]
        start, _, rest = text.partition("</tools>")
        shown = json.loads(start.removeprefix("<tools>"))
        assert shown["function"]["parameters"] == SCHEMA
        assert rest.endswith("[user]Weather in Paris?[assistant]")


async def test_calls_and_results_reach_the_template() -> None:
    function = {"name": "weather", "arguments": '{"city": "Paris"}'}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": [{"id": "a", "type": "function", "function": function}]},
        {"role": "tool", "content": "rain", "tool_call_id": "a"},
    ]
    async with serving_tools(saying("x"), HERMES) as server:
        body = {"messages": messages, "tools": [WEATHER]}
        text = (await server.ask("POST", "/chat_tokenize", body)).json["templated_text"]
        assert '<tool_call>weather:{"city": "Paris"}</tool_call>[tool]rain[assistant]' in text
    async with serving_tools(saying("x")) as server:
        text = (await server.ask("POST", "/chat_tokenize", {"messages": messages})).json["templated_text"]
        assert text == f"<s>[user]Weather in Paris?[assistant]{CALL}[tool]rain[assistant]"


@pytest.mark.parametrize("stream", [False, True])
async def test_response_format_holds_beside_tools(stream: bool) -> None:
    schema = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for said, calls in (('{"rain": true}', 0), (HERMES_CALL, 1)):
        async with serving_tools(saying(said), HERMES) as server:
            answer = await chat(server, response_format=wanted, stream=stream)
            message, reason = message_of(answer)
            assert len(message.get("tool_calls", [])) == calls
            assert reason == ("tool_calls" if calls else "stop")
            if not calls:
                jsonschema.validate(json.loads(message["content"]), schema)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("template", "text"), [(TEMPLATE, CALL), (HERMES, HERMES_CALL)])
async def test_a_required_call_that_is_cut_at_its_beginning_is_no_content(
    template: str, text: str, stream: bool
) -> None:
    async with serving_tools(saying(text), template) as server:
        for size in (1, 3, 5):
            answer = await chat(server, tool_choice="required", max_tokens=size, stream=stream)
            assert message_of(answer) == ({"role": "assistant", "content": ""}, "length")


@pytest.mark.parametrize("tools", [None, []])
@pytest.mark.parametrize("allowed", [False, True])
async def test_a_required_call_needs_tools(tools: Any, allowed: bool) -> None:
    choice: Any = "required"
    if allowed:
        choice = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": []}}
    async with serving_tools(saying("x")) as server:
        answer = await chat(server, tools=tools, tool_choice=choice)
        assert answer.status == 400
        assert "`tools`" in answer.json["error"]["message"]


async def test_truncated_call_ends_by_length() -> None:
    async with serving_tools(saying(CALL)) as server:
        message, reason = message_of(await chat(server, tool_choice="required", max_tokens=40))
        assert reason == "length"
        arguments = message["tool_calls"][0]["function"]["arguments"]
        assert '{"city": "Paris"}'.startswith(arguments)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "cut", [{"stop": "Par"}, {"stop_token_ids": make_tokenizer().encode("P", add_special_tokens=False)}]
)
async def test_call_that_stops_within_its_arguments_is_not_reported_as_a_call(
    cut: dict[str, Any], stream: bool
) -> None:
    async with serving_tools(saying(CALL)) as server:
        message, reason = message_of(await chat(server, tool_choice="required", stream=stream, **cut))
        assert reason == "stop"
        assert message["tool_calls"][0]["function"]["arguments"].startswith('{"city": "')


@pytest.mark.contract("T13")
@pytest.mark.parametrize("stream", [False, True])
async def test_arguments_are_not_reformatted(stream: bool) -> None:
    """TGI removes spaces unless it streams."""
    for arguments in ('{"city": "Paris"}', '{"city":"Paris"}'):
        text = HERMES_CALL.replace('{"city": "Paris"}', arguments)
        async with serving_tools(saying(text), HERMES) as server:
            message, _ = message_of(await chat(server, tool_choice="required", stream=stream))
            assert message["tool_calls"][0]["function"]["arguments"] == arguments
