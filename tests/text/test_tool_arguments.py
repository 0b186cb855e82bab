"""Arguments that are not JSON text: held to their schema, and read into JSON text."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tgi.text.tool_arguments import PYTHON, Syntax, Tagged
from tgi.text.tool_calls import Tool

from .test_tools import COMPILERS, cut, grammar, read, style_of, walk

STYLES = ("Qwen3-Coder, Qwen3.5", "GLM-4.5, GLM-4.6, Laguna, Ling 3", "DeepSeek V3.2", "Gemma 4", "LFM2")
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2, "maxLength": 8},
        "code": {"type": "string", "pattern": r"^[A-Z]{3}-\d{1,3}$"},
        "path": {"type": "string", "pattern": "^/[ab]/c?$"},
        "unit": {"enum": ["C", "F", 7, None, True]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "note": {"anyOf": [{"type": "string", "maxLength": 4}, {"type": "null"}]},
        "mix": {"oneOf": [{"type": "boolean"}, {"$ref": "#/$defs/words"}]},
        "day": {"type": "string", "format": "date"},
        "tree": {"$ref": "#/$defs/tree"},
        "sure": {"type": "boolean"},
        "more": {
            "type": "object",
            "properties": {"x": {"const": 3}, "y": {"type": "string", "maxLength": 3}},
        },
    },
    "required": ["city", "code", "path", "count", "tree", "sure"],
    "$defs": {
        "words": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
        "tree": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "minimum": 0, "maximum": 9},
                "left": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]},
            },
            "required": ["value", "left"],
        },
    },
}


@pytest.mark.parametrize("special", [False, True], ids=["marks are text", "marks are special"])
@pytest.mark.parametrize("name", STYLES)
def test_arguments_obey_their_schema(name: str, special: bool) -> None:
    style = style_of(name, special=special)
    tool = Tool("f", None, SCHEMA)
    spec = grammar(style, [tool], required=True, parallel=False)
    texts = [text for seed in range(8) if (text := walk(spec, seed, special=special, most=700)) is not None]
    assert len(texts) > 4
    for text in texts:
        content, ((called, arguments),) = read(style, list(text), [tool])
        assert (content, called) == ("", "f")
        jsonschema.validate(json.loads(arguments), SCHEMA)


ODD: list[Any] = [
    {"properties": {"a": {"type": "array", "minItems": "x", "maxItems": 2.0}}},
    {"properties": {"a": {"type": "string", "minLength": 5, "maxLength": 3}}},
    {"properties": {"a": {"type": ["string", 3]}}},
    {"properties": {"a": {"enum": []}}},
    {"properties": {"a": {"pattern": "(?<=a)b", "type": "string"}}},
    {"properties": {"a": {"$ref": "#/nope"}}},
    {"properties": {"a": {"$ref": "#/properties/b"}, "b": {"type": "integer"}}},
    {"properties": {"a/b c": {"type": "integer"}, 'é"\\': {"type": "boolean"}}, "required": ["a/b c"]},
    {"properties": {"a": {"allOf": [{"type": "integer"}, {"minimum": 3}]}}},
    {"properties": {"a": {"const": None}, "b": {"const": "x</parameter>y"}}},
    {"patternProperties": {"^x": {"type": "integer"}}},
    {"properties": {"a": {"not": {"type": "string"}}}},
    {"required": ["a"]},
    {"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"b": {"type": "integer"}}}}},
]


@pytest.mark.parametrize("name", STYLES)
@pytest.mark.parametrize("schema", ODD, ids=range(len(ODD)))
def test_odd_schemas_are_enforced_as_far_as_possible(name: str, schema: Any) -> None:
    spec = grammar(
        style_of(name, special=True), [Tool("f", None, {"type": "object"} | schema)], required=True
    )
    COMPILERS[True].compile(spec)


def json_of(syntax: Syntax, text: str, schema: Any = None, places: Any = ()) -> str:
    """Return the JSON text of arguments, and check that the reader finds their end."""
    reader = syntax.reader(schema or {})
    parts = []
    for piece in cut(text + END, places) if places else list(text + END):
        if reader.done:
            break
        part, rest = reader.feed(piece)
        parts.append(part)
        assert not reader.done or (END.endswith(rest) or rest.endswith(END))
    assert reader.done
    return "".join(parts)


END = ")"
TEXT = st.text(st.sampled_from("aé😀\\'\"\n\t\x00(){}[],:= #0"), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    values=st.dictionaries(st.sampled_from(["a", "b_1", "é"]), VALUES), places=st.lists(st.integers(0, 99))
)
def test_what_python_prints_is_read(values: dict[str, Any], places: list[int]) -> None:
    text = ", ".join(f"{name}={value!r}" for name, value in values.items())
    assert json.loads(json_of(PYTHON, text, places=places)) == values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("a=1,b = 'x' ,", {"a": 1, "b": "x"}),
        ("a=true, b=null, c=None", {"a": True, "b": None, "c": None}),
        ("a=(1, 2,), b=[ ], c={'k': (True,)}", {"a": [1, 2], "b": [], "c": {"k": [True]}}),
        (r"a='it\'s \x41\u00e9\U0001F600\101\n', b='\d\/'", {"a": "it's Aé😀A\n", "b": "\\d/"}),
        (r'a="\ud83d\ude00"', {"a": "😀"}),
        ("a=0x10, b=1_000, c=.5, d=-1e3", {"a": 16, "b": 1000, "c": 0.5, "d": -1000.0}),
        ("a=hello world", {"a": "hello world"}),
    ],
)
def test_literals_of_python_are_read(text: str, value: Any) -> None:
    assert json.loads(json_of(PYTHON, text)) == value


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "3", "3"),
        ({"type": "integer"}, "3", 3),
        ({"type": "boolean"}, "True", True),
        ({"type": "array"}, '["a", 1]', ["a", 1]),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "None", None),
        ({"type": ["string", "null"]}, "3", "3"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "3", 3),
        ({"enum": ["a", 3]}, "3", 3),
        ({}, "3", 3),
        ({}, "three", "three"),
        ({"$ref": "#/$defs/a"}, "3", 3),
        ({"type": "string"}, 'two "lines"\n<b>', 'two "lines"\n<b>'),
    ],
)
def test_values_in_elements_have_the_type_of_their_schema(schema: Any, text: str, value: Any) -> None:
    syntax = Tagged("<p=", ">", "</p>")
    root = {"properties": {"a": schema}, "$defs": {"a": {"type": "integer"}}}
    assert json.loads(json_of(syntax, f"<p=a>{text}</p><p=b>x</p>", root)) == {"a": value, "b": "x"}


@pytest.mark.parametrize("schema", [{}, {"type": "string"}, {"type": "integer"}])
def test_elements_may_tell_themselves_whether_a_value_is_a_string(schema: Any) -> None:
    syntax = Tagged("<p=", " s>", "</p>", before_json=" j>")
    text, value = "<p=a s>3</p><p=b j>[3, null]</p>", {"a": "3", "b": [3, None]}
    assert json.loads(json_of(syntax, text, {"properties": {"a": schema, "b": schema}})) == value
    assert syntax.write(json.dumps(value)) == text


def test_a_string_is_streamed_before_its_end() -> None:
    for syntax, text in ((Tagged("<p=", ">", "</p>"), "<p=a>Hello wor"), (PYTHON, "a='Hello wor")):
        reader = syntax.reader({"properties": {"a": {"type": "string"}}})
        assert reader.feed(text)[0] == '{"a": "Hello wor'
