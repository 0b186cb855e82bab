"""A cursor on JSON text that refuses what serde_json refuses, with its words, line and column.

It reads strings, numbers, arrays and objects, and knows no types: those are json_body's.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import make_scanner
from typing import Any, NoReturn

from tgi.errors import BodyError, MalformedBody, WrongShape

MAX_DEPTH = 127
"""Objects and arrays inside one another."""
DIGITS = "0123456789"
WORDS = {"n": ("null", None), "t": ("true", True), "f": ("false", False)}

_SPACE = re.compile(r"[ \n\t\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_EXPONENT = re.compile("[eE][+-]?")
_MORE = re.compile("[0-9.]|[eE][+-]?")
"""What may not follow a number unfinished, with and without a fraction."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_UNTIL_LONE_SURROGATE = re.compile(
    r"(?:[^\\]|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F])*"
)


class Cursor:
    """A place in the text, and the path that led to it."""

    __slots__ = ("at", "depth", "path", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.path: list[str] = []
        self.depth = 0

    def refuse(self, reason: str, kind: type[BodyError] = WrongShape, ahead: int = 0) -> NoReturn:
        """Raise an error about the bytes up to here, and `ahead` characters more."""
        end = min(self.at + ahead, len(self.text))
        line_start = self.text.rfind("\n", 0, end) + 1
        line = self.text.count("\n", 0, end) + 1
        column = len(self.text[line_start:end].encode(errors="replace"))
        path = "".join(self.path).lstrip(".")
        where = f"{path}: " if path not in ("", "?") else ""
        raise kind(f"{where}{reason} at line {line} column {column}")

    def refuse_late(self, reason: str) -> NoReturn:
        """Raise the error of a value that serde refuses only when it leaves what is around the value.

        On leaving it skips space and takes the closing bracket, or a comma of an array. With nothing around
        the value serde knows no place.
        """
        if not self.path:
            raise WrongShape(reason)
        self.skip_space()
        in_array = self.path[-1].startswith("[")
        next_one = self.text[self.at : self.at + 1]
        if next_one == ("]" if in_array else "}"):
            self.at += 1
        elif in_array and next_one == ",":
            self.at += 1
            self.skip_space()
        self.refuse(reason)

    def refuse_key(self, reason: str) -> NoReturn:
        """Raise the error of a key that was just read; serde has already skipped the space after it."""
        self.skip_space()
        self.refuse(reason)

    def skip_space(self) -> None:
        """To what is not space."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def malformed(self, reason: str) -> NoReturn:
        """Raise an error about the next character."""
        self.refuse(reason, MalformedBody, ahead=1)

    def peek(self, what: str = "a value") -> str:
        """The next character that is not space; the text must not end within `what`."""
        self.skip_space()
        if self.at >= len(self.text):
            self.refuse(f"EOF while parsing {what}", MalformedBody)
        return self.text[self.at]

    def word(self, first: str) -> Any:
        """null, true or false."""
        name, value = WORDS[first]
        for expected in name[1:]:
            self.at += 1
            if self.at >= len(self.text):
                self.refuse("EOF while parsing a value", MalformedBody)
            if self.text[self.at] != expected:
                self.malformed("expected ident")
        self.at += 1
        return value

    def string(self, *, exact: bool = True) -> str:
        """A string; the cursor is at its quote. Not `exact`: it will be ignored, lone surrogates may be."""
        begin = self.at
        try:
            value: str
            value, self.at = scanstring(self.text, begin + 1, True)
        except json.JSONDecodeError as error:
            self._refuse_string(error)
        if exact and not value.isascii() and _SURROGATE.search(value):
            self._refuse_surrogate(begin)
        return value

    def _refuse_string(self, error: json.JSONDecodeError) -> NoReturn:
        if error.msg.startswith("Unterminated"):
            self.at = len(self.text)
            self.refuse("EOF while parsing a string", MalformedBody)
        self.at = error.pos
        if error.msg.startswith("Invalid control"):
            self.malformed("control character (\\u0000-\\u001F) found while parsing a string")
        self.at += 4 if "uXXXX" in error.msg else 1
        if self.at >= len(self.text):
            self.refuse("EOF while parsing a string", MalformedBody)
        self.malformed("invalid escape")

    def _refuse_surrogate(self, begin: int) -> NoReturn:
        self.at = _UNTIL_LONE_SURROGATE.match(self.text, begin).end()  # type: ignore[union-attr]
        trailing = self.text[self.at + 3] not in "89abAB"
        self.at += 6
        if trailing:
            self.refuse("lone leading surrogate in hex escape", MalformedBody)
        if self.text.startswith("\\u", self.at):
            self.refuse("lone leading surrogate in hex escape", MalformedBody, ahead=6)
        ahead = 2 if self.text.startswith("\\", self.at) else 1
        self.refuse("unexpected end of hex escape", MalformedBody, ahead)

    def number(self, *, exact: bool = True) -> int | float:
        """A number, an int if it is written as one and fits 64 bits."""
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            self._refuse_number(self.at + 1)
        self.at = match.end()
        if match[2] is None and (more := (_EXPONENT if match[1] else _MORE).match(self.text, self.at)):
            self._refuse_number(more.start() if more[0] in DIGITS else more.end())
        if match[1] is None and match[2] is None and len(match[0]) <= 20:
            whole = int(match[0])
            if -(2**63) <= whole < 2**64:
                return whole
        value = float(match[0])
        if exact and math.isinf(value):
            self.refuse("number out of range", MalformedBody)
        return value

    def _refuse_number(self, at: int) -> NoReturn:
        self.at = at
        if at >= len(self.text):
            self.refuse("EOF while parsing a value", MalformedBody)
        self.malformed("invalid number")

    def mismatch(self, first: str, expected: str) -> NoReturn:
        """Raise the error of a value of the wrong type that begins with `first`."""
        if first == "{":
            found = "map"
        elif first == "[":
            found = "sequence"
        else:
            value = read_any(self)
            found = "null" if value is None else _KINDS[type(value)](value)
        self.refuse(f"invalid type: {found}, expected {expected}")

    def enter(self) -> None:
        """Go into an object or array; the cursor is at its bracket."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.malformed("recursion limit exceeded")
        self.at += 1

    def leave(self) -> None:
        """Go out of it; the cursor is at its closing bracket."""
        self.depth -= 1
        self.at += 1

    def items(self, *, exact: bool = True) -> Iterator[int]:
        """Numbers the items of an array; the caller must read each. Not `exact`: they will be ignored."""
        self.enter()
        index = 0
        while (next_one := self.peek("a list")) != "]":
            if index:
                if next_one != ",":
                    self.malformed("expected `,` or `]`")
                self.at += 1
                if self.peek() == "]":
                    self.malformed("trailing comma" if exact else "expected value")
            yield index
            index += 1
        self.leave()

    def keys(self, *, exact: bool = True) -> Iterator[str]:
        """The keys of an object; the caller must read the value of each. Not `exact`: it will be ignored."""
        self.enter()
        key = self._key(exact, first=True)
        while key is not None:
            yield key
            key = self._key(exact, first=False)
        self.leave()

    def _key(self, exact: bool, *, first: bool) -> str | None:
        if exact:
            self.path.append(".?")
        next_one = self.peek("an object")
        key = None
        if next_one != "}":
            if not first:
                if next_one != ",":
                    self.malformed("expected `,` or `}`")
                self.at += 1
                next_one = self.peek("a value" if exact else "an object")
                if exact and next_one == "}":
                    self.malformed("trailing comma")
            if next_one != '"':
                self.malformed("key must be a string")
            key = self.string(exact=exact)
        if exact:
            self.path.pop()
        return key

    def colon(self) -> None:
        """What comes between a key and its value."""
        if self.peek("an object") != ":":
            self.malformed("expected `:`")
        self.at += 1


def float_text(value: float) -> str:
    """As Rust prints it: 1e20 and not 1e+20."""
    mantissa, e, exponent = repr(value).partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


_KINDS: dict[type, Callable[[Any], str]] = {
    bool: lambda value: f"boolean `{str(value).lower()}`",
    int: lambda value: f"integer `{value}`",
    float: lambda value: f"floating point `{float_text(value)}`",
    str: lambda value: f"string {json.dumps(value, ensure_ascii=False)}",
}


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError
    return value


def _no_constant(_name: str) -> Any:
    raise ValueError


_SCAN = make_scanner(
    json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant)  # type: ignore[arg-type]
)
_PECULIAR = re.compile(r"\\u[dD][89a-fA-F]|[0-9]{19}")
"""Text that Python's reader may take for other things than serde_json does: surrogates, large integers."""


