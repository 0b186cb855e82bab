"""Whether two schemas may hold at once."""

from typing import Any

from .errors import Unenforceable
from .negation import MAX_DEPTH, TYPES, Resolve, constants, same, type_of, types_of
from .shapes import check


def are_disjoint(one: Any, other: Any, resolve: Resolve, depth: int = 0) -> bool:
    """Return whether it is certain that no value obeys both schemas. Raises Unenforceable."""
    one, other = _checked(one, resolve), _checked(other, resolve)
    if one is False or other is False:
        return True
    if depth > MAX_DEPTH or one is True or other is True:
        return False
    for schema, rest in ((one, other), (other, one)):
        for keyword in ("anyOf", "oneOf"):
            options = schema.get(keyword)
            if options and all(are_disjoint(option, rest, resolve, depth + 1) for option in options):
                return True
        if any(are_disjoint(part, rest, resolve, depth + 1) for part in schema.get("allOf", [])):
            return True
    kinds = _possible_types(one, resolve) & _possible_types(other, resolve)
    return (
        not kinds
        or _without_common_constant(one, other)
        or (kinds == {"object"} and _without_common_object(one, other, resolve, depth))
        or (kinds == {"number"} and _are_apart(_bounds(one), _bounds(other)))
    )


def _checked(schema: Any, resolve: Resolve) -> Any:
    """Return a schema without a `$ref`, all of whose keywords have the right shape. Raises Unenforceable."""
    schema = resolve(schema)
    if isinstance(schema, dict):
        for keyword, value in schema.items():
            check(keyword, value)
    elif not isinstance(schema, bool):
        raise Unenforceable("a schema must be an object or a boolean")
    return schema


def _possible_types(schema: Any, resolve: Resolve, depth: int = 0) -> set[str]:
    """Return the JSON types that a value which obeys a schema may have."""
    schema = _checked(schema, resolve)
    if schema is False:
        return set()
    found = set(TYPES)
    if depth > MAX_DEPTH or schema is True:
        return found
    if (types := types_of(schema)) is not None:
        found &= {"number" if name == "integer" else name for name in types}
    if (values := constants(schema)) is not None:
        found &= {type_of(value) for value in values}
    for part in schema.get("allOf", []):
        found &= _possible_types(part, resolve, depth + 1)
    for keyword in ("anyOf", "oneOf"):
        if options := schema.get(keyword):
            found &= set().union(*(_possible_types(option, resolve, depth + 1) for option in options))
    return found


def _without_common_constant(one: dict[str, Any], other: dict[str, Any]) -> bool:
    for schema, rest in ((one, other), (other, one)):
        values = constants(schema)
        if values is None:
            continue
        others = constants(rest)
        if all(
            not _may_obey(value, rest)
            or (others is not None and not any(same(value, other_) for other_ in others))
            for value in values
        ):
            return True
    return False


def _may_obey(value: Any, schema: dict[str, Any]) -> bool:
    """Return False if a value certainly does not obey a schema's type, bounds or pattern."""
    types, kind = types_of(schema), type_of(value)
    if types is not None and kind not in types:
        is_integer = kind == "number" and float(value).is_integer()
        if not (is_integer and "integer" in types):
            return False
    if kind == "number":
        low, high = _bounds(schema)
        return bool(low <= value <= high)
    if kind == "string":
        least, most = schema.get("minLength", 0), schema.get("maxLength", len(value))
        return bool(least <= len(value) <= most)
    return True


def _bounds(schema: dict[str, Any]) -> tuple[float, float]:
    return schema.get("minimum", float("-inf")), schema.get("maximum", float("inf"))


def _are_apart(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] > other[1] or other[0] > one[1]


def _without_common_object(one: dict[str, Any], other: dict[str, Any], resolve: Resolve, depth: int) -> bool:
    return any(
        are_disjoint(_property(one, name), _property(other, name), resolve, depth + 1)
        for name in {*one.get("required", []), *other.get("required", [])}
    )


def _property(schema: dict[str, Any], name: str) -> Any:
    """Return the schema of a property."""
    if name in schema.get("properties", {}):
        return schema["properties"][name]
    return True if "patternProperties" in schema else schema.get("additionalProperties", True)
