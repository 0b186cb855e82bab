"""The JSON that the value of each keyword must be."""

from collections.abc import Callable
from typing import Any

from .errors import Unenforceable

_JSON = (type(None), bool, int, float, str, list, dict)


def _is_schema(value: Any) -> bool:
    return isinstance(value, bool | dict)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    """Return whether a value is a count, which may be written with a fraction of 0."""
    return _is_number(value) and value >= 0 and value == int(value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _map_schemas(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_schema, value.values()))


_SHAPES: dict[str, tuple[Callable[[Any], bool], tuple[str, ...]]] = {
    "a string or a list of strings": (
        lambda value: isinstance(value, str) or (_are_names(value) and bool(value)),
        ("type",),
    ),
    "a list that is not empty": (lambda value: isinstance(value, list) and bool(value), ("enum",)),
    "a number": (_is_number, ("minimum", "maximum")),
    "a number, or a boolean in draft 4": (
        lambda value: isinstance(value, bool) or _is_number(value),
        ("exclusiveMinimum", "exclusiveMaximum"),
    ),
    "a number that is not 0": (lambda value: _is_number(value) and value != 0, ("multipleOf",)),
    "an integer that is not negative": (
        _is_count,
        ("minLength", "maxLength", "minItems", "maxItems", "minContains", "maxContains")  # noqa: RUF005
        + ("minProperties", "maxProperties"),
    ),
    "a string": (
        lambda value: isinstance(value, str),
        ("format", "$ref", "$dynamicRef", "$recursiveRef"),
    ),
    "a regular expression": (
        lambda value: not isinstance(value, _JSON) or isinstance(value, str),
        ("pattern",),
    ),
    "a boolean": (lambda value: isinstance(value, bool), ("uniqueItems",)),
    "a list of names": (_are_names, ("required",)),
    "a schema": (
        _is_schema,
        ("additionalItems", "contains", "unevaluatedItems", "additionalProperties", "propertyNames")  # noqa: RUF005
        + ("unevaluatedProperties", "not", "if", "then", "else"),
    ),
    "a schema or a list of schemas": (
        lambda value: _is_schema(value) or (isinstance(value, list) and all(map(_is_schema, value))),
        ("items",),
    ),
    "a list of schemas": (_are_schemas, ("prefixItems", "allOf", "anyOf", "oneOf")),
    "an object of schemas": (_map_schemas, ("properties", "patternProperties", "dependentSchemas")),
    "an object of lists of names": (
        lambda value: isinstance(value, dict) and all(map(_are_names, value.values())),
        ("dependentRequired",),
    ),
    "an object of schemas and lists of names": (
        lambda value: (
            isinstance(value, dict)
            and all(_is_schema(one) or isinstance(one, str) or _are_names(one) for one in value.values())
        ),
        ("dependencies",),
    ),
}
_SHAPE_OF = {keyword: (shape, fits) for shape, (fits, keywords) in _SHAPES.items() for keyword in keywords}


def check(keyword: str, value: Any) -> None:
    """Raise Unenforceable if the value of a keyword has not the right shape."""
    shape, fits = _SHAPE_OF.get(keyword, ("", None))
    if fits is not None and not fits(value):
        raise Unenforceable(f"it must be {shape}")
