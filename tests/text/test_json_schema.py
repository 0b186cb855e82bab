"""Schemas as they are given against the texts that grammars accept, with jsonschema as the judge."""

import ipaddress
import itertools
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from tgi.text.grammar import GrammarSpec
from tgi.text.json_schema import MAX_DEPTH, GrammarError, prepare_schema, read_schema
from tgi.text.json_schema.keywords import KEYWORDS
from tgi.text.json_schema.references import names_in

from .matching import END, accepts, allowed, byte_tokens, demo_compiler, walk

A: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
B: dict[str, Any] = {"properties": {"b": {"type": "integer"}}, "required": ["b"]}


def accepted(schema: Any, texts: list[str], *, lenient: bool = False) -> list[str]:
    """Return those of the texts that a schema accepts."""
    matcher = demo_compiler().compile(GrammarSpec("json", json.dumps(schema), lenient))
    found = []
    for text in texts:
        copy = matcher.fork()
        try:
            for byte in text.encode():
                copy.advance(byte_tokens()[bytes([byte])])
        except GrammarError:
            continue
        if END in allowed(copy):
            found.append(text)
    return found


# What narrows a schema


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        (A, ['{"a":1}', "{}"], ['{"a":1,"x":1}', "1", '{"x":1}']),
        ({**A, "type": ["object", "null"]}, ['{"a":1}', "null"], ['{"x":1}']),
        ({"type": "object"}, ['{"x":1}'], ["1"]),
        ({**A, "additionalProperties": {"type": "null"}}, ['{"a":1,"x":null}'], ['{"x":1}']),
        ({**A, "required": ["a", "z"]}, ['{"a":1,"z":2}'], ['{"a":1}']),
        ({"items": A}, ['[{"a":1}]'], ['[{"x":1}]', "[1]"]),
        ({"anyOf": [A, {"type": "null"}]}, ['{"a":1}', "null"], ['{"x":1}']),
        ({"properties": {}}, ["{}", '{"x":1}'], ["1"]),
        # The schemas of an intersection are closed together.
        ({"allOf": [A, B]}, ['{"a":1,"b":2}', '{"b":2}'], ['{"a":1}', '{"b":1,"x":1}']),
        ({**A, "$ref": "#/$defs/b", "$defs": {"b": B}}, ['{"b":1}', '{"a":1,"b":1}'], ['{"b":1,"x":1}']),
        ({**A, "anyOf": [B, {"required": ["a"]}]}, ['{"a":1}', '{"a":1,"b":1}'], ['{"a":1,"x":1}', "{}"]),
        ({"allOf": [A, {**B, "additionalProperties": True}]}, ['{"b":1,"x":1}'], []),
        (
            {"properties": {"a": {"allOf": [A, B]}, "b": A}},
            ['{"a":{"b":1},"b":{"a":1}}'],
            ['{"b":{"a":1,"x":1}}', '{"x":1}', '{"a":{"b":1,"x":1}}'],
        ),
        ({**A, "dependentSchemas": {"a": B}}, ['{"a":1,"b":1}', "{}"], ['{"a":1}', '{"a":1,"b":1,"x":1}']),
        # What only looks like a schema, and remarks
        ({"enum": [{"properties": {}, "format": "x"}]}, ['{"properties":{},"format":"x"}'], ["{}"]),
        ({"const": None, "default": {"properties": {}}, "title": "t", "x-own": [1]}, ["null"], ["{}"]),
        ({"properties": {"format": {"type": "null"}}}, ['{"format":null}'], ['{"format":1}']),
        ({"x-guidance": {"lenient": True}, "type": "null"}, ["null"], ["1"]),
    ],
)
def test_objects_have_listed_properties_only(schema: Any, yes: list[str], no: list[str]) -> None:
    before = json.dumps(schema)
    assert accepted(schema, yes + no) == yes
    assert json.dumps(schema) == before


def test_a_lenient_schema_is_taken_as_it_is() -> None:
    texts = ['{"a":1,"x":1}', "1", '{"a":"x"}', "{}"]
    assert accepted(A, texts, lenient=True) == [texts[0], texts[1], texts[3]]


