"""JSON text to the attrs class that a route wants, under TGI's rules (tgi-behaviour 2.1).

The rules are those of Rust's serde: unknown keys are ignored, known ones must not come twice, numbers are
checked for kind and range, null stands for "absent" in optional fields only, a class may be written as the
array of its fields, and what follows the value does not matter. The text is read in one pass by readers
made from the annotations, so that each error names path, line and column just where serde notices it.
"""

import functools
import json.decoder
import math
import re
import struct
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, NoReturn, TypeVar

import attrs

from tgi.errors import BodyError, MalformedBody, WrongShape

T = TypeVar("T")
Read = Callable[["Cursor"], Any]

MAX_DEPTH = 127
"""Objects and arrays inside one another."""

_SPACE = re.compile(r"[ \n\t\r]*")
_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {"n": ("null", None), "t": ("true", True), "f": ("false", False)}


@attrs.frozen
class Whole:
    """An integer type: what an error calls it, and its range."""

    name: str
    low: int
    high: int


U32 = Annotated[int, Whole("u32", 0, 2**32 - 1)]
U64 = Annotated[int, Whole("u64", 0, 2**64 - 1)]
USize = Annotated[int, Whole("usize", 0, 2**64 - 1)]
I32 = Annotated[int, Whole("i32", -(2**31), 2**31 - 1)]


