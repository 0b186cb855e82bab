"""Requests to a server that speaks OpenAI's API, and the events of its streams."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2 as httpx

Json = dict[str, Any]
SECONDS_TO_CONNECT = 10.0
DONE = "[DONE]"


class RequestError(Exception):
    """A server refused a request, or could not finish it; the text is the server's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def timeout() -> httpx.Timeout:
    """Return the limits of a connection: an answer may take as long as it takes."""
    return httpx.Timeout(None, connect=SECONDS_TO_CONNECT)


def headers(key: str | None) -> dict[str, str]:
    """Return the headers that carry an API key, if one is given."""
    return {"authorization": f"Bearer {key}"} if key else {}


def post(client: httpx.Client, path: str, body: Json) -> Json:
    """Return the JSON answer to a request. Raises RequestError."""
    answer = client.post(path, json=body)
    if answer.is_error:
        raise error_of(answer.status_code, answer.text)
    found: Json = answer.json()
    return found


def stream(client: httpx.Client, path: str, body: Json) -> Iterator[Json]:
    """Yield the events of a streamed answer. Raises RequestError."""
    with client.stream("POST", path, json={**body, "stream": True}) as answer:
        if answer.is_error:
            raise error_of(answer.status_code, str(answer.read(), "utf-8", "replace"))
        for line in answer.iter_lines():
            if (event := _event(line)) is not None:
                yield event


async def stream_async(client: httpx.AsyncClient, path: str, body: Json) -> AsyncIterator[Json]:
    """Yield the events of a streamed answer, under trio or asyncio. Raises RequestError."""
    async with client.stream("POST", path, json={**body, "stream": True}) as answer:
        if answer.is_error:
            raise error_of(answer.status_code, str(await answer.aread(), "utf-8", "replace"))
        async for line in answer.aiter_lines():
            if (event := _event(line)) is not None:
                yield event


def _event(line: str) -> Json | None:
    """Return the JSON of a line of server-sent events, if it has any. Raises RequestError for an error."""
    field, _, data = line.partition(":")
    if field != "data" or data.strip() == DONE:
        return None
    event: Json = json.loads(data)
    if "error" in event:
        raise error_of(200, data)
    return event


def error_of(status: int, text: str) -> RequestError:
    """Return the error that a server answered with."""
    try:
        found = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        found = text.strip() or f"status {status}"
    return RequestError(found["message"] if isinstance(found, dict) else str(found), status)
