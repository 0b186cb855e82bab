"""Rewriting of keywords for objects."""

import functools
import itertools
from typing import Any

from . import formats, scalars
from .arrays import MAX_CASES
from .automata import Names
from .errors import Unenforceable
from .negation import TYPES
from .rewriter import APPLICATORS, Part, closed, listed, mapping
from .shapes import check

_MAX_PATTERNS = 32
"""Maximum number of patterns for names, once they have no names in common."""
_OTHERS = [name for name in TYPES if name != "object"]


def properties(part: Part, value: Any) -> None:
    """Rewrite `properties`."""
    for name, one in value.items():
        _list(part, name, part.inside(one, "properties", name))


def _list(part: Part, name: str, schema: Any) -> None:
    """Add the schema of a property."""
    found = part.out.setdefault("properties", {})
    found[name] = {"allOf": [found[name], schema]} if name in found else schema


def additional_properties(part: Part, value: Any) -> None:
    """Rewrite `additionalProperties`."""
    part.out["additionalProperties"] = part.inside(value, "additionalProperties")


def pattern_properties(part: Part, value: Any) -> None:
    """Rewrite `patternProperties` so that no name has two of the patterns.

    llguidance takes a comma for another property wherever there is a schema for one, and cannot go on from
    there if all names are listed or have other patterns. So names that may run out are listed, here and for
    `propertyNames`, and other names have a pattern where patterns may leave none.
    """
    schemas: list[tuple[Names, Any]] = []
    for pattern, one in value.items():
        try:
            names = Names.of(pattern)
        except Unenforceable as error:
            raise Unenforceable(f"the pattern `{pattern}`: {error}") from error
        schemas.append((names, part.inside(one, "patternProperties", pattern)))
    part.out["patternProperties"] = {}
    apart = _apart(schemas)
    others = part.out.get("additionalProperties", True)
    if others is not False and not _leave_others(part):
        if (rest := Names.outside(names for names, _ in schemas)) is not None:
            apart.append((rest, others))
        part.out["additionalProperties"] = False
    for names, one in apart:
        if (known := names.all_among(part.rewriter.mentioned)) is None:
            part.out["patternProperties"][f"^(?:{names.expression})$"] = one
        for name in known or ():
            _list(part, name, one)


def _leave_others(part: Part) -> bool:
    """Return whether there are names without any pattern of the document."""
    try:
        rest = Names.outside(map(Names.of, part.rewriter.patterns))
    except Unenforceable:
        return True  # such a pattern is refused, or hardly leaves no name
    return rest is not None and rest.all_among(frozenset()) is None


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
    names = _names(part, value)
    if names is False:
        part.parts.append(closed(()))
    elif names is not True:
        _hold_names(part, names)


def _names(part: Part, schema: Any) -> Names | bool:
    """Return the names that obey a schema; True if all do, False if none. Raises Unenforceable."""
    schema = part.resolve(schema)
    if isinstance(schema, bool):
        return schema
    found: Names | bool = True
    for keyword, value in schema.items():
        check(keyword, value)
        found = _both(found, _names_with(part, keyword, value))
    return found


def _both(one: Names | bool, other: Names | bool) -> Names | bool:
    """Return the names in both sets."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one and other
    return one & other or False


def _names_with(part: Part, keyword: str, value: Any) -> Names | bool:
    """Return the names that obey a keyword. Raises Unenforceable."""
    match keyword:
        case "type":
            return "string" in value  # a name or a list of names
        case "pattern":
            return Names.of(value)
        case "const":
            return Names.listed([value])
        case "enum":
            return Names.listed(value)
        case "minLength":
            return Names.of(f"^[^]{{{int(value)},}}$")
        case "maxLength":
            return Names.of(f"^[^]{{0,{int(value)}}}$")
        case "format" if value in formats.PATTERNS:
            return Names.of(f"^(?:{formats.PATTERNS[value]})$")
        case "format" if value not in formats.ENFORCED:
            scalars.leave_format(part, value)
        case "allOf":
            return functools.reduce(_both, (_names(part, one) for one in value))
        case _ if part.rewriter.restricts(keyword):
            raise Unenforceable(f"names cannot be held to `{keyword}`")
    return True


def _hold_names(part: Part, names: Names) -> None:
    """Restrict the names of an object's properties."""
    if "patternProperties" in part.raw:
        raise Unenforceable("it is beside `patternProperties`")
    if (known := names.all_among(part.rewriter.mentioned)) is not None:
        part.parts.append(closed(known))
        return
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
    """Rewrite `minProperties` and `maxProperties`, by cases where properties are optional."""
    if not part.is_first("property count"):
        return
    raw, out = part.raw, part.out
    keywords = ("minProperties", "maxProperties")
    counts: dict[str, Any] = {name: int(raw[name]) for name in keywords if name in raw}
    needed = listed(raw.get("required"))
    known: dict[str, Any] = {}
    for one in (*part.parts, out):
        known |= mapping(one).get("properties", {})
    optional = [name for name, schema in known.items() if name not in needed and schema is not False]
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
