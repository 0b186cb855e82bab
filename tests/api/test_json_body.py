import contextlib
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.api.json_body import decode_body
from tgi.api.json_text import MAX_DEPTH, Cursor, read_any
from tgi.api.openai_schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    SagemakerRequest,
    VertexRequest,
)
from tgi.api.schema import CompatGenerateRequest, GenerateRequest
from tgi.errors import BodyError, MalformedBody, WrongShape

from .json_rows import ACCEPTED_HERE, ROWS, SERDE_ROWS

KINDS: dict[str, type] = {
    "G": GenerateRequest,
    "X": CompatGenerateRequest,
    "C": ChatRequest,
    "P": CompletionRequest,
    "S": SagemakerRequest,
    "V": VertexRequest,
}
CONTROL = "control character (\\u0000-\\u001F) found while parsing a string"
PREFIX = {
    422: "Failed to deserialize the JSON body into the target type: ",
    400: "Failed to parse the request body as JSON: ",
}


@pytest.mark.contract("12.1")
@pytest.mark.parametrize(("kind", "body", "status", "detail"), [*ROWS, *SERDE_ROWS])
def test_every_row_of_12_1_to_the_column(kind: str, body: str, status: int, detail: str) -> None:
    if not status:
        decode_body(KINDS[kind], body.encode())
        return
    with pytest.raises(BodyError) as caught:
        decode_body(KINDS[kind], body.encode())
    assert (caught.value.status, str(caught.value)) == (status, PREFIX[status] + detail)


@pytest.mark.parametrize(("kind", "body", "_detail"), ACCEPTED_HERE)
def test_what_openai_allows_is_accepted(kind: str, body: str, _detail: str) -> None:
    decode_body(KINDS[kind], body.encode())


def test_no_row_of_12_1_is_missing() -> None:
    counts = dict.fromkeys(KINDS, 0)
    for row in (*ROWS, *ACCEPTED_HERE):
        counts[row[0]] += 1
    assert counts == {"G": 48, "X": 2, "C": 47, "P": 10, "S": 6, "V": 5}


def refusal(body: bytes) -> str:
    with pytest.raises(MalformedBody) as caught:
        decode_body(GenerateRequest, body)
    return str(caught.value).removeprefix(PREFIX[400])


# What serde_json and serde_path_to_error say of a struct of this shape (run), where 12.1 has no row.
@pytest.mark.contract("D6")
@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", "EOF while parsing a value at line 1 column 0"),
        (b"  \n ", "EOF while parsing a value at line 2 column 1"),
        (b'{"inputs"', "EOF while parsing an object at line 1 column 9"),
        (b'{"inputs":', "inputs: EOF while parsing a value at line 1 column 10"),
        (b'{"inputs":"a', "inputs: EOF while parsing a string at line 1 column 12"),
        (b'{"inputs":"a",}', "trailing comma at line 1 column 15"),
        (b'{"inputs":"a","parameters":{"seed":1,}}', "parameters.?: trailing comma at line 1 column 38"),
        (b'{"inputs" "a"}', "expected `:` at line 1 column 11"),
        (b'{"inputs":"a" "b"}', "expected `,` or `}` at line 1 column 15"),
        (b"{inputs:1}", "key must be a string at line 1 column 2"),
        (b'{"inputs":"a","x":[1,]}', "x: expected value at line 1 column 22"),
        (b'{"inputs":"a","x":{"y":1,}}', "x: key must be a string at line 1 column 26"),
        (b'{"inputs":"a","x":[1 2]}', "x: expected `,` or `]` at line 1 column 22"),
        (b'{"inputs":"a","x":01}', "x: invalid number at line 1 column 20"),
        (b'{"inputs":"a","x":1.}', "x: invalid number at line 1 column 21"),
        (b'{"inputs":"a","x":1e+}', "x: invalid number at line 1 column 22"),
        (b'{"inputs":"a\nb"}', f"inputs: {CONTROL} at line 2 column 0"),
        (b'{"inputs":"\\q"}', "inputs: invalid escape at line 1 column 13"),
        (b'{"inputs":"\\u12', "inputs: EOF while parsing a string at line 1 column 15"),
        (b'{"inputs":"\\udc00"}', "inputs: lone leading surrogate in hex escape at line 1 column 17"),
        (b'{"inputs":"\\ud800\\ud800"}', "inputs: lone leading surrogate in hex escape at line 1 column 23"),
        (b'{"inputs":"\\ud800\\n"}', "inputs: unexpected end of hex escape at line 1 column 19"),
    ],
)
def test_what_is_not_json_is_refused(body: bytes, detail: str) -> None:
    assert refusal(body) == detail


