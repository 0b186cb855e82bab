"""Anthropic's, Ollama's and OpenAI's newer API say the same as chat completions, each in its own form."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from openai.types.responses import Response, ResponseItemList, ResponseStreamEvent
from pydantic import TypeAdapter

from tgi.api import refused, store
from tgi.config import Options

from . import serving as servers
from .serving import LIMITS, Answer, Server, make_tokenizer, saying
from .test_tools import HERMES, HERMES_CALL, SCHEMA, USER

HELLO = "Hello, world"
TOOL = {"name": "weather", "description": "d", "parameters": SCHEMA}
ANTHROPIC_TOOL = {"name": "weather", "description": "d", "input_schema": SCHEMA}
THINKS = HERMES + "<think>{# </think> #}"
THOUGHT = f"Hm.</think>{HELLO}"
LARGE = attrs.evolve(LIMITS, max_input_tokens=900, max_total_tokens=1000, max_batch_prefill_tokens=900)
serving = functools.partial(servers.serving, limits=LARGE)


def named(answer: Answer) -> list[Any]:
    """Return the events of a stream, whose names are their types."""
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.body.decode().split("\n\n")
    assert blocks.pop() == ""
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


async def message(server: Server, **more: Any) -> Answer:
    return await server.ask("POST", "/v1/messages", {"max_tokens": 99, "messages": [USER], **more})


def joined(events: list[Any]) -> dict[str, Any]:
    """Put a message together as Anthropic's clients do."""
    made: dict[str, Any] = events[0]["message"]
    assert events[0]["type"] == "message_start"
    assert events[-1] == {"type": "message_stop"}
    for event in events[1:-1]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(made["content"])
            made["content"].append(event["content_block"])
        elif event["type"] == "content_block_delta":
            block, delta = made["content"][event["index"]], event["delta"]
            kind = delta.pop("type")
            name, text = delta.popitem()
            assert kind == {"partial_json": "input_json_delta"}.get(name, f"{name}_delta")
            block[name] = block.get(name, "") + text
        elif event["type"] == "message_delta":
            made |= event["delta"] | {"usage": event["usage"]}
    for block in made["content"]:
        if "partial_json" in block:
            block["input"] = json.loads(block.pop("partial_json"))
    return made


def without_ids(made: dict[str, Any]) -> dict[str, Any]:
    content = [{key: value for key, value in block.items() if key != "id"} for block in made["content"]]
    usage = {name: made["usage"][name] for name in ("output_tokens",)}
    return {
        **{name: made[name] for name in ("role", "stop_reason", "stop_sequence")},
        **usage,
        "content": content,
    }


@pytest.mark.parametrize(
    ("says", "template", "more", "content", "reason"),
    [
        (HELLO, HERMES, {}, [{"type": "text", "text": HELLO}], "end_turn"),
        (HELLO, HERMES, {"max_tokens": 2}, None, "max_tokens"),
        (
            HERMES_CALL, HERMES, {"tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}},
            [{"type": "tool_use", "name": "weather", "input": {"city": "Paris"}}], "tool_use",
        ),
        (
            THOUGHT, THINKS, {},
            [{"type": "thinking", "thinking": "Hm.", "signature": ""}, {"type": "text", "text": HELLO}],
            "end_turn",
        ),
    ],
)  # fmt: skip
async def test_messages_are_blocks_whole_and_streamed(
    says: str, template: str, more: dict[str, Any], content: Any, reason: str
) -> None:
    async with serving(saying(says), template=template) as server:
        whole = await message(server, **more)
        assert whole.status == 200, whole.body
        found = without_ids(whole.json)
        assert found["stop_reason"] == reason
        if content is not None:
            assert found["content"] == content
        streamed = joined(named(await message(server, stream=True, **more)))
        assert without_ids(streamed) == found
        usage, chat = whole.json["usage"], {"messages": [USER], "max_tokens": 1}
        prompt = (await server.ask("POST", "/v1/chat/completions", chat)).json["usage"]["prompt_tokens"]
        if "tools" not in more:
            assert usage["input_tokens"] + usage["cache_read_input_tokens"] == prompt
            count = await server.ask("POST", "/v1/messages/count_tokens", {"messages": [USER]})
            assert count.json == {"input_tokens": prompt}


async def test_a_stop_sequence_is_named() -> None:
    async with serving(saying(HELLO)) as server:
        answer = (await message(server, stop_sequences=["nothing", ", w"])).json
        assert answer["content"] == [{"type": "text", "text": "Hello"}]
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", ", w")


async def test_a_conversation_of_blocks_becomes_the_same_prompt_as_in_chats() -> None:
    use = {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "fine"}]}
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "I look."}, use]},
        {"role": "user", "content": [result, {"type": "text", "text": "And?"}]},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    chat = [
        {"role": "system", "content": "Brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "fine"},
        {"role": "user", "content": "And?"},
    ]
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "fine"},
        {"role": "user", "content": "And?"},
    ]
    async with serving(template=HERMES) as server:
        wanted = (await server.ask("POST", "/chat_tokenize", {"messages": chat})).json["tokenize_response"]
        count = {"messages": blocks, "system": [{"type": "text", "text": "Brief."}]}
        answer = await server.ask("POST", "/v1/messages/count_tokens", count)
        assert answer.json == {"input_tokens": len(wanted)}
        response = {"input": items, "instructions": "Brief.", "max_output_tokens": 1}
        answer = await server.ask("POST", "/v1/responses", response)
        assert answer.json["usage"]["input_tokens"] == len(wanted)


