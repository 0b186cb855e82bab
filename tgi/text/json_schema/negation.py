"""The opposite of a schema: what is left of all values without those that obey it.

It works on schemas as they are given, and is exact: what cannot be said in keywords raises Unenforceable.
"""

import itertools
from collections.abc import Callable
from typing import Any

import attrs

from .errors import Unenforceable
from .shapes import check

TYPES = ("null", "boolean", "number", "string", "array", "object")
Resolve = Callable[[Any], Any]
"""Returns the schema that a `$ref` leads to, of a schema that is nothing else; any other as it is."""
MAX_DEPTH = 8
"""Maximum depth of schemas within each other."""


def type_of(value: Any) -> str:
    """Return the JSON type of a value; integers are numbers."""
    for kind, name in ((bool, "boolean"), (str, "string"), (dict, "object"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null" if value is None else "number"


def types_of(schema: dict[str, Any]) -> set[str] | None:
    """Return the values of `type`, or None if there are none."""
    types = schema.get("type")
    return None if types is None else {types} if isinstance(types, str) else set(types)


def constants(schema: dict[str, Any]) -> list[Any] | None:
    """Return the values that `const` or `enum` leaves, or None if there is neither."""
    return [schema["const"]] if "const" in schema else schema.get("enum")


def same(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal."""
    if type_of(one) != type_of(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


@attrs.frozen
class Excluded:
    """The value of `pattern` in an opposite: strings that lack a pattern, or are none of some texts."""

    pattern: str | None = None
    texts: tuple[str, ...] = ()


@attrs.frozen
class _Within:
    """A schema whose opposite is sought."""

    schema: dict[str, Any]
    negate: Callable[[Any], Any]
    """Returns the opposite of a schema within."""


def negated(schema: Any, resolve: Resolve, depth: int = 0) -> Any:
    """Return a schema of the values that do not obey this one. Raises Unenforceable."""
    if depth > MAX_DEPTH:
        raise Unenforceable("it is nested too deep")
    schema = resolve(schema)
    if isinstance(schema, bool):
        return not schema
    within = _Within(schema, lambda part: negated(part, resolve, depth + 1))
    options: list[Any] = []
    for keyword, value in schema.items():
        try:
            check(keyword, value)
        except Unenforceable as error:
            raise Unenforceable(f"`{keyword}` within: {error}") from error
        if keyword in _BROKEN:
            options += _BROKEN[keyword](value, within)
        elif keyword in WITHOUT_OPPOSITE:
            raise Unenforceable(f"`{keyword}` within `not` cannot be enforced")
    if not options:
        return False
    return options[0] if len(options) == 1 else {"anyOf": options}


def _beyond(kind: str, keyword: str, step: int = 0) -> Callable[[Any, _Within], list[Any]]:
    """Return a function for a bound of values of a type: they obey another keyword."""

    def broken(value: Any, _: _Within) -> list[Any]:
        return [{"type": kind, keyword: value + step}] if not step or value + step >= 0 else []

    return broken


def _beyond_exclusive(inclusive: str, opposite: str) -> Callable[[Any, _Within], list[Any]]:
    """Return a function for an exclusive bound, which is a boolean in draft 4."""

    def broken(value: Any, within: _Within) -> list[Any]:
        if isinstance(value, bool):
            bound = within.schema.get(inclusive)
            return [] if not value or bound is None else [{"type": "number", opposite: bound}]
        return [{"type": "number", opposite: value}]

    return broken


def _broken_properties(value: Any, within: _Within) -> list[Any]:
    return [
        {"type": "object", "properties": {name: rest}, "required": [name]}
        for name, part in value.items()
        if (rest := within.negate(part)) is not False
    ]


def _broken_items(value: Any, within: _Within) -> list[Any]:
    if isinstance(value, list) or "prefixItems" in within.schema:
        raise Unenforceable("`items` behind others within `not` cannot be enforced")
    rest = within.negate(value)
    return [] if rest is False else [{"type": "array", "contains": rest}]


def _broken_contains(value: Any, within: _Within) -> list[Any]:
    if {"minContains", "maxContains"} & within.schema.keys():
        raise Unenforceable("a number of items within `not` cannot be enforced")
    return [{"type": "array", "items": within.negate(value)}]


def _broken_one_of(value: Any, within: _Within) -> list[Any]:
    pairs = [{"allOf": list(pair)} for pair in itertools.combinations(value, 2)]
    return [{"allOf": [within.negate(part) for part in value]}, *pairs]


def _broken_if(value: Any, within: _Within) -> list[Any]:
    options = []
    if "then" in within.schema:
        options.append({"allOf": [value, within.negate(within.schema["then"])]})
    if "else" in within.schema:
        options.append({"allOf": [within.negate(value), within.negate(within.schema["else"])]})
    return options


_BROKEN: dict[str, Callable[[Any, _Within], list[Any]]] = {
    "minimum": _beyond("number", "exclusiveMaximum"),
    "maximum": _beyond("number", "exclusiveMinimum"),
    "exclusiveMinimum": _beyond_exclusive("minimum", "maximum"),
    "exclusiveMaximum": _beyond_exclusive("maximum", "minimum"),
    "minLength": _beyond("string", "maxLength", -1),
    "maxLength": _beyond("string", "minLength", 1),
    "minItems": _beyond("array", "maxItems", -1),
    "maxItems": _beyond("array", "minItems", 1),
    "minProperties": _beyond("object", "maxProperties", -1),
    "maxProperties": _beyond("object", "minProperties", 1),
    "type": lambda _, within: _of_other_types(types_of(within.schema) or set()),
    "const": lambda value, _: [_none_of([value])],
    "enum": lambda value, _: [_none_of(value)],
    "required": lambda value, _: [{"type": "object", "properties": {name: False}} for name in value],
    "properties": _broken_properties,
    "dependentRequired": lambda value, _: [
        {"type": "object", "required": [name], "properties": {other: False}}
        for name, others in value.items()
        for other in others
    ],
    "items": _broken_items,
    "contains": _broken_contains,
    "pattern": lambda value, _: [{"type": "string", "pattern": Excluded(value)}],
    "allOf": lambda value, within: [within.negate(part) for part in value],
    "anyOf": lambda value, within: [{"allOf": [within.negate(part) for part in value]}],
    "oneOf": _broken_one_of,
    "not": lambda value, _: [value],
    "if": _broken_if,
}
"""Functions that return schemas of the values that do not obey a keyword; none if it forbids nothing."""
WITHOUT_OPPOSITE = frozenset(
    ("format", "multipleOf", "prefixItems", "additionalItems", "minContains", "maxContains", "uniqueItems")  # noqa: RUF005
    + ("unevaluatedItems", "patternProperties", "additionalProperties", "propertyNames", "dependencies")
    + ("dependentSchemas", "unevaluatedProperties", "$ref", "$dynamicRef", "$recursiveRef")
)
"""Keywords that restrict values, of which the opposite cannot be said."""


def _of_other_types(types: set[str]) -> list[Any]:
    if "integer" in types and "number" not in types:
        raise Unenforceable("numbers that are no integers cannot be told by a schema")
    others = [name for name in TYPES if name not in types]
    return [{"type": others}] if others else []


def _none_of(values: list[Any]) -> Any:
    """Return a schema of all values but some."""
    by_type: dict[str, list[Any]] = {name: [] for name in TYPES}
    for value in values:
        by_type[type_of(value)].append(value)
    options: list[Any] = [{"type": name} for name in TYPES if not by_type[name]]
    if by_type["boolean"]:
        options += [{"const": value} for value in (True, False) if value not in by_type["boolean"]]
    if by_type["string"]:
        options.append({"type": "string", "pattern": Excluded(texts=tuple(by_type["string"]))})
    if by_type["number"]:
        options += _between(sorted(set(by_type["number"])))
    for name, differing in (("array", _other_array), ("object", _other_object)):
        if by_type[name]:
            options.append({"allOf": [{"type": name}, *(differing(value) for value in by_type[name])]})
    return {"anyOf": options} if options else False


def _other_array(value: list[Any]) -> Any:
    size = len(value)
    options: list[Any] = [{"minItems": size + 1}, *([{"maxItems": size - 1}] if size else [])]
    for index, part in enumerate(value):
        options.append({"prefixItems": [*[True] * index, _none_of([part])], "minItems": index + 1})
    return {"anyOf": options}


def _other_object(value: dict[str, Any]) -> Any:
    options: list[Any] = [{"minProperties": len(value) + 1}]
    for name, part in value.items():
        options += [
            {"properties": {name: False}},
            {"properties": {name: _none_of([part])}, "required": [name]},
        ]
    return {"anyOf": options}


def _between(values: list[Any]) -> list[Any]:
    bounds = [None, *values, None]
    return [
        {"type": "number"}
        | ({} if low is None else {"exclusiveMinimum": low})
        | ({} if high is None else {"exclusiveMaximum": high})
        for low, high in itertools.pairwise(bounds)
    ]