@pytest.mark.contract("R2.52")
def test_properties_keep_their_order() -> None:
    names = ["z", "a", "m", "1", "0"]
    schema = read_schema(json.dumps({"properties": {name: {"type": "null"} for name in names}}))
    assert list(prepare_schema(schema).schema["properties"]) == names


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"properties": {"a": {"type": "null"}, "b": {}}, "required": ["b"]}, '{"b":[{}],"x":1,"a":null}'),
        ({"type": "object", "required": ["a", "é\n"]}, '{"é\\n":1,"x":2,"a":3}'),
        (
            {
                "items": {"$ref": "#/$defs/n"},
                "$defs": {"n": {"properties": {"a": {}, "n": {"$ref": "#/$defs/n"}}}},
            },
            '[{"n":{"n":{"x":1,"a":1},"a":1}},{"a":1,"n":{}}]',
        ),
        (
            {"properties": {"a": {"anyOf": [A, {"properties": {"c": {}, "d": {}}}]}, "b": {}}},
            '{"b":1,"a":{"d":1,"c":2}}',
        ),
        ({"properties": {"a": {}, "b": False}}, '{"x":1}'),
        (
            {**A, "required": ["k"], "oneOf": [{"required": ["b"]}, {"required": ["a"]}], "type": "object"},
            '{"b":1,"x":1,"k":2}',
        ),
        ({"allOf": [A, B], "$ref": "#/$defs/n", "$defs": {"n": {"required": ["n"]}}}, '{"n":1,"b":2,"a":3}'),
        ({"type": "object", "required": ["a"]}, '{"x":1,"a":2,"y":3}'),
        (A, '{"x":1,"a":2}'),
    ],
)
def test_a_lenient_schema_takes_properties_in_any_order(schema: Any, text: str) -> None:
    spaced = text.replace("{", "{ ").replace(":", " : ").replace(",", " , ")
    assert accepted(schema, [text, spaced], lenient=True) == [text, spaced]
    wrong = [text.replace("}", ",}", 1), text[:-1], f" {text}", f"{text} "]
    assert accepted(schema, wrong, lenient=True) == []


def test_texts_in_any_order_can_always_go_on() -> None:
    pair = {"properties": {"a": {"enum": [1, 2]}, "b": {"type": "null"}}, "additionalProperties": False}
    schema = {"type": "array", "items": {"type": "object", **pair, "required": ["b"]}}
    matcher = demo_compiler().compile(GrammarSpec("json", json.dumps(schema), lenient=True))
    for seed in range(20):
        walk(matcher.fork(), random.Random(seed), 150)


@pytest.mark.parametrize(
    "names",
    [{"propertyNames": {"enum": ["a", "b"]}}, {"patternProperties": {"^(a|b)$": {"type": "integer"}}}],
)
@pytest.mark.parametrize("listed", [{"required": ["a", "b"]}, {"properties": {"a": {}, "b": {}}}])
@pytest.mark.parametrize("where", ["", "allOf", "anyOf"])
def test_nothing_follows_an_object_in_which_no_name_is_left(
    names: dict[str, Any], listed: dict[str, Any], where: str
) -> None:
    """A comma there would leave a text that cannot go on."""
    schema = {"type": "object", **names, **listed, "additionalProperties": "propertyNames" in names}
    if where:
        schema = {"type": "object", **names, "additionalProperties": schema["additionalProperties"]}
        schema |= {where: [listed]}
    matcher = demo_compiler().compile(GrammarSpec("json", json.dumps(schema)))
    for byte in b'{"a":1,"b":2':
        matcher.advance(byte_tokens()[bytes([byte])])
    assert byte_tokens()[b","] not in allowed(matcher)
    assert byte_tokens()[b"}"] in allowed(matcher)


def test_no_listed_property_comes_twice_in_any_order() -> None:
    schema = {"properties": {"a": {}, "b": {}}, "required": ["b"]}
    texts = ['{"b":1,"a":1}', '{"a":1,"b":1,"a":1}', '{"b":1,"b":1}', '{"a":1}', "{}", '{"b":1,"\\u0061":1}']
    assert accepted(schema, texts, lenient=True) == texts[:1]