async def test_errors_have_the_shape_of_their_api() -> None:
    async with serving() as server:
        image = {"type": "image", "source": {"type": "url", "url": "http://x"}}
        wrong = await message(server, messages=[{"role": "user", "content": [image]}])
        assert wrong.status == 400
        assert wrong.json["type"] == "error"
        assert wrong.json["error"]["type"] == "invalid_request_error"
        assert "`image`" in wrong.json["error"]["message"]
        assert (await message(server, max_tokens=0)).status == 400
        ollama = await server.ask("POST", "/api/chat", {"messages": [{"role": "user", "content": 5}]})
        assert set(ollama.json) == {"error", "error_type"}
        for body in ({"input": [{"type": "web_search_call"}]}, {"input": "x", "background": True}):
            refused = await server.ask("POST", "/v1/responses", body)
            assert refused.status == 400, body
        unknown = await server.ask("POST", "/v1/responses", {"input": "x", "previous_response_id": "resp_1"})
        assert unknown.status == 400
        assert "Response with id resp_1 not found" in unknown.json["error"]["message"]


REFUSED: list[tuple[str, dict[str, Any], Mapping[str, refused.Refused]]] = [
    ("/v1/messages", {"max_tokens": 9, "messages": [USER]}, refused.MESSAGES),
    ("/v1/responses", {"input": "Hi"}, refused.RESPONSES),
    ("/api/chat", {"messages": [USER], "stream": False}, refused.OLLAMA),
    ("/api/generate", {"prompt": "Hi", "stream": False}, refused.OLLAMA_GENERATE),
]


async def test_fields_that_would_change_the_answer_are_refused_by_name() -> None:
    async with serving(saying(HELLO), template=HERMES) as server:
        cases = [
            (path, body, name, field) for path, body, fields in REFUSED for name, field in fields.items()
        ]
        for path, body, name, field in cases:
            answer = await server.ask("POST", path, body | {name: "x"})
            assert answer.status in (400, 422)
            assert f"`{name}` is not supported: {field.advice}".encode() in answer.body
            for neutral in (None, *field.neutral):
                assert (await server.ask("POST", path, body | {name: neutral})).status == 200, (name, neutral)
        for name, field in refused.OLLAMA_OPTIONS.items():
            for value, status in [("x", 422), *((neutral, 200) for neutral in field.neutral)]:
                body = {"messages": [USER], "stream": False, "options": {name: value}}
                assert (await server.ask("POST", "/api/chat", body)).status == status, (name, value)


