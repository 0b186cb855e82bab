"""docs/json-schema.md lists how each keyword is enforced, and each row is true.

`python -m tests.test_json_schema_page` writes its table.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tgi.text.grammar import GrammarSpec
from tgi.text.json_schema import GrammarError
from tgi.text.json_schema.keywords import KEYWORDS

from .text.matching import accepts, demo_compiler

PAGE = Path(__file__).parents[1] / "docs/json-schema.md"
A = {"required": ["a"]}
D = {"d": {"type": "null"}}
Z = {"properties": {"a": {}, "b": {}}}
ROWS: dict[str, tuple[Any, str, str, Any]] = {
    "type": ({"type": "null"}, "null", "1", None),
    "enum": ({"enum": [1, "a"]}, '"a"', '"b"', {"enum": [2**60]}),
    "const": ({"const": [1]}, "[1]", "[2]", {"const": 2**60}),
    "minimum": ({"minimum": 3}, "3", "2", {"minimum": 2**60}),
    "maximum": ({"maximum": 3}, "3", "4", {"maximum": -(2**60)}),
    "exclusiveMinimum": ({"exclusiveMinimum": 3}, "4", "3", {"exclusiveMinimum": 2**60}),
    "exclusiveMaximum": ({"exclusiveMaximum": 3}, "2", "3", {"exclusiveMaximum": -(2**60)}),
    "multipleOf": ({"multipleOf": 3}, "6", "7", {"multipleOf": 12345678912345}),
    "minLength": ({"minLength": 2}, '"ab"', '"a"', None),
    "maxLength": ({"maxLength": 2}, '"ab"', '"abc"', None),
    "pattern": ({"pattern": "^a"}, '"ab"', '"b"', {"pattern": r"\ba"}),
    "format": ({"format": "ipv4"}, '"1.2.3.4"', '"1"', None),
    "items": ({"items": {"type": "null"}}, "[null]", "[1]", None),
    "prefixItems": ({"prefixItems": [{"type": "null"}]}, "[null,1]", "[1]", None),
    "additionalItems": ({"items": [True], "additionalItems": False}, "[1]", "[1,1]", None),
    "minItems": ({"minItems": 1}, "[1]", "[]", None),
    "maxItems": ({"maxItems": 1}, "[1]", "[1,1]", None),
    "contains": ({"contains": {"type": "null"}}, "[1,null]", "[1]", None),
    "minContains": ({"contains": {"type": "null"}, "minContains": 2}, "[null,null]", "[null]", None),
    "maxContains": (
        {"contains": {"type": "null"}, "maxContains": 1, "maxItems": 3},
        "[null,1]",
        "[null,null]",
        {"contains": True, "maxContains": 1},
    ),
    "uniqueItems": (
        {"items": {"enum": [1, 2]}, "uniqueItems": True},
        "[2,1]",
        "[1,1]",
        {"uniqueItems": True},
    ),
    "unevaluatedItems": (
        {"prefixItems": [True], "unevaluatedItems": False},
        "[1]",
        "[1,1]",
        {"anyOf": [True], "unevaluatedItems": False},
    ),
    "properties": ({"properties": {"a": {"type": "null"}}}, '{"a":null}', '{"a":1}', None),
    "patternProperties": (
        {"patternProperties": {"^a": {"type": "null"}}},
        '{"ab":null}',
        '{"a":1}',
        {"patternProperties": {r"\b": True}},
    ),
    "additionalProperties": ({"additionalProperties": {"type": "null"}}, '{"a":null}', '{"a":1}', None),
    "required": (A, '{"a":1}', "{}", None),
    "minProperties": (
        {**Z, "minProperties": 2},
        '{"a":1,"b":1}',
        '{"a":1}',
        {"properties": {f"p{i}": True for i in range(20)}, "minProperties": 10},
    ),
    "maxProperties": (
        {**Z, "maxProperties": 1},
        '{"b":1}',
        '{"a":1,"b":1}',
        {"properties": {f"p{i}": True for i in range(20)}, "maxProperties": 10},
    ),
    "propertyNames": (
        {"propertyNames": {"pattern": "^a"}},
        '{"ab":1}',
        '{"b":1}',
        {"propertyNames": {"format": "email"}},
    ),
    "dependentRequired": ({**Z, "dependentRequired": {"a": ["b"]}}, '{"a":1,"b":1}', '{"a":1}', None),
    "dependentSchemas": ({**Z, "dependentSchemas": {"b": A}}, '{"a":1,"b":1}', '{"b":1}', None),
    "dependencies": ({**Z, "dependencies": {"b": ["a"]}}, '{"a":1,"b":1}', '{"b":1}', None),
    "unevaluatedProperties": (
        {"allOf": [Z], "unevaluatedProperties": False},
        '{"a":1}',
        '{"c":1}',
        {"anyOf": [Z], "unevaluatedProperties": False},
    ),
    "allOf": ({"allOf": [{"minimum": 1}, {"type": "integer"}]}, "1", "1.5", None),
    "anyOf": ({"anyOf": [{"const": 1}, {"const": 2}]}, "2", "3", None),
    "oneOf": (
        {"oneOf": [A, {"required": ["b"]}], **Z},
        '{"a":1}',
        '{"a":1,"b":1}',
        {"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]},
    ),
    "not": ({"not": {"enum": [1, "a"]}}, '"b"', '"a"', {"not": {"uniqueItems": True}}),
    "if": (
        {**Z, "if": A, "then": {"required": ["b"]}},
        '{"a":1,"b":1}',
        '{"a":1}',
        {"if": {"format": "date"}, "then": A},
    ),
    "then": ({"if": {"const": 1}, "then": False}, "2", "1", None),
    "else": ({"if": {"const": 1}, "else": False}, "1", "2", None),
    "$ref": ({"$ref": "#/$defs/d", "$defs": D}, "null", "1", {"$ref": "http://h/"}),
    "$dynamicRef": ({"$dynamicRef": "#/$defs/d", "$defs": D}, "null", "1", {"$dynamicRef": "http://h/"}),
    "$recursiveRef": (
        {"$recursiveRef": "#/$defs/d", "$defs": D},
        "null",
        "1",
        {"$recursiveRef": "http://h/"},
    ),
}
"""For each keyword a schema with a text that obeys it and one that does not, and a schema that is refused."""
NOT_OF_2020_12 = ("additionalItems", "dependencies", "$recursiveRef")


def table() -> list[str]:
    rows = [
        "| keyword | narrower than JSON Schema | refused, or relaxed with a warning |",
        "| --- | --- | --- |",
    ]
    return rows + [f"| `{name}` | {one.narrower} | {one.refused} |" for name, one in KEYWORDS.items()]


def test_the_table_is_what_is_enforced() -> None:
    assert [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("|")] == table()
    assert list(ROWS) == list(KEYWORDS)


@pytest.mark.parametrize("keyword", ROWS)
def test_each_row_is_true(keyword: str) -> None:
    schema, yes, no, refused = ROWS[keyword]
    assert accepts("json", schema, yes)
    assert not accepts("json", schema, no)
    if keyword not in NOT_OF_2020_12 and keyword != "format":
        judge = jsonschema.Draft202012Validator(schema)
        assert judge.is_valid(json.loads(yes))
        assert not judge.is_valid(json.loads(no))
    assert (refused is not None) == (bool(KEYWORDS[keyword].refused) and keyword != "format")
    if refused is not None:
        spec = GrammarSpec("json", json.dumps(refused))
        with pytest.raises(
            GrammarError, match=re.escape(f"`{'contains' if keyword == 'maxContains' else keyword}`")
        ):
            demo_compiler().compile(spec)
        (remark,) = demo_compiler().compile(GrammarSpec("json", spec.source, lenient=True)).remarks
        assert remark.endswith("it is not enforced")


if __name__ == "__main__":
    rows = "\n".join(table()) + "\n"
    page = re.sub(r"(?:^\|.*\n)+", lambda _: rows, PAGE.read_text("utf-8"), flags=re.MULTILINE)
    PAGE.write_text(page, "utf-8")