def test_options_of_untyped_objects_are_told_by_their_tags() -> None:
    """An untyped schema with `properties` describes an object here, so that one tag tells them apart."""
    options = [
        {"properties": {"t": {"const": tag}, "n": {"type": "integer"}}, "required": ["t", "n"]}
        for tag in "ab"
    ]
    texts = ['{"t":"a","n":1}', '{"t":"b","n":1}', '{"t":"c","n":1}', '{"t":"a"}', "1"]
    assert accepted({"oneOf": options}, texts) == texts[:2]
    # No tag tells these: a text for "t" obeys both as jsonschema reads them.
    options = [{"properties": {"t": {"type": "string"}}}, {"properties": {"t": {"properties": {"n": {}}}}}]
    assert accepted({"oneOf": [one | {"required": ["t"]} for one in options]}, ['{"t":"a"}']) == []


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


# Names and strings


def test_properties_of_several_schemas_come_in_the_order_of_the_keywords() -> None:
    before = {"$ref": "#/$defs/b", "properties": {"a": {}}, "$defs": {"b": {"properties": {"b": {}}}}}
    after = {"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}
    texts = ['{"a":1,"b":1}', '{"b":1,"a":1}']
    assert accepted(before, texts) == texts[1:]
    assert accepted(after, texts) == texts[:1]


def test_pointers_may_begin_at_the_root_beside_ids() -> None:
    schema = {"definitions": {"a": {"id": "a", "$ref": "#/definitions/b"}, "b": {"type": "null"}}}
    assert accepted({**schema, "$ref": "#/definitions/a"}, ["null", "1"]) == ["null"]


@pytest.mark.parametrize(
    "rest", [{"additionalProperties": {"type": "string"}}, {"patternProperties": {"^x": {}}}]
)
def test_no_other_spelling_of_a_name_evades_its_schema(rest: dict[str, Any]) -> None:
    schema = {"properties": {"role": {"const": "user"}, "a\nb": {"type": "null"}}, "type": "object", **rest}
    yes = ['{"role":"user","x":"y"}', '{"a\\nb":null}']
    no = ['{"\\u0072ole":"admin"}', '{"role":"user","rol\\u0065":"admin"}', '{"a\\u000ab":"x"}']
    no += ['{"x":"y","x\\u000a":1}'] if "patternProperties" in rest else ['{"role":"user","role":"admin"}']
    assert accepted(schema, yes + no) == yes


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
    ("format_", "yes", "no"),
    [
        (
            "date",
            ["2024-02-29", "2000-02-29", "0004-02-29", "0001-01-01", "9999-12-31", "2023-02-28"],
            ["0000-01-01", "0000-02-29", "2024-02-30", "24-01-01", "2021-02-29", "1900-02-29", "2100-02-29"],
        ),
        ("time", ["23:59:59Z", "00:00:00.5+01:00"], ["23:59:60Z", "24:00:00Z"]),
        (
            "date-time",
            ["2024-02-29T00:00:59Z"],
            ["0000-01-01T00:00:00Z", "2024-01-01T00:00:60Z", "2023-02-29T00:00:00Z", "2024-01-01"],
        ),
    ],
)
def test_dates_are_those_of_the_calendar(format_: str, yes: list[str], no: list[str]) -> None:
    for schema in ({"format": format_}, {"format": format_, "pattern": "^.", "type": "string"}):
        assert accepted(schema, [f'"{text}"' for text in yes + no]) == [f'"{text}"' for text in yes]


def test_ipv6_addresses_have_every_form() -> None:
    """RFC 4291, section 2.2: with `::`, and with an IPv4 address at the end. Python is the judge."""
    texts = ["fe80::1%eth0", ":1", "1:", ":::", "1::2::3", "12345::", "g::", "::256.0.0.1", "::1.2.3"]
    for end in ("", "2001", "DB8:0", "192.0.2.255", "0.0.0.0"):
        for groups in range(9):
            whole = [*["a"] * groups, *([end] if end else [])]
            texts.append(":".join(whole))
            texts += [":".join(whole[:at]) + "::" + ":".join(whole[at:]) for at in range(len(whole) + 1)]
    texts = list(dict.fromkeys(texts))
    yes = [f'"{text}"' for text in texts if _is_ipv6(text)]
    assert len(yes) > 100
    assert accepted({"format": "ipv6"}, [f'"{text}"' for text in texts]) == yes