def test_what_is_not_unicode_is_refused() -> None:
    assert refusal(b'{"inputs":"\xff"}').startswith("invalid unicode code point at line 1")


@pytest.mark.contract("D5")
def test_columns_count_bytes_and_lines_are_lines() -> None:
    with pytest.raises(WrongShape, match=r"parameters: invalid type: null, .* at line 2 column 28$"):
        decode_body(GenerateRequest, '{"inputs": "é",\n "é": 1, "parameters": null}'.encode())


def test_deep_nesting_is_refused_without_harm() -> None:
    decode_body(
        GenerateRequest, b'{"inputs":"a","x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    )
    assert refusal(b'{"inputs":"a","x":' + b"[" * 100_000).startswith("x: recursion limit exceeded")


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
json_values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('abé"\\', max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(json_values, st.booleans(), st.sampled_from([None, 1]))
def test_any_value_is_read_as_pythons_own_reader_does(
    value: object, ascii_only: bool, indent: int | None
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert read_any(Cursor(text)) == value
    # The list ends with what Python's reader is not trusted with, so that ours reads all of it.
    assert read_any(Cursor(f"[{text}, {2**64 - 1}]")) == [value, 2**64 - 1]


@given(st.text('{}[]",:0123456789.eE+-ntrufalsinput \\', max_size=30))
def test_nothing_but_a_body_error_is_raised(text: str) -> None:
    for kind in KINDS.values():
        for body in (text, '{"inputs":"a","parameters":{"grammar":' + text, '{"inputs":"a","x":' + text):
            with contextlib.suppress(BodyError):
                decode_body(kind, body.encode())


@pytest.mark.contract("D4")
def test_floats_are_those_of_float32() -> None:
    body = b'{"inputs":"a","parameters":{"temperature":0.1,"top_p":1e39,"typical_p":0.99999999999}}'
    parameters = decode_body(GenerateRequest, body).parameters
    assert parameters.temperature == 0.10000000149011612
    assert parameters.top_p == math.inf
    assert parameters.typical_p == 1.0


def test_sampling_is_on_without_parameters_and_off_with_an_empty_object() -> None:
    assert decode_body(GenerateRequest, b'{"inputs":"a"}').parameters.do_sample
    assert not decode_body(GenerateRequest, b'{"inputs":"a","parameters":{}}').parameters.do_sample
    assert not decode_body(GenerateRequest, b'["a",[]]').parameters.do_sample


def test_a_value_may_come_before_its_type() -> None:
    body = b'{"inputs":"a","parameters":{"grammar":{"value":"a","type":"regex"}}}'
    grammar = decode_body(GenerateRequest, body).parameters.grammar
    assert grammar is not None
    assert (grammar.type, grammar.value) == ("regex", "a")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[1e400]", "[0]: number out of range at line 1 column 6"),
        ("[NaN]", "[0]: expected value at line 1 column 2"),
        ("[-Infinity]", "[0]: invalid number at line 1 column 3"),
        ('["\\ud800"]', "[0]: unexpected end of hex escape at line 1 column 9"),
        ("[01]", "[0]: invalid number at line 1 column 3"),
        ("[1.]", "[0]: invalid number at line 1 column 4"),
        ("[1,]", "trailing comma at line 1 column 4"),
        ('{"a":1,}', "trailing comma at line 1 column 8"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "recursion limit exceeded"),
    ],
)
def test_what_pythons_reader_takes_and_serde_does_not(text: str, error: str) -> None:
    with pytest.raises(MalformedBody, match=re.escape(error)):
        read_any(Cursor(text))


def test_large_integers_are_floats() -> None:
    (value,) = read_any(Cursor(f"[{2**64}]"))
    assert type(value) is float


def test_a_long_list_is_refused_where_its_item_is() -> None:
    text = b'{"tokens":[' + b"1," * 1000 + b"-1]}"
    with pytest.raises(
        WrongShape, match=r"tokens\[1000\]: invalid value: integer `-1`, expected u32 at line 1"
    ):
        decode_body(DetokenizeRequest, text)
    with pytest.raises(
        WrongShape, match=r"tokens\[1\]: invalid type: boolean `true`, expected u32 at line 1"
    ):
        decode_body(DetokenizeRequest, b'{"tokens":[1,true]}')
