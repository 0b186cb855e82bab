"""Decoding of bodies: which are accepted, and what is said of others."""

import contextlib
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.api.bodies import MAX_DEPTH, decode
from tgi.api.native import generation_of
from tgi.api.native_bodies import DetokenizeRequest, GenerateRequest, RegexGrammar
from tgi.api.openapi import ROUTES
from tgi.api.platforms import INSTANCES
from tgi.errors import BodyError, MalformedBody, ValidationError, WrongShape

from .json_rows import ACCEPTED_HERE, MORE_ROWS, PATHS, REFUSED_HERE, ROWS

BODIES = {kind: next(r.body for r in ROUTES if r.path == path and r.body) for kind, path in PATHS.items()}
PREFIX = {
    422: "Failed to deserialize the JSON body into the target type: ",
    400: "Failed to parse the request body as JSON: ",
}


def read(kind: str, body: str) -> Any:
    value = decode(body.encode(), *BODIES[kind])
    if kind == "V":
        for index, raw in enumerate(value.instances):
            decode(bytes(raw), *INSTANCES, at=f"$.instances[{index}]")
    return value


@pytest.mark.contract("12.1")
@pytest.mark.parametrize(("kind", "body", "status", "text"), [*ROWS, *MORE_ROWS, *REFUSED_HERE])
def test_rows_of_12_1_have_their_status_and_say_what_is_wrong_where(
    kind: str, body: str, status: int, text: str
) -> None:
    if not status:
        read(kind, body)
        return
    with pytest.raises(BodyError) as refusal:
        read(kind, body)
    assert (refusal.value.status, str(refusal.value)) == (status, PREFIX[status] + text)


@pytest.mark.parametrize(("kind", "body"), ACCEPTED_HERE)
def test_bodies_that_openai_allows_are_accepted(kind: str, body: str) -> None:
    read(kind, body)


def test_no_row_of_12_1_is_missing() -> None:
    counts = dict.fromkeys(BODIES, 0)
    for row in (*ROWS, *ACCEPTED_HERE, *REFUSED_HERE):
        counts[row[0]] += 1
    assert counts == {"G": 48, "X": 2, "C": 47, "P": 10, "S": 6, "V": 5}


def refusal(body: bytes) -> str:
    with pytest.raises(MalformedBody) as caught:
        decode(body, GenerateRequest)
    return str(caught.value).removeprefix(PREFIX[400])


@pytest.mark.contract("D6")
@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "Input data was truncated"),
        (b"  \n ", "Input data was truncated"),
        (b'{"inputs"', "Input data was truncated"),
        (b'{"inputs":', "Input data was truncated"),
        (b'{"inputs":"a', "Input data was truncated"),
        (b'{"inputs":"a",}', "trailing comma in object (byte 14)"),
        (b'{"inputs":"a","parameters":{"seed":1,}}', "trailing comma in object (byte 37)"),
        (b'{"inputs" "a"}', "expected ':' (byte 10)"),
        (b'{"inputs":"a" "b"}', "expected ',' or '}' (byte 14)"),
        (b"{inputs:1}", "object keys must be strings (byte 1)"),
        (b'{"inputs":"a","x":[1,]}', "trailing comma in array"),
        (b'{"inputs":"a","x":{"y":1,}}', "trailing comma in object"),
        (b'{"inputs":"a","x":[1 2]}', "expected ',' or ']'"),
        (b'{"inputs":"a","x":01}', "invalid number"),
        (b'{"inputs":"a","x":1.}', "invalid number"),
        (b'{"inputs":"a","x":1e+}', "invalid number"),
        (b'{"inputs":"a\nb"}', "invalid character (byte 12)"),
        (b'{"inputs":"\\q"}', "invalid escape character in string"),
        (b'{"inputs":"\\u12', "truncated"),
        (b'{"inputs":"\\udc00"}', "invalid utf-16 surrogate pair"),
        (b'{"inputs":"\\ud800\\ud800"}', "surrogate pair"),
        (b'{"inputs":"\\ud800\\n"}', "surrogate pair"),
        (b'{"inputs":"a","x":"\\ud800"}', "surrogate pair"),
        (b'{"inputs":"\xff"}', "Invalid UTF-8 (byte 11)"),
        (b'{"inputs":"a","x":"\xff"}', "Invalid UTF-8 (byte 19)"),
        (b'{"inputs":"a","\xff":1}', "Invalid UTF-8 (byte 15)"),
        (b'\xef\xbb\xbf{"inputs":"a"}', "invalid character (byte 0)"),
        (b'{"inputs":"a","x":' + b"1" * 5000 + b"}", "Integer value out of range"),
    ],
)
def test_text_that_is_not_json_is_400(body: bytes, text: str) -> None:
    assert text in refusal(body)