def _is_ipv6(text: str) -> bool:
    try:
        return "%" not in text and bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def test_the_time_to_gather_names_grows_with_the_schema_alone() -> None:
    """Time with the square of 12,000 definitions is more than a second."""
    schema = {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(12_000)}}
    before = time.process_time()
    names, _ = names_in(schema)
    assert time.process_time() - before < 0.5
    assert {"$ref", "d0", "d11999"} <= names


# Keywords


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "integer", "minimum": 3, "maximum": 12}, ["3", "12"], ["2", "13", "-3"]),
        ({"type": "integer", "multipleOf": 5}, ["0", "25"], ["7"]),
        ({"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2}, ["[null]"], ["[]"]),
        ({"additionalProperties": {"type": "integer"}, "type": "object"}, ['{"x":1}', "{}"], ['{"x":"y"}']),
        (True, ["1", "[]", '"a"'], ["x"]),
        # Both bounds have the same digits before the point.
        (
            {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
            ["0.5", "0.1", "0.001"],
            ["0", "0.0", "-0"],
        ),
        (
            {"type": "number", "minimum": -1.5, "exclusiveMaximum": -1},
            ["-1.5", "-1.01"],
            ["-1", "-1.0", "-1.6"],
        ),
        (
            {"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1.5},
            ["1.2", "1.001"],
            ["1", "1.0", "1.5"],
        ),
        (
            {"allOf": [{"type": "number", "exclusiveMinimum": 99}, {"maximum": 99.5}]},
            ["99.0001"],
            ["99", "99.0"],
        ),
        ({"type": "number", "not": {"maximum": 1234}, "maximum": 1234.5}, ["1234.1"], ["1234", "1234.0"]),
        ({"type": "number", "minimum": 0.5, "exclusiveMaximum": 1}, ["0.9", "0.99"], ["1", "1.0"]),
    ],
)
def test_keywords_that_tgi_ignores_are_enforced(schema: Any, yes: list[str], no: list[str]) -> None:
    assert accepted(schema, yes + no) == yes


@pytest.mark.parametrize(
    ("schema", "yes", "no"),
    [
        ({"type": "array", "maxItems": 2.0}, ["[1,2]"], ["[1,2,3]"]),
        ({"type": "string", "minLength": 1.0, "maxLength": 2.0}, ['"ab"'], ['""', '"abc"']),
        ({"type": "object", "minProperties": 1.0}, ['{"a":1}'], ["{}"]),
        ({"type": "integer", "minimum": -(2**63)}, ["-5", "0"], ["x"]),
        ({"type": "integer", "maximum": 2**64 - 1, "minimum": 0}, ["5"], ["-1"]),
        ({"minimum": 3, "exclusiveMinimum": True, "type": "integer"}, ["4"], ["3"]),  # draft 4
        ({"items": [{"type": "null"}], "additionalItems": False, "type": "array"}, ["[null]"], ["[null,1]"]),
        ({"uniqueItems": False, "type": "array"}, ["[1,1]"], []),
        ({"items": {"enum": [1, "b"]}, "uniqueItems": True, "type": "array"}, ['["b",1]'], ["[1,1]"]),
        ({"patternProperties": {"^a": {"type": "integer"}}, "properties": {"ab": {"minimum": 2}}},
         ['{"ab":2}'], ['{"ab":1}', '{"ab":"x"}', '{"ab":2.5}']),
        ({"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {**A, "format": "binary"}}}},
         ['{"a":1}'], ['{"a":1,"v":1}', "3"]),
        ({"propertyNames": {"type": "integer"}, "type": "object"}, ["{}"], ['{"a":1}']),
        ({"propertyNames": {"$ref": "#/$defs/k", "minLength": 2}, "$defs": {"k": {"pattern": "^a"}}},
         ['{"ab":1}'], ['{"a":1}', '{"bb":1}']),
        ({"propertyNames": {"format": "date"}}, ['{"2024-02-29":1}'], ['{"2023-02-29":1}']),
        ({"$ref": "#/$defs/a%20b~1[c]", "$defs": {"a b/[c]": {"type": "null"}}}, ["null"], ["1"]),
        ({"$ref": "#/$defs/x y", "$defs": {"x y": {"type": "null"}}}, ["null"], ["1"]),
        ({"$ref": "#here", "$defs": {"x": {"$anchor": "here", "type": "null"}}}, ["null"], ["1"]),
        ({"$id": "http://a/b.json", "$ref": "c.json", "$defs": {"x": {"$id": "c.json", "type": "null"}}},
         ["null"], ["1"]),
        ({"$ref": "#/$defs/N", "$defs": {"N": {"properties": {
            "c": {"$ref": "#/$defs/N", "deprecated": True, "nullable": True, "x-order": 2}}}}},
         ['{"c":{"c":{}}}'], ['{"c":1}']),
        ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}], "properties": {"a": {}, "b": {}}},
         ['{"a":1}', '{"b":1}'], ["{}", '{"a":1,"b":1}']),
        ({"unevaluatedProperties": False, "allOf": [A, B]}, ['{"a":1,"b":1}'], ['{"b":1,"x":1}']),
    ],
)  # fmt: skip
def test_unusual_spellings_are_enforced(schema: Any, yes: list[str], no: list[str]) -> None:
    assert accepted(schema, yes + no) == yes


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"^[^[\]]+$", ["ab"], ["a[b"]),
        (r"^{{.*}}$", ["{{a}}"], ["{a}"]),
        (r"^\${[a-z]+}$", ["${a}"], ["$a"]),
        (r"^a\/\-\<b$", ["a/-<b"], []),
        (r"\ud83d\udc32", ["a🐲b"], ["a"]),
        ("^[a&&b]$", ["a", "&"], ["d"]),
        ("^[+--]$", ["+", ",", "-"], ["."]),
        ("^[~~x]$", ["~", "x"], ["y"]),
        (r"^[\w-.]+$", ["a-.é"[:3]], ["é"]),
        (r"^\d+$", ["12"], ["٣"]),
        (r"^\p{L}+$", ["aé"], ["1"]),
        ("(^|,)a(,|$)", ["a", "b,a", "a,b"], ["ba"]),
        (r"^(?!0$)\d+$", ["10", "00"], ["0", "x"]),
        (r"^(?!.*\.\.)(?!a)[a-z.]+$", ["b.c"], ["b..c", "abc"]),
        (r"^(?=.*\d)(?=.*[a-z]).{2,}$", ["a1", "1xa"], ["aa", "11"]),
        ("^a|b$", ["ax", "xb"], ["xa"]),
        ("^[^]$", ["\u2028", "a"], [""]),
        (r"^(?:a{2}|b{,2}|c{1,})$", ["aa", "b{,2}", "cc"], ["a", "bb"]),
    ],
)
def test_patterns_are_those_of_ecma_262(pattern: str, yes: list[str], no: list[str]) -> None:
    texts = [json.dumps(text, ensure_ascii=False) for text in yes + no]
    assert accepted({"type": "string", "pattern": pattern}, texts) == texts[: len(yes)]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"pattern": "(?x) a # b"}, "`pattern` at the root: `(?x) a # b`, the group `(?x)` is not supported"),
        (
            {"items": {"pattern": r"a\b"}},
            r"`pattern` at items: `a\b`, `\b`, the edge of a word, cannot be enforced",
        ),
        ({"pattern": r"(a)\1"}, "back-references cannot be enforced"),
        ({"pattern": r"^a\Z"}, r"`\Z` means nothing in ECMA-262"),
        ({"pattern": "a(?=b)"}, "look-ahead or an anchor within the pattern cannot be enforced"),
        (
            {"properties": {"a": {"properties": {"b": {"not": {"format": "date"}}}}}},
            "`not` at properties/a/properties/b: `format` within `not` cannot be enforced",
        ),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "`oneOf` at the root: several of its schemas"),
        ({"uniqueItems": True}, "`uniqueItems` at the root: items can be told from each other only if"),
        ({"$ref": "other.json#/a"}, "`other.json#/a` is in no part of this schema"),
        ({"enum": [2**60]}, "`enum` at the root: integers beyond 2^53"),
        ({"minimum": 2**60}, "`minimum` at the root: 1152921504606846976 is beyond 2^53"),
    ],
)
def test_refusals_name_the_keyword_and_its_place(schema: Any, message: str) -> None:
    """Where a schema is lenient, the same is a remark, and the rest is enforced."""
    both = {"properties": {"x": schema, "y": {"type": "null"}}, "type": "object"}
    with pytest.raises(GrammarError) as raised:
        demo_compiler().compile(GrammarSpec("json", json.dumps(schema)))
    assert message in str(raised.value)
    if "$ref" not in schema:
        matcher = demo_compiler().compile(GrammarSpec("json", json.dumps(both), lenient=True))
        assert len(matcher.remarks) == 1
        assert matcher.remarks[0].endswith("; it is not enforced")
        assert "properties/x" in matcher.remarks[0]
    assert accepted(both, ['{"y":null}', '{"y":1}'], lenient=True) == ['{"y":null}']


