"""The bodies of requests, with TGI's names (tgi-behaviour 2.2): read by json_body, checked by validate."""

from typing import Annotated, Any

import attrs

from .json_body import I32, U32, U64, USize, read_string, reader_of
from .json_text import Cursor, read_any


@attrs.frozen
class Grammar:
    """A constraint on the text; `value` is a JSON schema or a regular expression."""

    type: str
    value: Any


@attrs.frozen
class JsonSchema:
    """The value of a grammar of type json_schema."""

    schema: Any
    name: str | None = None


_VALUES = {
    "json": read_any,
    "json_object": read_any,
    "regex": read_string,
    "json_schema": reader_of(JsonSchema),
}


def _read_grammar(cursor: Cursor) -> Grammar:
    """{"type": ..., "value": ...}; the type decides what the value must be."""
    first = cursor.peek()
    if first != "{":
        cursor.mismatch(first, "adjacently tagged enum GrammarType")
    found: dict[str, Any] = {}
    place = None
    for key in cursor.keys():  # noqa: SIM118 (no dict)
        if key in found:
            cursor.refuse(f"duplicate field `{key}`")
        cursor.colon()
        cursor.path.append(f".{key}")
        if key == "type":
            found[key] = _read_type(cursor)
        elif key == "value" and "type" in found:
            found[key] = _VALUES[found["type"]](cursor)
        else:
            if key == "value":
                place = cursor.at
            found[key] = read_any(cursor, exact=False)
        cursor.path.pop()
    for key in ("type", "value"):
        if key not in found:
            cursor.refuse(f"missing field `{key}`")
    if place is not None:
        _read_again(cursor, place, found)
    return Grammar(found["type"], found["value"])


def _read_again(cursor: Cursor, place: int, found: dict[str, Any]) -> None:
    """A value that came before its type is checked once the type is known."""
    end, cursor.at = cursor.at, place
    cursor.path.append(".value")
    found["value"] = _VALUES[found["type"]](cursor)
    cursor.path.pop()
    cursor.at = end


def _read_type(cursor: Cursor) -> str:
    first = cursor.peek()
    if first != '"':
        cursor.mismatch(first, "variant identifier")
    name = cursor.string()
    if name not in _VALUES:
        known = ", ".join(f"`{known}`" for known in _VALUES)
        cursor.refuse(f"unknown variant `{name}`, expected one of {known}")
    return name


@attrs.frozen
class GenerateParameters:
    """How to generate; the meaning of each is in tgi-behaviour 2.2."""

    best_of: USize | None = None
    temperature: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: I32 | None = None
    top_p: float | None = None
    typical_p: float | None = None
    do_sample: bool = False
    max_new_tokens: U32 | None = None
    return_full_text: bool | None = None
    stop: list[str] = attrs.field(factory=list)
    truncate: USize | None = None
    watermark: bool = False
    details: bool = False
    decoder_input_details: bool = False
    seed: U64 | None = None
    top_n_tokens: U32 | None = None
    grammar: Annotated[Grammar, _read_grammar] | None = None
    adapter_id: str | None = None


def _default_parameters() -> GenerateParameters:
    """Without any parameters TGI samples, with an empty object it does not (P-default)."""
    return GenerateParameters(do_sample=True)


@attrs.frozen
class GenerateRequest:
    """The body of `/generate`, `/generate_stream` and `/tokenize`."""

    inputs: str
    parameters: GenerateParameters = attrs.field(factory=_default_parameters)


@attrs.frozen
class CompatGenerateRequest:
    """The body of `/`."""

    inputs: str
    parameters: GenerateParameters = attrs.field(factory=_default_parameters)
    stream: bool = False