async def test_a_message_obeys_its_format() -> None:
    schema = {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"]}
    format_ = {"type": "json_schema", "schema": schema}
    async with serving(saying("no JSON"), template=HERMES) as server:
        for field in ({"output_config": {"format": format_}}, {"output_format": format_}):
            (block,) = (await message(server, **field)).json["content"]
            assert json.loads(block["text"]) == {"a": 7}
        wrong = await message(server, output_config={"format": {"type": "regex"}})
        assert (wrong.status, "must be of type `json_schema`" in wrong.json["error"]["message"]) == (
            400,
            True,
        )


async def test_a_response_heeds_the_fields_of_vllm() -> None:
    async with serving(saying(HELLO), template=HERMES) as server:
        for fields, text in (
            ({"stop": [", w"]}, "Hello"),
            ({"stop": ", w", "include_stop_str_in_output": True}, "Hello, w"),
            ({"structured_outputs": {"choice": ["yes"]}}, "yes"),
        ):
            (item,) = (await respond(server, **fields)).json["output"]
            assert item["content"][0]["text"] == text
    async with serving() as server:
        first, second = [(await respond(server, seed=seed, max_output_tokens=2)).json for seed in (40, 41)]
        assert first["output"][0]["content"] != second["output"][0]["content"]


async def respond(server: Server, **more: Any) -> Answer:
    return await server.ask("POST", "/v1/responses", {"input": "Hi", **more})


@pytest.mark.parametrize(
    ("says", "template", "more", "types"),
    [
        (HELLO, HERMES, {}, ["message"]),
        (HERMES_CALL, HERMES, {"tools": [{"type": "function", **TOOL}]}, ["function_call"]),
        (THOUGHT, THINKS, {}, ["reasoning", "message"]),
        (HELLO, HERMES, {"max_output_tokens": 2}, ["message"]),
    ],
)
async def test_responses_are_items_whole_and_streamed(
    says: str, template: str, more: dict[str, Any], types: list[str]
) -> None:
    async with serving(saying(says), template=template) as server:
        whole = (await respond(server, **more)).json
        assert [item["type"] for item in whole["output"]] == types
        is_cut = "max_output_tokens" in more
        assert [item["status"] for item in whole["output"]][-1] == ("incomplete" if is_cut else "completed")
        assert whole["status"] == ("incomplete" if is_cut else "completed")
        events = named(await respond(server, stream=True, **more))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
        last = events[-1]
        assert last["type"] == f"response.{whole['status']}"
        texts = {
            kind: "".join(event["delta"] for event in events if event["type"] == f"response.{kind}.delta")
            for kind in ("output_text", "reasoning_text", "function_call_arguments")
        }
        for item in last["response"]["output"]:
            text = item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
            assert text in texts.values()
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert done == last["response"]["output"]
        if says is HELLO and not is_cut:
            assert texts["output_text"] == HELLO
        if types == ["function_call"]:
            assert json.loads(texts["function_call_arguments"]) == {"city": "Paris"}


async def test_a_response_is_gone_on_from_until_it_is_forgotten() -> None:
    async with serving(saying(HELLO), template=HERMES) as server:
        first = (await respond(server)).json
        then = (await respond(server, input="And?", previous_response_id=first["id"])).json
        chat = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": HELLO},
            {"role": "user", "content": "And?"},
        ]
        same = await server.ask("POST", "/v1/chat/completions", {"messages": chat, "max_tokens": 1})
        assert then["usage"]["input_tokens"] == same.json["usage"]["prompt_tokens"]
        path = f"/v1/responses/{first['id']}"
        assert (await server.ask("GET", path)).json == first
        items = (await server.ask("GET", f"/v1/responses/{then['id']}/input_items")).json["data"]
        assert [item.get("role") for item in items] == ["user", "assistant", "user"]
        assert items[0]["content"] == [{"type": "input_text", "text": "And?"}]
        assert (await server.ask("DELETE", path)).json["deleted"] is True
        assert (await server.ask("GET", path)).status == 404
        unstored = (await respond(server, store=False)).json
        assert (await server.ask("GET", f"/v1/responses/{unstored['id']}")).status == 404


