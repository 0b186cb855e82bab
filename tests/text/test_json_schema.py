import json
from typing import Any

import jsonschema
import pytest

from tgi.text.json_schema import MAX_DEPTH, GrammarError, prepare_schema, read_schema

from .matching import accepts

CLOSED = {"additionalProperties": False}
A: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
B: dict[str, Any] = {"properties": {"b": {"type": "integer"}}, "required": ["b"]}


def prepared(schema: Any) -> dict[str, Any]:
    result = prepare_schema(schema)
    assert result.pop("x-guidance")
    return result


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (True, {}),
        (A, {**A, "type": "object", **CLOSED}),
        ({**A, "type": ["object", "null"]}, {**A, "type": ["object", "null"], **CLOSED}),
        ({"type": "object"}, {"type": "object"}),
        ({**A, "additionalProperties": {"type": "null"}, "type": "object"}, None),
        ({**A, "type": "object", "required": ["a", "z"]}, None),
        ({"items": A}, {"items": {**A, "type": "object", **CLOSED}}),
        ({"anyOf": [A, True]}, {"anyOf": [{**A, "type": "object", **CLOSED}, True]}),
        ({"allOf": [A]}, {"allOf": [{**A, "type": "object", **CLOSED}]}),
        # An intersection: to close one part would forbid the properties of the others.
        ({"allOf": [A, B]}, {"allOf": [{**A, "type": "object"}, {**B, "type": "object"}]}),
        (
            {**A, "$ref": "#/$defs/b", "$defs": {"b": B}},
            {**A, "$ref": "#/$defs/b", "$defs": {"b": {**B, "type": "object"}}},
        ),
        # Remarks, and what only looks like a schema.
        ({"type": "string", "format": "binary"}, {"type": "string"}),
        ({"type": "string", "format": "uuid"}, None),
        ({"enum": [{"properties": {}, "format": "x"}]}, None),
        ({"const": {"format": "x"}, "default": {"properties": {}}, "title": "t"}, None),
        ({"properties": {"format": {"type": "null"}}, "type": "object", **CLOSED}, None),
        ({"x-guidance": {"lenient": True}}, {}),
    ],
)
def test_schemas_are_closed_and_stripped_of_annotations(schema: Any, expected: Any) -> None:
    before = json.dumps(schema)
    assert prepared(schema) == (schema if expected is None else expected)
    assert json.dumps(schema) == before


@pytest.mark.parametrize("schema", [False, None, 1, "{}", [], [{}]])
def test_values_that_are_no_schemas_are_refused(schema: Any) -> None:
    with pytest.raises(GrammarError, match="schema"):
        prepare_schema(schema)


def test_deep_schemas_are_refused() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"items": nested(depth - 1)} if depth else {}

    prepare_schema(nested(MAX_DEPTH))
    with pytest.raises(GrammarError, match="more than 64 deep"):
        prepare_schema(nested(MAX_DEPTH + 1))
    for text in ("[" * 1_000_000, '{"a":' * 100_000):
        with pytest.raises(GrammarError, match="more than 64 deep"):
            read_schema(text)


@pytest.mark.contract("R2.52")
def test_properties_keep_their_order() -> None:
    names = ["z", "a", "m", "1", "0"]
    schema = read_schema(json.dumps({"properties": {name: {"type": "null"} for name in names}}))
    assert list(prepared(schema)["properties"]) == names


def test_intersections_are_enforced_without_closing() -> None:
    schema = {"allOf": [A, B]}
    assert accepts("json", schema, '{"a":1,"b":2}')
    assert accepts("json", schema, '{"b":2}')
    assert not accepts("json", schema, '{"a":1}')


@pytest.mark.parametrize(
    ("format_", "yes", "no"),
    [
        ("date", ["2024-02-29", "0001-01-01", "9999-12-31"], ["0000-01-01", "2024-02-30", "24-01-01"]),
        ("time", ["23:59:59Z", "00:00:00.5+01:00"], ["23:59:60Z", "24:00:00Z"]),
        (
            "date-time",
            ["2024-01-01T00:00:59Z"],
            ["0000-01-01T00:00:00Z", "2024-01-01T00:00:60Z", "2024-01-01"],
        ),
    ],
)
def test_dates_exclude_year_zero_and_leap_seconds(format_: str, yes: list[str], no: list[str]) -> None:
    schema = {"type": "string", "format": format_}
    assert [text for text in yes if not accepts("json", schema, f'"{text}"')] == []
    assert [text for text in no if accepts("json", schema, f'"{text}"')] == []


def test_overlapping_one_of_is_enforced_as_any_of() -> None:
    """As in TGI. By JSON Schema, a text of both branches is no match, which cannot be known in time."""
    schema = {"oneOf": [{"type": "number"}, {"type": "integer"}]}
    assert accepts("json", schema, "1.5")
    assert accepts("json", schema, "1")
    assert not jsonschema.Draft202012Validator(schema).is_valid(1)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        (r"\"\\\b\f\n\r\t", True),
        (r"\/", False),
        ("é😀", True),
        (r"\u0001", True),
        (r"\u0041", False),
        ("\n", False),
    ],
)
def test_strings_have_only_necessary_escapes(text: str, yes: bool) -> None:
    """TGI has two escapes only. A character that needs no escape has none."""
    assert accepts("json", {"type": "string"}, f'"{text}"') is yes


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 12}, ["3", "12"], ["2", "13", "-3"]),
        ({"type": "integer", "multipleOf": 5}, ["0", "25"], ["7"]),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2}, ["[null]"], ["[]"]),
        ({"additionalProperties": {"type": "integer"}, "type": "object"}, ['{"x":1}', "{}"], ['{"x":"y"}']),
        (True, ["1", "[]", '"a"'], ["x"]),
    ],
)
def test_keywords_that_tgi_ignores_are_enforced(schema: Any, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not accepts("json", schema, text)] == []
    assert [text for text in no if accepts("json", schema, text)] == []