def test_a_format_that_is_not_enforced_is_remarked() -> None:
    matcher = demo_compiler().compile(GrammarSpec("json", '{"items": {"format": "color"}}'))
    assert matcher.remarks == ('`format` at items: "color" is not enforced',)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from([2.0, 1e300, 2**70, "^a", "(", "#"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*KEYWORDS, "$defs", "$id", "a"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JUNK, st.booleans())
@settings(max_examples=300, deadline=None)
def test_anything_that_is_sent_as_a_schema_is_prepared_or_refused(junk: Any, lenient: bool) -> None:
    with suppress(GrammarError):
        prepare_schema(junk, lenient=lenient, closed=not lenient)


# All keywords together: what is accepted obeys the schema, and what obeys it is accepted

NAMES = st.sampled_from(["a", "b", "c1"])
SCALARS = st.sampled_from([None, True, False, -1, 0, 1, 2, 3, 0.5, "", "a", "b", "ab", "b1"])
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(NAMES, SCALARS, max_size=2)
INSTANCES = SCALARS | st.lists(VALUES, max_size=3) | st.dictionaries(NAMES, VALUES, max_size=3)
COUNTS = st.integers(0, 2)
PATTERNS = st.sampled_from(["^a", "b", "1$", "^[ab]*$", "^(?!a)", "^$"])
LEAVES: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(["null", "boolean", "number", "integer", "string", "array", "object"]),
    "enum": st.lists(VALUES, min_size=1, max_size=3),
    "const": VALUES,
    "minimum": COUNTS,
    "exclusiveMaximum": COUNTS,
    "multipleOf": st.just(2),
    "minLength": COUNTS,
    "maxLength": COUNTS,
    "pattern": PATTERNS,
    "minItems": COUNTS,
    "maxItems": COUNTS,
    "uniqueItems": st.booleans(),
    "required": st.lists(NAMES, max_size=2, unique=True),
    "minProperties": COUNTS,
    "maxProperties": COUNTS,
    "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, max_size=1), max_size=1),
    "propertyNames": st.fixed_dictionaries({"pattern": PATTERNS}),
}