async def test_references_stand_for_items_of_earlier_responses() -> None:
    asked = {"max_output_tokens": 60, "tools": [{"type": "function", **TOOL}], "tool_choice": "required"}
    async with serving(saying(HERMES_CALL), template=HERMES) as server:
        first = (await respond(server, **asked)).json
        (call,) = first["output"]
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny."}
        tokens = set()
        for item in (call, {"type": "item_reference", "id": call["id"]}, {"id": call["id"]}):
            then = (await respond(server, **asked, input=[USER, item, result])).json
            tokens.add(then["usage"]["input_tokens"])
            path = f"/v1/responses/{then['id']}/input_items?order=asc"
            listed = (await server.ask("GET", path)).json["data"]
            assert [one["type"] for one in listed] == ["message", "function_call", "function_call_output"]
        assert len(tokens) == 1
        for input_ in (
            [{"id": "msg_1"}],
            [{"type": "item_reference"}],
            [{"id": call["id"]}] * 2,
            [{"id": ["a"]}],
        ):
            answer = await respond(server, input=input_)
            assert answer.status == 400
            assert "is there twice" in answer.json["error"]["message"]


async def test_responses_to_requests_of_one_id_are_apart() -> None:
    async with serving(saying(HELLO), template=HERMES) as server:
        same = {"X-Request-Id": "trace-1"}
        asked = [{"input": text, "metadata": {"text": text}} for text in ("a", "b")]
        made = [(await server.ask("POST", "/v1/responses", body, same)).json for body in asked]
        for response in made:
            assert (await server.ask("GET", f"/v1/responses/{response['id']}")).json == response


async def test_the_memory_for_responses_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_BYTES", 30_000)
    async with serving(saying(HELLO), template=HERMES) as server:
        long = {"metadata": {"a": "x" * 12_000}}
        first, second = [(await respond(server, **long)).json["id"] for _ in range(2)]
        third = (await respond(server, previous_response_id=second)).json["id"]  # has the second's bytes, too
        statuses = [
            (await server.ask("GET", f"/v1/responses/{id_}")).status for id_ in (first, second, third)
        ]
        assert statuses == [404, 200, 200]


async def test_items_are_listed_as_openai_does_a_page_at_a_time() -> None:
    said = {"role": "assistant", "content": "b"}
    items = [{**USER, "content": "a"}, said, {**USER, "content": "c", "id": "mine"}]
    async with serving(saying(HELLO), template=HERMES) as server:
        path = f"/v1/responses/{(await respond(server, input=items)).json['id']}/input_items"

        async def page(query: str) -> tuple[list[str], bool]:
            listed = (await server.ask("GET", f"{path}?{query}")).json
            read = ResponseItemList.model_validate(listed)
            assert [listed["first_id"], listed["last_id"]] == [read.data[0].id, read.data[-1].id]
            return [one.content[0].text for one in read.data], read.has_more  # type: ignore

        assert await page("") == (["c", "b", "a"], False)
        assert await page("limit=2") == (["c", "b"], True)
        assert await page("after=mine&limit=2") == (["b", "a"], False)
        assert await page("order=asc&limit=1") == (["a"], True)
        for query in ("limit=0", "limit=101", "limit=x", "after=x"):
            assert (await server.ask("GET", f"{path}?{query}")).status == 400, query


@pytest.mark.parametrize(
    ("says", "more"),
    [
        (HELLO, {}),
        (HELLO, {"max_output_tokens": 2, "instructions": "Brief.", "metadata": {"a": "b"}, "temperature": 0}),
        (HERMES_CALL, {"tools": [{"type": "function", **TOOL}], "tool_choice": "required"}),
        (THOUGHT, {}),
        ("1", {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"const": 1}}}}),
    ],
)
async def test_answers_and_events_are_those_of_openais_library(says: str, more: dict[str, Any]) -> None:
    event = TypeAdapter[Any](ResponseStreamEvent)
    async with serving(saying(says), template=THINKS if says == THOUGHT else HERMES) as server:
        Response.model_validate((await respond(server, **more)).json)
        for told in named(await respond(server, stream=True, **more)):
            event.validate_python(told)


