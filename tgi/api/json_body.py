"""JSON text to the attrs class that a route wants, under TGI's rules (tgi-behaviour 2.1).

The rules are those of Rust's serde: unknown keys are ignored, known ones must not come twice, numbers are
checked for kind and range, null stands for "absent" in optional fields only, a class may be written as the
array of its fields, and what follows the value does not matter. The text is read in one pass by readers
made from the annotations, so that each error names path, line and column just where serde notices it.
"""

import contextlib
import functools
import math
import struct
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import attrs

from tgi.errors import MalformedBody, WrongShape

from .json_text import DIGITS, Cursor, float_text, read_any, read_quickly

T = TypeVar("T")
Read = Callable[[Cursor], Any]


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
U8 = Annotated[int, Whole("u8", 0, 2**8 - 1)]


@attrs.frozen(eq=False)
class Custom:
    """In Annotated: a reader of one's own, and for the OpenAPI document what it takes."""

    read: Read
    schema: Any
    """An OpenAPI schema, with annotations where it would have schemas inside."""
    name: str | None = None
    """Under this name the document defines it."""


def decode_body(kind: type[T], body: bytes) -> T:
    """Read a request body. Raises MalformedBody for what is not JSON, WrongShape for another shape."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        cursor = Cursor(body[: error.start].decode() + "?")
        cursor.at = len(cursor.text)
        cursor.refuse("invalid unicode code point", MalformedBody)
    value: T = reader_of(kind)(Cursor(text))
    return value


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
    if first != "-" and first not in DIGITS:
        cursor.mismatch(first, "f32")
    value = cursor.number()
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _read_whole(kind: Whole, cursor: Cursor) -> int:
    first = cursor.peek()
    if first != "-" and first not in DIGITS:
        cursor.mismatch(first, kind.name)
    value = cursor.number()
    if isinstance(value, float):
        cursor.refuse(f"invalid type: floating point `{float_text(value)}`, expected {kind.name}")
    if not kind.low <= value <= kind.high:
        cursor.refuse(f"invalid value: integer `{value}`, expected {kind.name}")
    return value


def _read_literal(known: tuple[str, ...], cursor: Cursor) -> str:
    name = read_string(cursor)
    if name not in known:
        cursor.refuse(f"unknown variant `{name}`, expected " + " or ".join(f"`{one}`" for one in known))
    return name


def _read_optional(read: Read, cursor: Cursor) -> Any:
    first = cursor.peek()
    return cursor.word(first) if first == "n" else read(cursor)


def _is_string(value: Any) -> bool:
    return type(value) is str


def _is_whole(kind: Whole, value: Any) -> bool:
    return type(value) is int and kind.low <= value <= kind.high


def _test_of(annotation: Any) -> Callable[[Any], bool] | None:
    """Whether a value of Python's own reader is of this type, where that is all there is to know."""
    if annotation is str:
        return _is_string
    extra = typing.get_args(annotation)[1] if typing.get_origin(annotation) is Annotated else None
    return functools.partial(_is_whole, extra) if isinstance(extra, Whole) else None


def _read_list(read: Read, fits: Callable[[Any], bool] | None, cursor: Cursor) -> list[Any]:
    first = cursor.peek()
    if first != "[":
        cursor.mismatch(first, "a sequence")
    if fits is not None:
        start, values = cursor.at, read_quickly(cursor)
        if values is not None and all(map(fits, values)):
            return list(values)
        cursor.at = start
    values = []
    for index in cursor.items():
        cursor.path.append(f"[{index}]")
        values.append(read(cursor))
        cursor.path.pop()
    return values


def _read_map(read: Read, cursor: Cursor) -> dict[str, Any]:
    first = cursor.peek()
    if first != "{":
        cursor.mismatch(first, "a map")
    values = {}
    for key in cursor.keys():  # noqa: SIM118 (no dict)
        cursor.colon()
        cursor.path.append(f".{key}")
        values[key] = read(cursor)
        cursor.path.pop()
    return values


def attempt(read: Read, cursor: Cursor, place: int) -> Any:
    """Read what lies at `place`, and leave the cursor where it is. Raises WrongShape."""
    at, path, depth = cursor.at, cursor.path.copy(), cursor.depth
    cursor.at = place
    try:
        return read(cursor)
    finally:
        cursor.at, cursor.path, cursor.depth = at, path, depth


