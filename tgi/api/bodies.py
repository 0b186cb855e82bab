"""Bodies of requests, from JSON text to structs."""

import json
import re
from collections import Counter
from typing import Any, TypeVar

import msgspec

from tgi.errors import EncodedBody, MalformedBody, UnsupportedMediaType, WrongShape

T = TypeVar("T")
MAX_DEPTH = 127
"""Maximum number of objects and arrays inside one another."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[][{}]', re.DOTALL)
_TRAILING = re.compile(r"JSON is malformed: trailing characters \(byte (\d+)\)")


def check_media_type(content_type: str | None) -> None:
    """Raise UnsupportedMediaType unless the body is said to be JSON (R1.34)."""
    media, _, subtype = (content_type or "").partition(";")[0].strip().lower().partition("/")
    if media != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise UnsupportedMediaType


def check_encoding(encoding: str | None) -> None:
    """Raise EncodedBody for a body that is said to be compressed."""
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        raise EncodedBody(encoding)


def decode(data: bytes, *kinds: type[Any], at: str = "$") -> Any:
    """Decode a JSON text as the first of these structs that it fits; `at` is its own path in the body.

    Unknown fields are ignored and characters after the value are too, as in TGI. Raises MalformedBody for
    text that is not JSON and WrongShape for another shape or a field that comes twice.
    """
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _depth(data) > MAX_DEPTH:
        raise MalformedBody("recursion limit exceeded")
    refusals = []
    for kind in kinds:
        try:
            return _decode(data, kind)
        except msgspec.ValidationError as error:
            refusals.append(str(error).replace("`$", f"`{at}"))
    if len(kinds) == 1:
        raise WrongShape(refusals[0])
    named = (f"{kind.__name__} ({refusal})" for kind, refusal in zip(kinds, refusals, strict=True))
    raise WrongShape(f"Expected one of: {'; '.join(named)} - at `{at}`")


def _decode(data: bytes, kind: type[T]) -> T:
    try:
        data.decode()  # msgspec does not look at text that it skips
        value = msgspec.json.decode(data, type=kind)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"Invalid UTF-8 (byte {error.start})") from error
    except msgspec.DecodeError as error:
        if trailing := _TRAILING.fullmatch(str(error)):
            return _decode(data[: int(trailing[1]) - 1], kind)
        if isinstance(error, msgspec.ValidationError) and not str(error).startswith("Number out of range"):
            raise
        hint = ", or half of a surrogate pair" if b"\\ud" in data.lower() else ""
        raise MalformedBody(f"{error}{hint}") from error
    _check_fields(data, kind)
    return value


def _depth(data: bytes) -> int:
    depth = deepest = 0
    for token in _TOKEN.finditer(data):
        if token[0] in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token[0] in b"]}":
            depth -= 1
    return deepest


class _Repeated:
    """Stands for an object that has a key more than once."""


def _check_fields(data: bytes, kind: type) -> None:
    """Raise ValidationError if an object that becomes a struct has a key more than once."""
    repeated: list[str] = []

    def from_pairs(pairs: list[tuple[str, Any]]) -> object:
        record = dict(pairs)
        if len(record) == len(pairs):
            return record
        repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        return _Repeated()

    try:
        value = json.loads(data, object_pairs_hook=from_pairs)
    except ValueError as error:  # more digits than Python reads, in a field that msgspec skips
        raise MalformedBody("Integer value out of range") from error
    if repeated:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            _, _, path = str(error).partition(" - at ")
            raise msgspec.ValidationError(
                f"Object has the field `{repeated[0]}` more than once - at {path or '`$`'}"
            ) from None