async def test_ollama_streams_lines_by_default() -> None:
    async with serving(saying(HELLO), template=HERMES) as server:
        body = {"model": "m", "messages": [USER], "options": {"temperature": 0}}
        streamed = await server.ask("POST", "/api/chat", body)
        assert streamed.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in streamed.body.splitlines()]
        assert "".join(line["message"]["content"] for line in lines) == HELLO
        assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
        whole = (await server.ask("POST", "/api/chat", {**body, "stream": False})).json
        assert whole["message"] == {"role": "assistant", "content": HELLO}
        assert whole["eval_count"] == lines[-1]["eval_count"]
        assert whole["eval_count"] == len(make_tokenizer().encode(HELLO, add_special_tokens=False)) + 1
        plain = json.dumps({"prompt": "Hi", "stream": False}).encode()
        answer = await server.ask(
            "POST", "/api/generate", plain, {"Content-Type": "application/x-www-form-urlencoded"}
        )
        assert answer.json["response"] == HELLO
        assert [model["name"] for model in (await server.ask("GET", "/api/tags")).json["models"]]


async def test_ollamas_lines_are_lines_to_every_client() -> None:
    """httpx, which Ollama's own client uses, ends a line at these characters, too."""
    async with serving(saying("x"), template=HERMES) as server:
        answer = await server.ask(
            "POST", "/api/generate", {"prompt": "Hi", "format": {"const": "\u2028\u2029\x85"}}
        )
        lines = [json.loads(line) for line in answer.body.decode().splitlines()]
        assert "".join(line["response"] for line in lines) == '"\u2028\u2029\x85"'


async def test_ollamas_calls_come_whole() -> None:
    async with serving(saying(HERMES_CALL), template=HERMES) as server:
        body = {"messages": [USER], "tools": [{"type": "function", "function": TOOL}]}
        answer = await server.ask("POST", "/api/chat", body)
        lines = [json.loads(line) for line in answer.body.splitlines()]
        calls = [call for line in lines for call in line["message"].get("tool_calls", [])]
        assert len(calls[0].pop("id")) == 9
        assert calls == [{"function": {"index": 0, "name": "weather", "arguments": {"city": "Paris"}}}]


async def test_ollamas_histories_keep_ids_and_arguments() -> None:
    """The template is made up: it prints what Mistral's and Kimi's do."""
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.id }}{{ c.function.name }}"
        "{{ c.function.arguments | tojson }}{% endfor %}{{ m.tool_call_id }}{{ m.content }}|{% endfor %}"
    )
    call = {"id": "call-0001", "function": {"name": "weather", "arguments": {"city": "Åre"}}}
    ollama = [USER, {"role": "assistant", "tool_calls": [call]}]
    chat = [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]
    for result in ({"tool_call_id": "call-0001", "content": "fine"}, {"content": "fine"}):
        ollama.append({"role": "tool", **result})
        chat.append({"role": "tool", **result})
    async with serving(template=template) as server:
        wanted = (await server.ask("POST", "/chat_tokenize", {"messages": chat})).json
        assert 'call-0001weather{"city": "Åre"}' in wanted["templated_text"]
        assert "|call-0001fine|fine|" in wanted["templated_text"]
        body = {"messages": ollama, "stream": False, "options": {"num_predict": 1}}
        answer = await server.ask("POST", "/api/chat", body)
        assert answer.json["prompt_eval_count"] == len(wanted["tokenize_response"])


@pytest.mark.parametrize("limit", [0, -1, -2])
async def test_ollamas_texts_without_a_limit_end_by_themselves(limit: int) -> None:
    """Ollama stops at `num_predict` where it is above 0."""
    async with serving(saying(HELLO)) as server:
        body = {"prompt": "Hi", "stream": False, "options": {"num_predict": limit}}
        answer = (await server.ask("POST", "/api/generate", body)).json
        assert (answer["response"], answer["done_reason"]) == (HELLO, "stop")


def content(kind: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind}]}