def decode_body(kind: type[T], body: bytes) -> T:
    """Read a request body. Raises MalformedBody for what is not JSON, WrongShape for JSON of another shape."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        cursor = Cursor(body[: error.start].decode() + "?")
        cursor.at = len(cursor.text)
        cursor.refuse("invalid unicode code point", MalformedBody)
    value: T = reader_of(kind)(Cursor(text))
    return value


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

    def malformed(self, reason: str) -> NoReturn:
        """Raise an error about the next character."""
        self.refuse(reason, MalformedBody, ahead=1)

    def peek(self, what: str = "a value") -> str:
        """The next character that is not space; the text must not end within `what`."""
        self.at = _SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]
        if self.at >= len(self.text):
            self.refuse(f"EOF while parsing {what}", MalformedBody)
        return self.text[self.at]

    def word(self, first: str) -> Any:
        """null, true or false."""
        name, value = _WORDS[first]
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
            value, self.at = json.decoder.scanstring(self.text, begin + 1, True)
        except json.JSONDecodeError as error:
            self._refuse_string(error)
        if exact and _SURROGATE.search(value):
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
        escape = re.compile(r"(?:[^\\]|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F])*")
        self.at = escape.match(self.text, begin).end() + 6  # type: ignore[union-attr]
        if self.text.startswith("\\u", self.at):
            self.refuse("lone leading surrogate in hex escape", MalformedBody, ahead=6)
        self.malformed("unexpected end of hex escape")

    def number(self, *, exact: bool = True) -> int | float:
        """A number, an int if it is written as one and fits 64 bits."""
        match = _NUMBER.match(self.text, self.at)
        following = self.text[match.end() : match.end() + 1] if match else ""
        if match is None or following.isdigit() or following in (".", "e", "E") and following:
            self.at = match.end() if match else self.at + 1
            at_end = self.at >= len(self.text)
            self.refuse("EOF while parsing a value", MalformedBody) if at_end else None
            self.malformed("invalid number")
        self.at = match.end()
        if match[2] is None and match[3] is None:
            whole = int(match[0]) if len(match[0]) <= 20 else None
            if whole is not None and -(2**63) <= whole < 2**64:
                return whole
        value = float(match[0])
        if exact and math.isinf(value):
            self.refuse("number out of range", MalformedBody)
        return value

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

    def items(self) -> "typing.Iterator[int]":
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

    def keys(self) -> "typing.Iterator[str]":
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


def _float_text(value: float) -> str:
    """As Rust prints it: 1e20 and not 1e+20."""
    mantissa, e, exponent = repr(value).partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


_KINDS: dict[type, Callable[[Any], str]] = {
    bool: lambda value: f"boolean `{str(value).lower()}`",
    int: lambda value: f"integer `{value}`",
    float: lambda value: f"floating point `{_float_text(value)}`",
    str: lambda value: f"string {json.dumps(value, ensure_ascii=False)}",
}


def read_any(cursor: Cursor, *, exact: bool = True) -> Any:
    """Any value. Not `exact`: it is skipped, and only its syntax counts."""
    first = cursor.peek()
    if first == '"':
        return cursor.string(exact=exact)
    if first in _WORDS:
        return cursor.word(first)
    if first == "-" or first in "0123456789":
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


def read_string(cursor: Cursor) -> str:
    """A string."""
    first = cursor.peek()
    if first != '"':
        cursor.mismatch(first, "a string")
    return cursor.string()


def _read_bool(cursor: Cursor) -> bool:
    first = cursor.peek()
    if first not in "tf":
        cursor.mismatch(first, "a boolean")
    return bool(cursor.word(first))


def _read_float(cursor: Cursor) -> float:
    """A number, rounded to the float32 that TGI keeps."""
    first = cursor.peek()
    if first != "-" and first not in "0123456789":
        cursor.mismatch(first, "f32")
    value = cursor.number()
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _read_whole(kind: Whole, cursor: Cursor) -> int:
    first = cursor.peek()
    if first != "-" and first not in "0123456789":
        cursor.mismatch(first, kind.name)
    value = cursor.number()
    if isinstance(value, float):
        cursor.refuse(f"invalid type: floating point `{_float_text(value)}`, expected {kind.name}")
    if not kind.low <= value <= kind.high:
        cursor.refuse(f"invalid value: integer `{value}`, expected {kind.name}")
    return value


def _read_optional(read: Read, cursor: Cursor) -> Any:
    first = cursor.peek()
    return cursor.word(first) if first == "n" else read(cursor)


def _read_list(read: Read, cursor: Cursor) -> list[Any]:
    first = cursor.peek()
    if first != "[":
        cursor.mismatch(first, "a sequence")
    values = []
    for index in cursor.items():
        cursor.path.append(f"[{index}]")
        values.append(read(cursor))
        cursor.path.pop()
    return values


@attrs.frozen
class _Struct:
    """Reads an attrs class, from an object or from an array of its fields."""

    kind: type
    fields: dict[str, tuple[Read, bool]]
    """By name, in order: its reader, and whether it must be there."""

    def __call__(self, cursor: Cursor) -> Any:
        first = cursor.peek()
        if first == "{":
            return self.kind(**self._from_object(cursor))
        if first == "[":
            return self.kind(**self._from_array(cursor))
        return cursor.mismatch(first, f"struct {self.kind.__name__}")

    def _from_object(self, cursor: Cursor) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in cursor.keys():  # noqa: SIM118 (no dict)
            if key not in self.fields:
                cursor.colon()
                read_any(cursor, exact=False)
                continue
            if key in values:
                cursor.refuse(f"duplicate field `{key}`")
            cursor.colon()
            cursor.path.append(f".{key}")
            values[key] = self.fields[key][0](cursor)
            cursor.path.pop()
        for key, (_, required) in self.fields.items():
            if required and key not in values:
                cursor.refuse(f"missing field `{key}`")
        return values

    def _from_array(self, cursor: Cursor) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for index, (key, (read, _)) in zip(cursor.items(), self.fields.items(), strict=False):
            cursor.path.append(f"[{index}]")
            values[key] = read(cursor)
            cursor.path.pop()
        if len(values) == len(self.fields) and cursor.peek("a list") != "]":
            cursor.malformed("trailing characters")
        for index, (key, (_, required)) in enumerate(self.fields.items()):
            if required and key not in values:
                expected = f"struct {self.kind.__name__} with {len(self.fields)} elements"
                cursor.refuse(f"invalid length {index}, expected {expected}")
        return values


@functools.cache
def reader_of(annotation: Any) -> Read:
    """The reader of values of this type.

    Understood are str, bool, float (float32), the integer types above, Any, attrs classes, lists and
    optionals of these, and Annotated[..., read] with a reader of one's own.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        extra = arguments[1]
        return functools.partial(_read_whole, extra) if isinstance(extra, Whole) else extra  # type: ignore[no-any-return]
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return functools.partial(_read_optional, reader_of(inner))
    if origin is list:
        return functools.partial(_read_list, reader_of(arguments[0]))
    if attrs.has(annotation):
        return _struct_of(annotation)
    return {str: read_string, bool: _read_bool, float: _read_float, Any: read_any}[annotation]


def _struct_of(kind: type) -> _Struct:
    hints = typing.get_type_hints(kind, include_extras=True)
    return _Struct(
        kind,
        {field.name: (reader_of(hints[field.name]), field.default is attrs.NOTHING)
         for field in attrs.fields(kind) if field.init},
    )  # fmt: skip
