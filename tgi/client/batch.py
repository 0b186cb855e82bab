"""`tgi run-batch`: a file of requests in the format of OpenAI's batches."""

import json
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import httpx2 as httpx
from rich.console import Console
from rich.progress import track

from . import http
from .chat import connected

CONCURRENCY = 64
"""Maximum requests that run at once."""
PATHS = ("/v1/chat/completions", "/v1/completions")


class BatchError(Exception):
    """The file of requests is not one; the text says where and why."""


def run_batch(source: Path, target: Path, url: str | None, options: dict[str, Any], key: str | None) -> int:
    """Answer the requests of one file in another, in order; return 1 if one of them failed."""
    with source.open(encoding="utf-8") as lines:
        requests = list(read_requests(lines, source))
    options = {"max_concurrent_requests": 2 * CONCURRENCY, **options}
    failed = 0
    console = Console(stderr=True)
    with (
        target.open("w", encoding="utf-8") as results,
        connected(url, options, key, console) as client,
        ThreadPoolExecutor(CONCURRENCY) as pool,
    ):
        answers: list[Future[http.Json]] = [pool.submit(_answer, client, request) for request in requests]
        shown = track(answers, "Requests", console=console, disable=not sys.stderr.isatty())
        for request, answer in zip(requests, shown, strict=True):
            failed += _write(results, request, answer.result())
    if failed:
        print(f"tgi: {failed} of {len(requests)} requests failed; see {target}", file=sys.stderr)
    return int(bool(failed))


def read_requests(lines: IO[str], source: Path) -> Iterator[http.Json]:
    """Yield the requests of a file. Raises BatchError with the line of one that is wrong."""
    seen = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{source}, line {number}"
        try:
            request = json.loads(line)
        except ValueError as error:
            raise BatchError(f"{place}: not JSON: {error}") from error
        if not isinstance(request, dict) or not isinstance(request.get("body"), dict):
            raise BatchError(f'{place}: expected an object with "custom_id", "url" and "body"')
        if request.get("url") not in PATHS:
            raise BatchError(
                f'{place}: "url" must be one of {", ".join(PATHS)}; it is {request.get("url")!r}'
            )
        if request.get("custom_id") in seen:
            raise BatchError(f'{place}: "custom_id" {request["custom_id"]!r} comes twice')
        seen.add(request.get("custom_id"))
        yield request


def _answer(client: httpx.Client, request: http.Json) -> http.Json:
    """Return the `response` and `error` of a result."""
    answer = client.post(request["url"], json={**request["body"], "stream": False})
    try:
        body = answer.json()
    except ValueError:
        body = {"error": {"message": answer.text}}
    response = {
        "status_code": answer.status_code,
        "request_id": answer.headers.get("x-request-id", ""),
        "body": body,
    }
    return {"response": response, "error": body.get("error") if answer.is_error else None}


def _write(results: IO[str], request: http.Json, answer: http.Json) -> bool:
    """Write a result; return whether it failed."""
    record = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": request.get("custom_id"), **answer}
    results.write(json.dumps(record, ensure_ascii=False) + "\n")
    return answer["error"] is not None
