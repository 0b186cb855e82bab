"""Grammars of TGI's own routes: tgi-behaviour 2.5, V22a to V22c."""

import json
import re
from typing import Any

import attrs
import jsonschema
import pytest

from tgi.config import Options

from .serving import LIMITS, saying, serving

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "n": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["name", "n"],
}
ROOM = attrs.evolve(LIMITS, max_input_tokens=100, max_total_tokens=400)


@pytest.mark.contract("2.5")
@pytest.mark.parametrize(
    "grammar",
    [
        {"type": "json", "value": SCHEMA},
        {"type": "json_object", "value": SCHEMA},
        {"type": "json", "value": json.dumps(SCHEMA)},
        {"type": "json_schema", "value": {"name": "any", "schema": SCHEMA, "strict": True}},
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_the_text_obeys_the_schema(grammar: Any, path: str) -> None:
    """The model would say something else; the mask lets it say only what the schema allows."""
    async with serving(saying("Hello world, and so on."), limits=ROOM) as server:
        answer = await server.generate({"grammar": grammar, "details": True}, path=path)
        assert answer.status == 200, answer.body
        body = answer.events[-1] if path == "/generate_stream" else answer.json
        assert body["details"]["finish_reason"] == "eos_token"
        jsonschema.validate(json.loads(body["generated_text"]), SCHEMA)


@pytest.mark.contract("2.5")
async def test_the_text_obeys_the_regex() -> None:
    async with serving(saying("Hello world"), limits=ROOM) as server:
        pattern = "[a-c]{3}-[0-9]{2}"
        body = (await server.generate({"grammar": {"type": "regex", "value": pattern}})).json
        assert re.fullmatch(pattern, body["generated_text"])
        answer = await server.generate({"grammar": {"type": "regex", "value": "Hello( world)?"}})
        assert answer.json["generated_text"] == "Hello world"


async def test_best_of_sequences_obey_it_each_for_itself() -> None:
    async with serving(limits=ROOM) as server:
        parameters = {
            "grammar": {"type": "regex", "value": "[0-9]{4}"},
            "best_of": 2,
            "do_sample": True,
            "details": True,
        }
        body = (await server.generate(parameters)).json
        other = body["details"]["best_of_sequences"][0]
        assert re.fullmatch("[0-9]{4}", body["generated_text"])
        assert re.fullmatch("[0-9]{4}", other["generated_text"])


@pytest.mark.contract("V22a", "V22b")
@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ({"type": "json", "value": [1]}, "grammar is not valid: a schema must be an object or a boolean"),
        ({"type": "json", "value": "{"}, "grammar is not valid: the schema is not JSON: "),
        (
            {"type": "json", "value": '{"a":' * 100_000},
            "grammar is not valid: the schema is nested more than ",
        ),
        ({"type": "json", "value": {"type": "nonsense"}}, "grammar is not valid: "),
        ({"type": "json_schema", "value": {"schema": {"properties": 5}}}, "grammar is not valid: "),
        ({"type": "regex", "value": "("}, "grammar is not valid: "),
        ({"type": "regex", "value": "(?=a)b"}, "grammar is not valid: "),
    ],
)
async def test_what_is_no_grammar_is_refused_and_the_server_goes_on(grammar: Any, message: str) -> None:
    async with serving(saying("Hello"), limits=ROOM) as server:
        for path in ("/generate", "/generate_stream"):
            answer = await server.generate({"grammar": grammar}, path=path)
            assert (answer.status, answer.json["error_type"]) == (422, "validation")
            assert answer.json["error"].startswith(f"Input validation error: {message}")
            assert len(answer.json["error"]) > len(f"Input validation error: {message}") or message[-1] != " "
        assert (await server.generate({})).json == {"generated_text": "Hello"}


@pytest.mark.contract("V22a", "--disable-grammar-support")
async def test_v22a_grammars_can_be_switched_off() -> None:
    async with serving(options=Options(disable_grammar_support=True)) as server:
        answer = await server.generate({"grammar": {"type": "regex", "value": "a"}})
        assert answer.status == 422
        assert answer.json["error"] == "Input validation error: grammar is not supported"