def untagged(name: str, *variants: Any) -> Custom:
    """What is one of these annotations, the first that fits; the error tells no more than the name (D5)."""
    readers = functools.cache(lambda: [reader_of(variant) for variant in variants])

    def read(cursor: Cursor) -> Any:
        cursor.peek()
        place = cursor.at
        read_any(cursor)
        for reader in readers():
            with contextlib.suppress(WrongShape):
                return attempt(reader, cursor, place)
        return cursor.refuse_late(f"data did not match any variant of untagged enum {name}")

    return Custom(read, {"anyOf": list(variants)}, name)


def json_name(kind: type) -> str:
    """What TGI calls this class."""
    return str(getattr(kind, "json_name", kind.__name__))


def json_names(field: "attrs.Attribute[Any]") -> tuple[str, ...]:
    """The keys under which a field may come, first the one that errors name."""
    names: tuple[str, ...] = field.metadata.get("names", (field.name,))
    return names


@attrs.frozen
class _Field:
    attribute: str
    name: str
    read: Read
    required: bool


@attrs.frozen
class _Struct:
    """Reads an attrs class, from an object or from an array of its fields."""

    kind: type
    fields: list[_Field]
    keys: dict[str, _Field]

    def __call__(self, cursor: Cursor) -> Any:
        first = cursor.peek()
        if first == "{":
            return self.kind(**self._from_object(cursor))
        if first == "[":
            return self.kind(**self._from_array(cursor))
        return cursor.mismatch(first, f"struct {json_name(self.kind)}")

    def _from_object(self, cursor: Cursor) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key in cursor.keys():  # noqa: SIM118 (no dict)
            field = self.keys.get(key)
            if field and field.attribute in values:
                cursor.refuse_key(f"duplicate field `{field.name}`")
            cursor.colon()
            cursor.path.append(f".{key}")
            if field:
                values[field.attribute] = field.read(cursor)
            else:
                read_any(cursor, exact=False)
            cursor.path.pop()
        for field in self.fields:
            if field.required and field.attribute not in values:
                cursor.refuse(f"missing field `{field.name}`")
        return values

    def _from_array(self, cursor: Cursor) -> dict[str, Any]:
        values: dict[str, Any] = {}
        items = cursor.items()
        for field, index in zip(self.fields, items, strict=False):
            cursor.path.append(f"[{index}]")
            values[field.attribute] = field.read(cursor)
            cursor.path.pop()
        if len(values) == len(self.fields) and next(items, None) is not None:
            cursor.malformed("trailing characters")
        for index, field in enumerate(self.fields):
            if field.required and field.attribute not in values:
                expected = f"struct {json_name(self.kind)} with {len(self.fields)} elements"
                cursor.refuse(f"invalid length {index}, expected {expected}")
        return values


def reader_of(annotation: Any) -> Read:
    """The reader of values of this type.

    Understood are str, bool, float (float32), the integer types above, Any, attrs classes, literals, lists,
    maps and optionals of these, and Annotated[..., Custom(...)].
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        extra = arguments[1]
        return functools.partial(_read_whole, extra) if isinstance(extra, Whole) else extra.read
    if origin in (typing.Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not types.NoneType)
        return functools.partial(_read_optional, reader_of(inner))
    if origin is typing.Literal:
        return functools.partial(_read_literal, arguments)
    if origin is list:
        return functools.partial(_read_list, reader_of(arguments[0]), _test_of(arguments[0]))
    if origin is dict:
        return functools.partial(_read_map, reader_of(arguments[1]))
    if hasattr(annotation, "json_custom"):
        custom: Custom = annotation.json_custom
        return custom.read
    if attrs.has(annotation):
        return _struct_of(annotation)
    return {str: read_string, bool: _read_bool, float: _read_float, Any: read_any}[annotation]


@functools.cache
def _struct_of(kind: type) -> _Struct:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = [
        _Field(field.name, json_names(field)[0], reader_of(hints[field.name]), field.default is attrs.NOTHING)
        for field in attrs.fields(kind)
    ]
    keys = {
        name: field for field, one in zip(fields, attrs.fields(kind), strict=True) for name in json_names(one)
    }
    return _Struct(kind, fields, keys)