NO_ROLE = {"type": "message", "content": "x"}
NAMES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/messages", {"stop_sequences": [""]}, "`stop_sequences` cannot"),
    ("/v1/messages", {"system": [{"type": "image"}]}, "only in `system`, and no content of type `image`"),
    ("/v1/messages", {"system": [{"type": "text"}]}, "required field `text` - at `$.system[0]`"),
    ("/v1/messages", {"messages": [content("tool_use")]}, "field `name` - at `$.messages[0].content[0]`"),
    ("/v1/responses", {"max_output_tokens": 9999}, "`input` tokens + `max_output_tokens` must be"),
    ("/v1/responses", {"input": []}, "`input` cannot be empty"),
    ("/v1/responses", {"input": [USER, NO_ROLE]}, "required field `role` - at `$.input[1]`"),
    ("/v1/responses", {"input": [{"role": "user"}]}, "required field `content` - at `$.input[0]`"),
    ("/v1/responses", {"input": [{"type": "function_call"}]}, "required field `name` - at `$.input[0]`"),
    ("/v1/responses", {"input": [{"type": "function_call_output"}]}, "required field `output` - at `$.i"),
    ("/v1/responses", {"input": [content("input_text")]}, "`text` - at `$.input[0].content[0]`"),
    ("/v1/responses", {"input": [content("input_image")]}, "content of type `input_image` is not"),
    ("/v1/responses", {"text": {"format": {"type": "x"}}}, "`$.text.format.type`"),
    ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "x"}}}, "needs a `schema`"),
    ("/v1/responses", {"tools": [{"type": "function"}]}, "`tools[0]` needs a `name`"),
    ("/v1/responses", {"tool_choice": {"type": "function"}}, "of type `function` needs a `name`"),
    ("/v1/messages", {"output_config": {"effort": "huge"}}, "`$.output_config.effort`"),
    ("/v1/responses", {"reasoning": {"effort": "huge"}}, "`$.reasoning.effort`"),
    ("/v1/responses", {"text": {"verbosity": "huge"}}, "`$.text.verbosity`"),
    ("/api/chat", {"think": "huge"}, "`$.think`"),
    ("/api/chat", {"options": {"num_predict": 9999}}, "`messages` tokens + `num_predict` must be"),
    ("/api/generate", {"options": {"num_predict": 9999}}, "`prompt` tokens + `num_predict` must be"),
    ("/api/generate", {"options": {"repeat_penalty": 0}}, "`repeat_penalty` must be strictly positive"),
]  # fmt: skip
BASES: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 9, "messages": [USER]},
    "/v1/responses": {"input": "Hi"},
    "/api/chat": {"messages": [USER]},
    "/api/generate": {"prompt": "Hi"},
}


async def test_refusals_name_the_fields_of_their_own_api() -> None:
    async with serving(template=HERMES) as server:
        for path, fields, text in NAMES:
            answer = await server.ask("POST", path, BASES[path] | fields)
            assert answer.status in (400, 422), (fields, answer.body)
            error = answer.json["error"]
            assert text in (error if isinstance(error, str) else error["message"]), (fields, error)


async def test_thoughts_of_each_message_stay_with_it() -> None:
    def thoughts(text: str) -> dict[str, Any]:
        return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}

    template = "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content }}:{{ m.content }}|{% endfor %}"
    said = [{"role": "assistant", "content": [{"type": "output_text", "text": text}]} for text in ("X", "Y")]
    items = [{"type": None, **USER}, thoughts("a"), thoughts("b"), said[0], thoughts("c"), said[1], USER]
    async with serving(template=template) as server:
        response = {"input": items, "max_output_tokens": 1}
        count = (await server.ask("POST", "/v1/responses", response)).json["usage"]["input_tokens"]
        first, last = ({"role": "assistant", "content": text} for text in ("X", "Y"))
        chat = [USER, first | {"reasoning_content": "ab"}, last | {"reasoning_content": "c"}, USER]
        wanted = (await server.ask("POST", "/chat_tokenize", {"messages": chat})).json
        assert "assistant:ab:X|assistant:c:Y|" in wanted["templated_text"]
        assert count == len(wanted["tokenize_response"])


async def test_errors_have_the_types_of_anthropic() -> None:
    """Those of Anthropic's documentation of errors."""
    async with serving(options=Options(api_key=("secret",))) as server:
        wrong = await server.ask("POST", "/v1/messages", {}, {"Content-Type": "application/json"})
        assert (wrong.status, wrong.json["error"]["type"]) == (401, "authentication_error")
    async with serving() as server:
        for path, body, status, kind in (
            ("/v1/messages", {}, 400, "invalid_request_error"),
            ("/v1/messages/batches", {}, 404, "not_found_error"),
        ):
            answer = await server.ask("POST", path, body)
            assert (answer.status, answer.json["type"], answer.json["error"]["type"]) == (
                status,
                "error",
                kind,
            )
