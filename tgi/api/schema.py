"""The bodies of requests, with TGI's names (tgi-behaviour 2.2): read by json_body, checked by validate."""

from typing import Annotated, Any, ClassVar

import attrs

from .json_body import I32, U32, U64, Custom, Read, USize, attempt, read_string, reader_of
from .json_text import Cursor, read_any


@attrs.frozen
class Grammar:
    """A constraint on the text; `value` is a JSON schema or a regular expression."""

    type: str
    value: Any


SCHEMA = Annotated[
    Any,
    Custom(
        read_any,
        {
            "anyOf": [dict, bool, {"type": "string"}],
            "description": "A JSON schema, or a string that holds one.",
        },
    ),
]
"""Anything is read, for validation to refuse (V22a)."""


@attrs.frozen
class JsonSchema:
    """The value of a grammar of type json_schema."""

    json_name: ClassVar = "JsonSchemaConfig"
    schema: SCHEMA
    name: str | None = None


VALUES: dict[str, Read] = {
    "json": read_any,
    "json_object": read_any,
    "regex": read_string,
    "json_schema": reader_of(JsonSchema),
}
"""What the value of each type of grammar must be."""


def _read_grammar(cursor: Cursor) -> Grammar:
    found = read_tagged(cursor, VALUES)
    if "value" not in found:
        cursor.refuse("missing field `value`")
    return Grammar(found["type"], found["value"])


def read_tagged(cursor: Cursor, values: dict[str, Read], others: tuple[str, ...] = ()) -> dict[str, Any]:
    """{"type": ..., "value": ...}; the type decides what the value must be, and may come after it.

    Of the keys `others`, which are TGI's not, the places are given.
    """
    first = cursor.peek()
    if first != "{":
        cursor.mismatch(first, "adjacently tagged enum GrammarType")
    found: dict[str, Any] = {}
    place = None
    for key in cursor.keys():  # noqa: SIM118 (no dict)
        if key in found and key in ("type", "value"):
            cursor.refuse_key(f"duplicate field `{key}`")
        cursor.colon()
        cursor.path.append(f".{key}")
        if key == "type":
            found[key] = _read_type(cursor, values)
        elif key == "value" and "type" in found:
            found[key] = values[found["type"]](cursor)
        else:
            cursor.peek()
            if key == "value":
                place = cursor.at
            if key in ("value", *others):
                found[key] = cursor.at
            read_any(cursor, exact=False)
        cursor.path.pop()
    if "type" not in found:
        cursor.refuse("missing field `type`")
    if place is not None:
        found["value"] = read_at(cursor, place, "value", values[found["type"]])
    return found


def read_at(cursor: Cursor, place: int, key: str, read: Read) -> Any:
    """The value of a key that was passed over at `place`."""
    cursor.path.append(f".{key}")
    value = attempt(read, cursor, place)
    cursor.path.pop()
    return value


def _read_type(cursor: Cursor, values: dict[str, Read]) -> str:
    first = cursor.peek()
    if first != '"':
        cursor.mismatch(first, "variant identifier")
    name = cursor.string()
    if name not in values:
        known = ", ".join(f"`{known}`" for known in values)
        cursor.refuse(f"unknown variant `{name}`, expected one of {known}")
    return name


def variant(types: list[str], value: Any, key: str = "value", *, required: bool = True) -> dict[str, Any]:
    """The OpenAPI schema of one kind of grammar."""
    return {
        "type": "object",
        "properties": {"type": {"type": "string", "enum": types}, key: value},
        "required": ["type", key] if required else ["type"],
    }


GRAMMAR = Custom(
    _read_grammar,
    {
        "oneOf": [
            variant(["json", "json_object"], SCHEMA),
            variant(["regex"], str),
            variant(["json_schema"], JsonSchema),
        ]
    },
    "GrammarType",
)


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
    grammar: Annotated[Grammar, GRAMMAR] | None = None
    adapter_id: str | None = None


def default_parameters() -> GenerateParameters:
    """Without any parameters TGI samples, with an empty object it does not (P-default)."""
    return GenerateParameters(do_sample=True)


@attrs.frozen
class GenerateRequest:
    """The body of `/generate`, `/generate_stream` and `/tokenize`."""

    inputs: str
    parameters: GenerateParameters = attrs.field(factory=default_parameters)


@attrs.frozen
class CompatGenerateRequest:
    """The body of `/`."""

    inputs: str
    parameters: GenerateParameters = attrs.field(factory=default_parameters)
    stream: bool = False
