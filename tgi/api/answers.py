"""Answers and bodies of requests, as HTTP sees them."""

from collections.abc import Mapping
from typing import TypeVar, cast

import msgspec
from quart import Response, request

from tgi.errors import UnsupportedMediaType

from .json_body import decode_body

T = TypeVar("T")
_NONE: Mapping[str, str] = {}


async def read_body(kind: type[T]) -> T:
    """The body of the present request. Raises BodyError; the media type is looked at first (R1.34)."""
    media, _, subtype = (request.content_type or "").partition(";")[0].strip().lower().partition("/")
    if media != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise UnsupportedMediaType
    return decode_body(kind, cast(bytes, await request.get_data(cache=False)))


def json_answer(body: object, status: int = 200, headers: Mapping[str, str] = _NONE) -> Response:
    """A JSON document; numbers that JSON does not have become null."""
    return Response(msgspec.json.encode(body), status, {"content-type": "application/json", **headers})


def text_answer(text: str, status: int = 200) -> Response:
    """Plain text."""
    return Response(text, status, {"content-type": "text/plain; charset=utf-8"})


def empty(status: int, headers: Mapping[str, str] = _NONE) -> Response:
    """No body and no content type."""
    response = Response(b"", status, dict(headers))
    del response.headers["content-type"]
    return response