def with_keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    several = st.lists(inner, min_size=1, max_size=3)
    keywords = {
        **LEAVES,
        "items": inner,
        "prefixItems": several,
        "contains": inner,
        "minContains": COUNTS,
        "properties": st.dictionaries(NAMES, inner, max_size=2),
        "patternProperties": st.dictionaries(PATTERNS, inner, max_size=2),
        "additionalProperties": inner,
        "dependentSchemas": st.dictionaries(NAMES, inner, max_size=1),
        "allOf": several,
        "anyOf": several,
        "oneOf": several,
        "not": inner,
        "if": inner,
        "then": inner,
        "else": inner,
    }
    return st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=3, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: keywords[name] for name in chosen})
    )


SCHEMAS = st.recursive(st.booleans() | with_keywords(st.booleans()), with_keywords, max_leaves=4)


PARTS_OF_NAMES = st.sampled_from(
    ["^a$", "^(a|b)$", "^[ab]?$", "^a", "^[^a]", "^$", "", ".*", "b$", "^\u0001+$"]
)
NAMES_OF = st.sampled_from(
    [False, {"enum": ["a", "b"]}, {"pattern": "^a"}, {"maxLength": 1}, {"maxLength": 0}, {"type": "null"}]
)


MEMBERS = st.sampled_from([{"const": 1}, {"const": 1}, {"enum": [1, "a"]}, False, {"not": {}}])
LISTING: dict[str, st.SearchStrategy[Any]] = {
    "properties": st.dictionaries(NAMES, MEMBERS, min_size=2, max_size=3),
    "required": st.lists(NAMES, min_size=2, max_size=3, unique=True),
    "dependentRequired": st.dictionaries(NAMES, st.lists(NAMES, min_size=1, max_size=2), min_size=1),
    "maxProperties": COUNTS,
    "minProperties": COUNTS,
    "not": st.fixed_dictionaries({"required": st.lists(NAMES, min_size=1, max_size=1)}),
}
LEAVING: dict[str, st.SearchStrategy[Any]] = {
    "patternProperties": st.dictionaries(PARTS_OF_NAMES, MEMBERS, min_size=1, max_size=3),
    "propertyNames": NAMES_OF,
    "additionalProperties": MEMBERS,
    "unevaluatedProperties": MEMBERS,
}


