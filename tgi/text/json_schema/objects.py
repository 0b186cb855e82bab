"""Rewriting of keywords for objects."""

import itertools
from typing import Any

from .arrays import MAX_CASES
from .automata import Names
from .errors import Unenforceable
from .negation import TYPES
from .rewriter import APPLICATORS, Part, closed, listed, mapping

_MAX_PATTERNS = 32
"""Maximum number of patterns for names, once they have no names in common."""
_OTHERS = [name for name in TYPES if name != "object"]


def properties(part: Part, value: Any) -> None:
    """Rewrite `properties`."""
    part.out["properties"] = {name: part.inside(one, "properties", name) for name, one in value.items()}


def additional_properties(part: Part, value: Any) -> None:
    """Rewrite `additionalProperties`."""
    part.out["additionalProperties"] = part.inside(value, "additionalProperties")


def pattern_properties(part: Part, value: Any) -> None:
    """Rewrite `patternProperties` so that no name has two of the patterns."""
    schemas: list[tuple[Names, Any]] = []
    for pattern, one in value.items():
        try:
            names = Names.of(pattern)
        except Unenforceable as error:
            raise Unenforceable(f"the pattern `{pattern}`: {error}") from error
        schemas.append((names, part.inside(one, "patternProperties", pattern)))
    part.out["patternProperties"] = {f"^(?:{names.expression})$": one for names, one in _apart(schemas)}


def _apart(schemas: list[tuple[Names, Any]]) -> list[tuple[Names, Any]]:
    """Return schemas for sets of names that have none in common. Raises Unenforceable."""
    found: list[tuple[Names, Any]] = []
    for names, schema in schemas:
        rest: list[tuple[Names, Any]] = []
        left: Names | None = names
        for known, other in found:
            common = None if left is None else known & left
            if left is None or common is None:
                rest.append((known, other))
                continue
            rest.append((common, {"allOf": [other, schema]}))
            if (only := known - left) is not None:
                rest.append((only, other))
            left = left - known
        found = rest if left is None else [*rest, (left, schema)]
        if len(found) > _MAX_PATTERNS:
            raise Unenforceable("too many of its patterns have names in common")
    return found


def property_names(part: Part, value: Any) -> None:
    """Rewrite `propertyNames` as patterns of names."""
    schema = part.resolve(value)
    if schema is True:
        return
    if schema is False:
        part.parts.append({"maxProperties": 0})
        return
    names: Names | None = None
    for keyword, one in schema.items():
        more = _names_with(part, keyword, one)
        if more is not None:
            names = more if names is None else names & more
            if names is None:
                part.parts.append({"maxProperties": 0})
                return
    if names is not None:
        _hold_names(part, names)


def _names_with(part: Part, keyword: str, value: Any) -> Names | None:
    """Return the names that obey a keyword; None if all do. Raises Unenforceable."""
    if keyword == "pattern":
        return Names.of(value)
    if keyword == "const":
        return Names.listed([value])
    if keyword == "enum":
        return Names.listed(listed(value))
    if keyword == "minLength":
        return Names.of(f"^[^]{{{int(value)},}}$")
    if keyword == "maxLength":
        return Names.of(f"^[^]{{0,{int(value)}}}$")
    if keyword != "type" and part.rewriter.restricts(keyword):
        raise Unenforceable(f"names cannot be held to `{keyword}`")
    return None


def _hold_names(part: Part, names: Names) -> None:
    """Restrict the names of an object's properties."""
    if "patternProperties" in part.raw:
        raise Unenforceable("it is beside `patternProperties`")
    excluded = [name for name in mapping(part.raw.get("properties")) if not names.has(name)]
    part.parts.append(
        {
            "properties": dict.fromkeys(excluded, False),
            "patternProperties": {f"^(?:{names.expression})$": True},
            "additionalProperties": False,
        }
    )


def required(part: Part, value: Any) -> None:
    """Rewrite `required`."""
    part.out["required"] = list(dict.fromkeys(value))


def property_count(part: Part, _: Any) -> None:
    """Rewrite `minProperties` and `maxProperties`, by cases where there are optional properties."""
    if not part.is_first("property count"):
        return
    raw, out = part.raw, part.out
    keywords = ("minProperties", "maxProperties")
    counts: dict[str, Any] = {name: int(raw[name]) for name in keywords if name in raw}
    needed = [name for name in listed(raw.get("required")) if isinstance(name, str)]
    optional = [
        name
        for name, schema in mapping(raw.get("properties")).items()
        if name not in needed and schema is not False
    ]
    least = max(0, counts.get("minProperties", 0) - len(needed))
    if not optional or not (least or "maxProperties" in counts):
        out |= counts
        return
    room = counts.get("maxProperties", len(needed) + least) - len(needed)
    cases: list[Any] = []
    for size in range(min(len(optional), max(room, 0)) + 1):
        for chosen in itertools.combinations(optional, size):
            case: dict[str, Any] = {"type": "object", "required": [*needed, *chosen]}
            if "maxProperties" in counts or size < least:
                # These and no others; without a maximum, others may join those that are enough.
                case["properties"] = {name: False for name in optional if name not in chosen}
                case |= counts
            cases.append(case)
            if len(cases) > MAX_CASES:
                raise Unenforceable("there are too many choices of optional properties")
    part.parts.append({"anyOf": [*cases, {"type": _OTHERS}]})


def dependencies(part: Part, value: Any) -> None:
    """Rewrite `dependentRequired`, `dependentSchemas` or `dependencies`.

    An object lacks the name, or has it with what it needs.
    """
    for name, needed in value.items():
        if isinstance(needed, list | str):
            others = [needed] if isinstance(needed, str) else needed  # a string in draft 3
            then = part.beside({"required": [name, *others]}, "dependencies", name)
        else:
            then = {"allOf": [{"required": [name]}, part.beside(needed, "dependencies", name)]}
        part.parts.append({"anyOf": [{"properties": {name: False}}, then]})


def unevaluated_properties(part: Part, value: Any) -> None:
    """Rewrite `unevaluatedProperties`."""
    raw = part.raw
    applicators = APPLICATORS & raw.keys()
    if value is True:
        return
    if not applicators:
        if "additionalProperties" not in raw:
            part.out["additionalProperties"] = part.inside(value, "unevaluatedProperties")
        return
    rest = {keyword: one for keyword, one in raw.items() if keyword != "unevaluatedProperties"}
    if value is not False or applicators - {"allOf", "$ref"}:
        raise Unenforceable("it is beside schemas that may apply or not")
    names = part.rewriter.declared(rest, part.place)
    if names is None:
        raise Unenforceable("it is beside objects of any properties")
    part.parts.append(closed(names))