def test_deep_nesting_is_refused_without_harm() -> None:
    deep = b'{"inputs":"a","x":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    decode(deep, GenerateRequest)
    decode(b'{"inputs":"' + b"[" * 1000 + b'\\"[","x":[' + b"[]," * 1000 + b"1]}", GenerateRequest)
    assert refusal(deep.replace(b'"x":', b'"x":[')) == "recursion limit exceeded"
    for field in (b"x", b"parameters"):
        assert refusal(b'{"inputs":"a","%b":' % field + b"[" * 100_000) == "recursion limit exceeded"


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
    text = json.dumps({"type": "json", "value": value}, ensure_ascii=ascii_only, indent=indent)
    body = f'{{"inputs": "a", "unknown": {text}, "parameters": {{"grammar": {text}}}}}'
    assert read("G", body).parameters.grammar.value == value


@given(st.text('{}[]",:0123456789.eE+-ntrufalsinput \\', max_size=30))
def test_nothing_but_a_body_error_is_raised(text: str) -> None:
    for kind in BODIES:
        for body in (text, '{"inputs":"a","parameters":{"grammar":' + text, '{"inputs":"a","x":' + text):
            with contextlib.suppress(BodyError):
                read(kind, body)


@pytest.mark.contract("D4")
def test_floats_are_those_of_float32() -> None:
    parameters = read("G", '{"inputs":"a","parameters":{"temperature":0.1,"top_p":0.3}}').parameters
    sampling = generation_of("a", parameters).sampling
    assert (sampling.temperature, sampling.top_p) == (0.10000000149011612, 0.30000001192092896)
    for name, value in (("top_p", "1e39"), ("typical_p", "0.99999999999"), ("temperature", "1e-50")):
        parameters = read("G", f'{{"inputs":"a","parameters":{{"{name}":{value}}}}}').parameters
        with pytest.raises(ValidationError, match=f"`{name}` must be"):
            generation_of("a", parameters)


def test_sampling_is_on_without_parameters_and_off_with_an_empty_object() -> None:
    assert read("G", '{"inputs":"a"}').parameters.do_sample
    assert not read("G", '{"inputs":"a","parameters":{}}').parameters.do_sample


def test_a_value_may_come_before_its_type() -> None:
    body = '{"inputs":"a","parameters":{"grammar":{"value":"a","type":"regex"}}}'
    assert read("G", body).parameters.grammar == RegexGrammar("a")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ('{"inputs":"a","parameters":{"top_k":1,"top_k":1}}', "`$.parameters`"),
        (
            '{"inputs":"a","parameters":{"grammar":{"type":"json","value":1,"value":1}}}',
            "`$.parameters.grammar`",
        ),
    ],
)
def test_a_field_that_comes_twice_is_refused_with_its_path(body: str, path: str) -> None:
    with pytest.raises(WrongShape, match="more than once") as refusal:
        read("G", body)
    assert str(refusal.value).endswith(path)


def test_keys_that_come_twice_where_any_json_is_allowed_are_accepted() -> None:
    schema = '{"type":"object","type":"object","properties":{"a":{},"a":{}}}'
    body = f'{{"inputs":"a","x":{schema},"parameters":{{"grammar":{{"type":"json","value":{schema}}}}}}}'
    assert read("G", body).parameters.grammar.value == json.loads(schema)


@pytest.mark.parametrize(
    "inside",
    [
        b'{"a":1,' + b",".join(b'"%d":1' % number for number in range(200_000)) + b',"a":1}',
        b"[" * 60 + b"]" * 60 + b"," + b",".join([b"{}"] * 400_000),
        b'"' + b"\\[" * 500_000 + b'"',
        b"1" * 1_000_000,
    ],
)
def test_hostile_bodies_take_a_time_in_proportion_to_their_length(inside: bytes) -> None:
    begin = time.process_time()
    with contextlib.suppress(BodyError):
        decode(b'{"inputs":"a","x":[' + inside + b"]}", GenerateRequest)
    assert time.process_time() - begin < 5


def test_a_long_list_is_refused_where_its_item_is() -> None:
    text = b'{"tokens":[' + b"1," * 1000 + b"-1]}"
    with pytest.raises(WrongShape, match=r"Expected `int` >= 0 - at `\$\.tokens\[1000\]`"):
        decode(text, DetokenizeRequest)
    with pytest.raises(WrongShape, match=r"Expected `int`, got `bool` - at `\$\.tokens\[1\]`"):
        decode(b'{"tokens":[1,true]}', DetokenizeRequest)