def some_of(keywords: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.lists(st.sampled_from(sorted(keywords)), min_size=1, max_size=2, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({name: keywords[name] for name in chosen})
    )


@st.composite
def objects(draw: st.DrawFn) -> dict[str, Any]:
    """Schemas of objects whose further properties may run out, in one schema or in several."""
    listing, leaving = draw(some_of(LISTING)), draw(some_of(LEAVING))
    match draw(st.sampled_from(["one", "allOf", "anyOf", "$ref", "all"])):
        case "one":
            return {"type": "object", **listing, **leaving}
        case "$ref":
            return {"type": "object", **leaving, "$ref": "#/$defs/a", "$defs": {"a": listing}}
        case "all":
            return {"type": "object", "allOf": [leaving, listing, draw(some_of(LEAVING))]}
        case keyword:
            return {"type": "object", **leaving, keyword: [listing]}


@given(objects(), st.integers(0, 999))
@settings(max_examples=80, deadline=None)
def test_no_way_through_an_object_leads_nowhere(schema: Any, seed: int) -> None:
    """A comma, a name or a colon that is allowed can always be gone on from."""
    rng = random.Random(seed)
    for lenient in (False, True):
        try:
            matcher = demo_compiler().compile(GrammarSpec("json", json.dumps(schema), lenient))
        except GrammarError as error:
            event(str(error)[:60])
            continue
        comma, *marks = (byte_tokens()[bytes([byte])] for byte in b',{}":1abc')
        for _ in range(4):
            copy = matcher.fork()
            for _ in range(40):
                choice = set(allowed(copy)) - {END}
                if not choice:
                    break
                short = sorted(choice.intersection(marks) or choice)
                copy.advance(comma if comma in choice and rng.random() < 0.8 else rng.choice(short))


def orders(value: Any) -> Iterator[Any]:
    """Yield a value with the properties of its objects in every order."""
    if isinstance(value, dict):
        for names in itertools.permutations(value):
            for values in itertools.product(*(list(orders(value[name])) for name in names)):
                yield dict(zip(names, values, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*map(list, map(orders, value))))
    else:
        yield value


@given(SCHEMAS, st.lists(INSTANCES, min_size=4, max_size=8))
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_is_what_obeys_the_schema(schema: Any, instances: list[Any]) -> None:
    judge = jsonschema.Draft202012Validator(schema)
    valid = [judge.is_valid(instance) for instance in instances]
    texts = [
        [json.dumps(order, separators=(",", ":")) for order in orders(instance)] for instance in instances
    ]
    for lenient in (False, True):
        try:
            matcher = demo_compiler().compile(GrammarSpec("json", json.dumps(schema), lenient))
        except GrammarError as error:
            event(str(error)[:60])
            if (
                "no text obeys" in str(error)
                or "nsatisfiable" in str(error)
                or "allows nothing" in str(error)
            ):
                assert not (lenient and any(valid))  # otherwise, narrowing may leave nothing
            continue
        if matcher.remarks:
            event("relaxed")
            continue
        for instance, is_valid, spelt in zip(instances, valid, texts, strict=True):
            found = accepted(schema, spelt, lenient=lenient)
            assert is_valid or not found, instance
            assert found or not (is_valid and lenient), instance
