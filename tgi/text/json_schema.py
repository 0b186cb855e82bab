"""Preparation of JSON schemas for enforcement: they are checked, stripped of annotations, and closed.

A schema has the meaning of JSON Schema 2020-12, narrowed as in TGI (R2.52) to keep a model from rambling: a
text has at most one space between its parts, and a schema with `properties` describes an object that has no
others, unless the schema allows them.
"""

import json
from collections.abc import Iterator
from typing import Any

MAX_DEPTH = 64
"""Maximum nesting of schemas. llguidance refuses about 120 nested braces."""
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
"""Formats that are enforced. Others are annotations, as JSON Schema allows."""
_YEAR = r"^(000[1-9]|00[1-9]\d|0[1-9]\d\d|[1-9]\d{3})"
_PATTERNS = {"date": _YEAR, "time": "^.{6}[0-5]", "date-time": _YEAR + ".{13}[0-5]"}
"""Patterns without year 0 and leap seconds, which RFC 3339 allows but common libraries do not read."""
_ONE = frozenset(("items", "additionalItems", "additionalProperties", "contains", "propertyNames"))
"""Keywords whose value is a schema."""
_LISTS = frozenset(("allOf", "anyOf", "oneOf", "prefixItems", "items"))
"""Keywords whose value is a list of schemas."""
_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
"""Keywords whose value maps names to schemas."""
_COMBINERS = frozenset(("allOf", "anyOf", "oneOf", "$ref"))
_TYPES = _COMBINERS | {"type", "enum", "const"}
_OPENING = frozenset(("additionalProperties", "patternProperties", "unevaluatedProperties", "minProperties"))


class GrammarError(Exception):
    """A grammar is invalid or too large, or a text does not follow it; the message is one line."""


def prepare_schema(schema: Any) -> dict[str, Any]:
    """Return a copy of a schema for llguidance, alone or after `%json` in a Lark grammar.

    Raises GrammarError if `schema` is not a schema that any value obeys.
    """
    if schema is False:
        raise GrammarError("the schema `false` allows nothing")
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise GrammarError("a schema must be an object or a boolean")
    closing = not any(_combines(part) for part in _parts(schema))
    prepared = _prepare(schema, closing)
    prepared["x-guidance"] = {
        "whitespace_pattern": "[ ]",
        "item_separator": ",",
        "key_separator": ":",
        "coerce_one_of": True,
        "lenient": False,
    }
    return prepared


def _subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each schema directly within this one, after its keyword and its index or name in a collection."""
    for keyword, value in schema.items():
        if keyword in _LISTS and isinstance(value, list):
            for index, part in enumerate(value):
                yield keyword, index, part
        elif keyword in _MAPS and isinstance(value, dict):
            for name, part in value.items():
                yield keyword, name, part
        elif keyword in _ONE:
            yield keyword, None, value


def _parts(schema: dict[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """Yield a schema and all schemas within it. Raises GrammarError if they are nested too deep."""
    if depth > MAX_DEPTH:
        raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep")
    yield schema
    for _, _, part in _subschemas(schema):
        if isinstance(part, dict):
            yield from _parts(part, depth + 1)


def _combines(schema: dict[str, Any]) -> bool:
    """Return whether a schema is an intersection: closing one part would forbid the properties of others."""
    combiners = [keyword for keyword in _COMBINERS if keyword in schema]
    all_of = schema.get("allOf")
    return (
        (isinstance(all_of, list) and len(all_of) > 1)
        or len(combiners) > 1
        or bool(combiners and ("properties" in schema or "required" in schema))
    )


def _prepare(schema: dict[str, Any], closing: bool) -> dict[str, Any]:
    prepared: dict[str, Any] = {
        keyword: dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value
        for keyword, value in schema.items()
        if keyword != "x-guidance"
    }
    format_ = prepared.get("format")
    if isinstance(format_, str) and format_ not in _FORMATS:
        del prepared["format"]
    elif format_ in _PATTERNS and prepared.get("type") == "string":
        prepared.setdefault("pattern", _PATTERNS[format_])
    if "properties" in schema and not _TYPES & schema.keys():
        prepared["type"] = "object"
    if closing and _closes(schema):
        prepared["additionalProperties"] = False
    for keyword, place, part in _subschemas(schema):
        if isinstance(part, dict):
            if place is None:
                prepared[keyword] = _prepare(part, closing)
            else:
                prepared[keyword][place] = _prepare(part, closing)
    return prepared


def _closes(schema: dict[str, Any]) -> bool:
    properties, required = schema.get("properties"), schema.get("required", [])
    return (
        isinstance(properties, dict)
        and isinstance(required, list)
        and not _OPENING & schema.keys()
        and all(isinstance(name, str) and name in properties for name in required)
    )


def read_schema(text: str) -> Any:
    """Return the schema in a JSON text. Raises GrammarError."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise GrammarError(f"the schema is not JSON: {error}") from error
    except RecursionError as error:
        raise GrammarError(f"the schema is nested more than {MAX_DEPTH} deep") from error
