"""`response_format`: tgi-behaviour 4.7 and R2.50, over a real port."""

import json
import re
from typing import Any

import attrs
import jsonschema
import pytest

from tgi.config import Options

from .serving import LIMITS, Server, saying, serving
from .test_chat import chat, chunks

USER = {"role": "user", "content": "Hello"}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 9}},
    "required": ["n"],
}
LIST = {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}
ROOM = attrs.evolve(LIMITS, max_input_tokens=100, max_total_tokens=400)
FORMATS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "json", "value": SCHEMA}, SCHEMA),
    ({"type": "json", "value": json.dumps(SCHEMA)}, SCHEMA),
    ({"type": "json_object", "value": SCHEMA}, SCHEMA),
    ({"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}, SCHEMA),
    # OpenAI's, which TGI refuses; and a schema without properties, which it refuses too.
    ({"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}, SCHEMA),
    ({"type": "json_schema", "json_schema": {"name": "n", "schema": LIST}}, LIST),
    ({"type": "json_object"}, {"type": "object"}),
]


async def content(server: Server, wanted: dict[str, Any], stream: bool) -> str:
    answer = await chat(server, response_format=wanted, stream=stream)
    assert answer.status == 200, answer.body
    if not stream:
        (choice,) = answer.json["choices"]
        assert choice["finish_reason"] == "stop"
        assert choice["message"].keys() == {"role", "content"}
        return str(choice["message"]["content"])
    events = [event["choices"][0] for event in chunks(answer)]
    assert events[-1]["finish_reason"] == "stop"
    return "".join(event["delta"].get("content", "") for event in events)


@pytest.mark.contract("4.7")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("wanted", "schema"), FORMATS)
async def test_content_obeys_the_schema_in_every_spelling(
    wanted: dict[str, Any], schema: dict[str, Any], stream: bool
) -> None:
    """The script writes other text, or goes on."""
    async with serving(saying("{} and so on"), limits=ROOM) as server:
        jsonschema.validate(json.loads(await content(server, wanted, stream)), schema)


@pytest.mark.contract("4.7")
@pytest.mark.parametrize("stream", [False, True])
async def test_regex_and_text_formats(stream: bool) -> None:
    async with serving(saying("Hello"), limits=ROOM) as server:
        text = await content(server, {"type": "regex", "value": "[ab]{2}"}, stream)
        assert re.fullmatch("[ab]{2}", text)
        assert await content(server, {"type": "text"}, stream) == "Hello"


@pytest.mark.contract("4.7")
async def test_format_is_not_in_the_prompt() -> None:
    async with serving() as server:
        texts = [
            (await server.ask("POST", "/chat_tokenize", {"messages": [USER], **more})).json
            for more in ({}, {"response_format": FORMATS[0][0]})
        ]
        assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"type": "json", "value": [1]}, "grammar is not valid: a schema must be an object or a boolean"),
        (
            {"type": "json", "value": {"type": "strin"}},
            'grammar is not valid: `type` at the root: "strin" is not a type',
        ),
        ({"type": "regex", "value": "("}, "grammar is not valid: unclosed group"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_invalid_formats_are_refused(wanted: dict[str, Any], message: str, stream: bool) -> None:
    async with serving(saying("Hello"), limits=ROOM) as server:
        answer = await chat(server, response_format=wanted, stream=stream)
        assert answer.status == 400
        assert answer.json["error"]["message"] == f"Input validation error: {message}"


async def test_grammars_can_be_switched_off() -> None:
    async with serving(options=Options(disable_grammar_support=True)) as server:
        answer = await chat(server, response_format=FORMATS[0][0])
        assert answer.status == 400
        assert answer.json["error"]["message"] == "Input validation error: grammar is not supported"


@pytest.mark.parametrize("strict", [True, False])
async def test_a_schema_that_is_not_strict_has_open_objects_in_any_order(strict: bool) -> None:
    text = '{"b":1,"x":2,"a":1}'
    properties = {"a": {"type": "integer", "format": "int32"}, "b": {"type": "integer"}}
    config = {"name": "n", "strict": strict, "schema": {"properties": properties, "required": ["a"]}}
    async with serving(saying(text), limits=ROOM) as server:
        answer = await chat(server, response_format={"type": "json_schema", "json_schema": config})
        assert answer.headers["x-grammar-warning"] == '`format` at properties/a: "int32" is not enforced'
        assert (answer.json["choices"][0]["message"]["content"] == text) is not strict
