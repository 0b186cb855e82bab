"""Rewriting of keywords that apply schemas to the same value."""

import itertools
from typing import Any

from .errors import Unenforceable
from .negation import negated
from .overlap import are_disjoint
from .rewriter import Part, means_object

_MAX_OVERLAPS = 16
"""Maximum number of pairs of schemas of a `oneOf` that may hold at once."""


def all_of(part: Part, value: Any) -> None:
    """Rewrite `allOf`."""
    part.parts += _each(part, "allOf", value)


def any_of(part: Part, value: Any) -> None:
    """Rewrite `anyOf`."""
    part.parts.append({"anyOf": _each(part, "anyOf", value)})


def one_of(part: Part, value: Any) -> None:
    """Rewrite `oneOf`: each of its schemas without those that may hold at the same time."""
    options = _each(part, "oneOf", value)
    try:
        overlaps = [
            (one, other)
            for one, other in itertools.combinations(range(len(value)), 2)
            if not _exclude_each_other(part, value[one], value[other])
        ]
        if len(overlaps) > _MAX_OVERLAPS:
            raise Unenforceable("there are too many of them")
        alone = [[option] for option in options]
        for one, other in [*overlaps, *((other, one) for one, other in overlaps)]:
            rest = negated(value[other], part.resolve)
            alone[one].append(part.exactly(rest, "oneOf", str(other)))
        options = [parts[0] if len(parts) == 1 else {"allOf": parts} for parts in alone]
    except Unenforceable as error:
        part.rewriter.cannot("oneOf", part.place, f"several of its schemas may hold at once: {error}")
    part.parts.append({"anyOf": options})


def _exclude_each_other(part: Part, one: Any, other: Any) -> bool:
    """Return whether no value that is accepted for one schema obeys the other. Raises Unenforceable."""

    def narrowed(schema: Any) -> Any:
        schema = part.resolve(schema)
        is_object = part.beside_mode != "exact" and isinstance(schema, dict) and means_object(schema)
        return schema | {"type": "object"} if is_object else schema

    return are_disjoint(narrowed(one), other, part.resolve) and are_disjoint(
        one, narrowed(other), part.resolve
    )


def _each(part: Part, keyword: str, value: Any) -> list[Any]:
    return [part.beside(one, keyword, str(index)) for index, one in enumerate(value)]


def reference(part: Part, value: Any) -> None:
    """Rewrite `$ref`."""
    part.parts.append(part.rewriter.named(value, part.place, part.beside_mode))


def negation(part: Part, value: Any) -> None:
    """Rewrite `not` as what obeys the opposite."""
    part.parts.append(part.exactly(negated(value, part.resolve), "not"))


def condition(part: Part, value: Any) -> None:
    """Rewrite `if`, `then` and `else` as two cases."""
    raw = part.raw
    if "then" not in raw and "else" not in raw:
        return
    cases = []
    for keyword, case in (("then", value), ("else", negated(value, part.resolve))):
        cases.append({"allOf": [part.exactly(case, "if"), part.beside(raw.get(keyword, True), keyword)]})
    part.parts.append({"anyOf": cases})


def consequence(_: Part, __: Any) -> None:
    """Leave `then` or `else` to `if`, without which they mean nothing."""
