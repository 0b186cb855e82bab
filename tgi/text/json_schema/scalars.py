"""Rewriting of keywords for types, constants, numbers and strings."""

import json
import math
from collections.abc import Callable
from typing import Any

from . import formats
from .automata import translate, without
from .errors import Unenforceable
from .negation import TYPES, Excluded, types_of
from .references import pointer
from .rewriter import Part

_LARGEST = 10**18
"""Largest bound of integers that llguidance knows."""
_STEP = 1e-12
"""Share of a bound by which a number next to it differs; llguidance takes closer numbers for the same."""
_PRECISE = 1e9
"""Largest bound that is closer to the number next to it than to the next whole number."""
_SHOWN = 80
"""Maximum number of characters of a pattern that are shown."""
_EXACT = 2**53
"""Integers beyond it are not exact as floating-point numbers, which llguidance uses."""


def types(part: Part, value: Any) -> None:
    """Rewrite `type`."""
    for name in [value] if isinstance(value, str) else value:
        if name not in (*TYPES, "integer"):
            raise Unenforceable(f"{json.dumps(name)} is not a type")
    part.out["type"] = value


def constant(part: Part, value: Any) -> None:
    """Rewrite `const`."""
    _check_constant(value)
    part.out["const"] = value


def constants(part: Part, value: Any) -> None:
    """Rewrite `enum`."""
    _check_constant(value)
    part.out["enum"] = value


def _check_constant(value: Any) -> None:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, list | dict):
            waiting += one.values() if isinstance(one, dict) else one
        elif isinstance(one, int) and abs(one) > _EXACT:
            raise Unenforceable(f"integers beyond 2^53 as {one} are not exact in JSON")


def bounds(part: Part, _: Any) -> None:
    """Rewrite all four bounds of numbers."""
    if not part.is_first("bounds"):
        return
    for side, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        inner, outer = part.raw.get(side), part.raw.get(exclusive)
        if outer is True:  # as in draft 4
            inner, outer = None, inner
        for keyword, bound in ((side, inner), (exclusive, outer)):
            if bound is not None and bound is not False:
                part.out[keyword] = _exact_bound(bound, 1 if side == "maximum" else -1)
    if types_of(part.raw) != {"integer"}:
        _leave_out("exclusiveMinimum", "minimum", part.out, max)
        _leave_out("exclusiveMaximum", "maximum", part.out, min)


def _leave_out(keyword: str, inclusive: str, out: dict[str, Any], narrower: Callable[..., float]) -> None:
    """Replace an exclusive bound that is a whole number by an inclusive one that is next to it.

    llguidance takes it for an inclusive one if another bound, perhaps of another schema for the same number,
    has the same digits before the point.
    """
    bound, way = out.get(keyword), narrower(-1, 1)
    if bound is None or bound != int(bound) or not 0 <= bound * way <= _PRECISE:
        return  # toward 0, the next number has other digits
    nearest = bound + way * max(abs(bound), 1) * _STEP
    out[inclusive] = narrower(nearest, out.get(inclusive, nearest))
    del out[keyword]


def _exact_bound(bound: float, sign: int) -> float:
    """Return a bound of which llguidance knows the exact value, or a narrower one. Raises Unenforceable."""
    if abs(bound) <= _EXACT:
        return bound
    if bound * sign < 0:
        raise Unenforceable(f"{bound} is beyond 2^53, from where on numbers are not exact in JSON")
    nearest = float(min(abs(bound), _LARGEST))
    return sign * int(nearest if nearest <= abs(bound) else math.nextafter(nearest, 0))


def multiple(part: Part, value: Any) -> None:
    """Rewrite `multipleOf`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if abs(value) == 1:
        part.parts.append({"type": ["integer", *(name for name in TYPES if name != "number")]})
    else:
        part.out["multipleOf"] = abs(value)


def pattern(part: Part, value: Any) -> None:
    """Rewrite `pattern`."""
    try:
        is_opposite = isinstance(value, Excluded)
        expressions = without(value.pattern, value.texts) if is_opposite else translate(value)
    except Unenforceable as error:
        source = value.pattern if isinstance(value, Excluded) else value
        raise Unenforceable(str(error) if source is None else f"`{_shown(source)}`, {error}") from error
    for expression in expressions:
        _add_pattern(part, expression)


def _shown(text: str) -> str:
    return "".join(one if one.isprintable() else " " for one in text[:_SHOWN]) + "…" * (len(text) > _SHOWN)


def string_format(part: Part, value: Any) -> None:
    """Rewrite `format`."""
    if value in formats.PATTERNS:
        _add_pattern(part, formats.PATTERNS[value])
    elif value in formats.ENFORCED:
        part.out["format"] = value
    else:
        leave_format(part, value)


def leave_format(part: Part, value: str) -> None:
    """Note that a format is not enforced."""
    name = json.dumps(value, ensure_ascii=False)[:50]
    part.rewriter.remarks.append(f"`format` at {pointer(part.place)}: {name} is not enforced")


def _add_pattern(part: Part, expression: str) -> None:
    whole = f"^(?:{expression})$"
    if "pattern" in part.out:
        part.parts.append({"pattern": whole})
    else:
        part.out["pattern"] = whole


def counted(keyword: str) -> Callable[[Part, Any], None]:
    """Return the function that rewrites a keyword with a count."""

    def rewrite(part: Part, value: Any) -> None:
        part.out[keyword] = int(value)

    return rewrite
