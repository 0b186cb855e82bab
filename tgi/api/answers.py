"""Answers and bodies of requests, as HTTP sees them."""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import msgspec
import trio
from quart import Response, g, request

from tgi.errors import UnsupportedMediaType

from .json_body import decode_body

T = TypeVar("T")
_NONE: Mapping[str, str] = {}
INLINE_BYTES = 20_000
"""A body up to this length is handled at once; of a longer one, others would notice (2 MB take seconds)."""


async def read_body(kind: type[T], threads: trio.CapacityLimiter) -> T:
    """The body of the present request. Raises BodyError; the media type is looked at first (R1.34)."""
    media, _, subtype = (request.content_type or "").partition(";")[0].strip().lower().partition("/")
    if media != "application" or not (subtype == "json" or subtype.endswith("+json")):
        raise UnsupportedMediaType
    data = cast(bytes, await request.get_data(cache=False))
    g.is_large = len(data) > INLINE_BYTES
    return await aside(lambda: decode_body(kind, data), threads)


async def aside(call: Callable[[], T], threads: trio.CapacityLimiter) -> T:
    """What a call returns that works on the body that was read; in a thread where that is large."""
    return await trio.to_thread.run_sync(call, limiter=threads) if g.is_large else call()


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
