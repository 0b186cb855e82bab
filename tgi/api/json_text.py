"""A cursor on JSON text that refuses what serde_json refuses, with its words, line and column.

It reads strings, numbers, arrays and objects, and knows no types: those are json_body's.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, NoReturn

from tgi.errors import BodyError, MalformedBody, WrongShape

MAX_DEPTH = 127
"""Objects and arrays inside one another."""
DIGITS = "0123456789"
WORDS = {"n": ("null", None), "t": ("true", True), "f": ("false", False)}

_SPACE = re.compile(r"[ \n\t\r]*")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
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
        where = f"{path}: " if path else ""
        raise kind(f"{where}{reason} at line {line} column {column}")

    def refuse_late(self, reason: str) -> NoReturn:
        """Raise the error of a value that serde refuses only when it leaves what is around the value.

        On leaving it skips space and takes the closing bracket, or a comma of an array. With nothing around
        the value serde knows no place.
        """
        if not self.path:
            raise WrongShape(reason)
        self._skip_space()
        in_array = self.path[-1].startswith("[")
        next_one = self.text[self.at : self.at + 1]
        if next_one == ("]" if in_array else "}"):
            self.at += 1
        elif in_array and next_one == ",":
            self.at += 1
            self._skip_space()
        self.refuse(reason)

    def _skip_space(self) -> None:
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]

    def malformed(self, reason: str) -> NoReturn:
        """Raise an error about the next character."""
        self.refuse(reason, MalformedBody, ahead=1)

    def peek(self, what: str = "a value") -> str:
        """The next character that is not space; the text must not end within `what`."""
        self._skip_space()
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
        if exact and self.text.find("\\u", begin, self.at) >= 0 and _SURROGATE.search(value):
            self._refuse_surrogate(begin)
        return value

    def _refuse_string(self, error: json.JSONDecodeError) -> NoReturn:
        if error.msg.startswith("Unterminated"):
            self.at = len(self.text)
            self.refuse("EOF while parsing a string", MalformedBody)
        self.at = error.pos
        if error.msg.startswith("Invalid control"):
            self.malformed("control character (\\u0000-\\u001F) found while parsing a string")
        self.malformed("invalid escape")

    def _refuse_surrogate(self, begin: int) -> NoReturn:
        self.at = _UNTIL_LONE_SURROGATE.match(self.text, begin).end() + 6  # type: ignore[union-attr]
        if self.text.startswith("\\u", self.at):
            self.refuse("lone leading surrogate in hex escape", MalformedBody, ahead=6)
        self.malformed("unexpected end of hex escape")

    def number(self, *, exact: bool = True) -> int | float:
        """A number, an int if it is written as one and fits 64 bits."""
        match = _NUMBER.match(self.text, self.at)
        if match is None or self.text[match.end() : match.end() + 1] in (*DIGITS, ".", "e", "E"):
            self._refuse_number(match.end() if match else self.at + 1)
        self.at = match.end()
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

    def items(self) -> Iterator[int]:
        """Numbers the items of an array; the caller must read each."""
        self.enter()
        index = 0
        while (next_one := self.peek("a list")) != "]":
            if index:
                if next_one != ",":
                    self.malformed("expected `,` or `]`")
                self.at += 1
                if self.peek() == "]":
                    self.malformed("trailing comma")
            yield index
            index += 1
        self.leave()

    def keys(self) -> Iterator[str]:
        """The keys of an object; the caller must read the value of each."""
        self.enter()
        first = True
        while (next_one := self.peek("an object")) != "}":
            if not first:
                if next_one != ",":
                    self.malformed("expected `,` or `}`")
                self.at += 1
                next_one = self.peek()
                if next_one == "}":
                    self.malformed("trailing comma")
            if next_one != '"':
                self.malformed("key must be a string")
            first = False
            yield self.string()
        self.leave()

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


def read_any(cursor: Cursor, *, exact: bool = True) -> Any:
    """Any value. Not `exact`: it is skipped, and only its syntax counts."""
    first = cursor.peek()
    if first == '"':
        return cursor.string(exact=exact)
    if first in WORDS:
        return cursor.word(first)
    if first == "-" or first in DIGITS:
        return cursor.number(exact=exact)
    if first == "[":
        return [read_any(cursor, exact=exact) for _ in cursor.items()]
    if first == "{":
        found = {}
        for key in cursor.keys():  # noqa: SIM118 (no dict)
            cursor.colon()
            found[key] = read_any(cursor, exact=exact)
        return found
    return cursor.malformed("expected value")
