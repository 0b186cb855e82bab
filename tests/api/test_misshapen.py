"""No value in any place of a body is a defect of the server: it is taken, or refused."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from .serving import saying, serving
from .test_tools import HERMES, HERMES_CALL
from .test_translated import LARGE

SCHEMA = {"type": "object", "properties": {}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
TOOL = {"type": "function", "function": FUNCTION}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TEXT = {"type": "text", "text": "a"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "max_tokens": 1,
        "messages": [
            {"role": "user", "content": [TEXT], "name": "n"},
            {"role": "assistant", "content": "x", "reasoning_content": "r", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "3"},
        ],
        "tools": [TOOL],
        "tool_choice": {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]},
        },
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    },
    "/v1/messages": {
        "max_tokens": 1,
        "system": [TEXT],
        "messages": [
            {"role": "user", "content": [TEXT]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "tool_use", "id": "x", "name": "f", "input": {"a": 1}},
                ],
            },
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [TEXT]}]},
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 5},
        "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
    },
    "/v1/responses": {
        "max_output_tokens": 1,
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}], "content": [TEXT]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "3"}]},
        ],
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
    },
    "/api/chat": {
        "stream": False,
        "messages": [
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "thinking": "t",
                "tool_calls": [{"id": "x", "function": {"name": "f", "arguments": {"a": 1}}}],
            },
            {"role": "tool", "content": "3", "tool_name": "f"},
        ],
        "tools": [TOOL],
        "format": SCHEMA,
        "options": {"num_predict": 1, "stop": ["a"]},
    },
}
VALUES: tuple[Any, ...] = (None, 5, [5], {"a": 1})


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value within a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from places(inner, (*place, key))


@pytest.mark.parametrize("path", BODIES)
async def test_a_misshapen_body_is_no_defect(path: str) -> None:
    async with serving(saying(HERMES_CALL), template=HERMES, limits=LARGE) as server:
        assert (await server.ask("POST", path, BODIES[path])).status == 200
        for place in places(BODIES[path]):
            for value in VALUES:
                body = copy.deepcopy(BODIES[path])
                inner: Any = body
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
                answer = await server.ask("POST", path, body)
                assert answer.status in (200, 400, 422), (place, value, answer.body)
