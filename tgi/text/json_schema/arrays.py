"""Rewriting of keywords for arrays."""

import itertools
from typing import Any

from .errors import Unenforceable
from .negation import TYPES, negated, same, types_of
from .rewriter import APPLICATORS, Part

MAX_CASES = 400
"""Maximum number of cases by which a keyword is enforced."""
POSITIONS = 8
"""Number of items at the beginning of an array that may be those which `contains` asks for."""
_OTHERS = [name for name in TYPES if name != "array"]


def items(part: Part, _: Any) -> None:
    """Rewrite `items`, `prefixItems` and `additionalItems`."""
    if not part.is_first("items"):
        return
    raw = part.raw
    first, rest = "prefixItems", "items"
    if isinstance(raw.get("items"), list):  # as in older drafts
        first, rest = "items", "additionalItems"
    if first in raw:
        part.out["prefixItems"] = [
            part.inside(one, first, str(index)) for index, one in enumerate(raw[first])
        ]
    if rest in raw:
        part.out["items"] = part.inside(raw[rest], rest)


def contains(part: Part, value: Any) -> None:
    """Rewrite `contains`, `minContains` and `maxContains` by the places of the items."""
    raw = part.raw
    least, most = int(raw.get("minContains", 1)), raw.get("maxContains")
    if least == 0 and most is None:
        return
    longest = int(raw.get("maxItems", POSITIONS))
    inside, outside = part.exactly(value, "contains"), True
    if most is not None:
        most = int(most)
        if "maxItems" not in raw or longest > POSITIONS:
            raise Unenforceable(f"`maxContains` needs `maxItems` of {POSITIONS} at most")
        outside = part.exactly(negated(value, part.resolve), "contains")
    options = []
    places = range(min(longest, POSITIONS))
    for size in range(least, len(places) + 1 if most is None else min(most, len(places)) + 1):
        for chosen in itertools.combinations(places, size):
            end = max(chosen, default=-1) + 1
            prefix = [inside if index in chosen else outside for index in range(end)]
            option: dict[str, Any] = {"type": "array", "prefixItems": prefix, "minItems": end}
            options.append(option if most is None else option | {"items": outside})
            if len(options) > MAX_CASES:
                raise Unenforceable("there are too many places for the items")
        if most is None:
            break  # other items may be like these, too
    part.parts.append({"anyOf": [*options, {"type": _OTHERS}]})


def contained(_: Part, __: Any) -> None:
    """Leave `minContains` or `maxContains` to `contains`."""


def unique_items(part: Part, value: Any) -> None:
    """Rewrite `uniqueItems` as all lists of different items."""
    raw = part.raw
    if value is False or int(raw.get("maxItems", 2)) < 2:
        return
    values = None if "prefixItems" in raw else _finite(part.resolve(raw.get("items")))
    if values is None:
        raise Unenforceable("items can be told from each other only if `enum` lists them")
    distinct: list[Any] = []
    for one in values:
        if not any(same(one, other) for other in distinct):
            distinct.append(one)
    least = int(raw.get("minItems", 0))
    most = min(int(raw.get("maxItems", len(distinct))), len(distinct))
    lists: list[Any] = []
    for size in range(least, most + 1):
        for order in itertools.permutations(distinct, size):
            lists.append(list(order))
            if len(lists) > MAX_CASES:
                raise Unenforceable(f"there are more than {MAX_CASES} lists of different items")
    part.parts.append({"anyOf": [*([{"enum": lists}] if lists else []), {"type": _OTHERS}]})


def _finite(schema: Any) -> list[Any] | None:
    """Return all values that obey a schema; None if there are too many to tell."""
    if not isinstance(schema, dict):
        return None
    names = types_of(schema)
    if "const" in schema or "enum" in schema:
        return [schema["const"]] if "const" in schema else schema["enum"]
    finite: dict[str, list[Any]] = {"null": [None], "boolean": [False, True]}
    if names is not None and names <= finite.keys():
        return [value for name in sorted(names) for value in finite[name]]
    return None


def unevaluated_items(part: Part, value: Any) -> None:
    """Rewrite `unevaluatedItems`."""
    if value is True:
        return
    if APPLICATORS & part.raw.keys() or "contains" in part.raw:
        raise Unenforceable("it is beside schemas for the same array")
    if "items" not in part.raw:
        part.out["items"] = part.inside(value, "unevaluatedItems")