def read_quickly(cursor: Cursor) -> Any:
    """The array or object at the cursor, read by Python's own reader, some ten times faster than here.

    None, and the cursor stays, if that cannot be done or might not come to the same.
    """
    try:
        value, end = _SCAN(cursor.text, cursor.at)
    except (ValueError, StopIteration, RecursionError):
        return None
    brackets = cursor.text.count("[", cursor.at, end) + cursor.text.count("{", cursor.at, end)
    if brackets + cursor.depth > MAX_DEPTH or _PECULIAR.search(cursor.text, cursor.at, end):
        return None
    cursor.at = end
    return value


def read_any(cursor: Cursor, *, exact: bool = True) -> Any:
    """Any value. Not `exact`: it is skipped, and only its syntax counts."""
    if cursor.peek() in "[{":
        value = read_quickly(cursor)
        if value is not None:
            return value
    return _read_any(cursor, exact=exact)


def _read_any(cursor: Cursor, *, exact: bool) -> Any:
    first = cursor.peek()
    if first == '"':
        return cursor.string(exact=exact)
    if first in WORDS:
        return cursor.word(first)
    if first == "-" or first in DIGITS:
        return cursor.number(exact=exact)
    if not exact:
        return _skip_inside(cursor, first)
    path = cursor.path
    if first == "[":
        items = []
        for index in cursor.items():
            path.append(f"[{index}]")
            items.append(_read_any(cursor, exact=True))
            path.pop()
        return items
    if first == "{":
        found = {}
        for key in cursor.keys():  # noqa: SIM118 (no dict)
            cursor.colon()
            path.append(f".{key}")
            found[key] = _read_any(cursor, exact=True)
            path.pop()
        return found
    return cursor.malformed("expected value")


def _skip_inside(cursor: Cursor, first: str) -> None:
    if first == "[":
        for _ in cursor.items(exact=False):
            _read_any(cursor, exact=False)
    elif first == "{":
        for _ in cursor.keys(exact=False):
            cursor.colon()
            _read_any(cursor, exact=False)
    else:
        cursor.malformed("expected value")
