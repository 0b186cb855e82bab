"""`tgi.LLM`: a model for a Python program, with the server's batching, caches and guarantees."""

import difflib
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2 as httpx
import msgspec

from tgi.api.openai.requests import ChatRequest, CompletionRequest
from tgi.client import http
from tgi.client.embedded import EmbeddedServer
from tgi.client.http import Json

CONCURRENCY = 64
"""Maximum requests that are in the engine at once; the others wait here."""


class SamplingParams(dict[str, Any]):
    """Fields of a request to `/v1/completions` or `/v1/chat/completions`, such as `max_tokens`."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)


class LLM:
    """A model, loaded in processes of its own, which end with this object or with the program.

    Use it in a `with`, or call `close`. Several may live side by side.

        with LLM("org/name", dtype="bfloat16") as llm:
            for text in llm.generate(["What is a violin?", "What is a lute?"], max_tokens=40):
                print(text)
    """

    def __init__(self, model: str | Path | None = None, **options: Any) -> None:
        """Load a model: a folder, a name on the Hub, or the demo model.

        `options` are those of `tgi serve`, with underscores: `num_shard=2`, `max_total_tokens=8192`. Raises
        StartError with one line if the model cannot be served.
        """
        given = {"model_id": model, "max_client_batch_size": CONCURRENCY, **options}
        given.setdefault("max_concurrent_requests", 2 * CONCURRENCY)
        self._server = EmbeddedServer.start(given)
        self._socket = str(self._server.path)
        self._client = self._open_client()
        try:
            self._server.wait_ready()
            self.model: str = self._client.get("/v1/models").json()["data"][0]["id"]
        except BaseException:
            self.close()
            raise

    def generate(
        self, prompts: str | Sequence[str], params: SamplingParams | None = None, **fields: Any
    ) -> list[str]:
        """Return the continuation of each prompt, computed together.

        `fields` are those of `/v1/completions`, such as `max_tokens` and `temperature`. Raises TypeError if
        there is no field of that name, and RequestError if its value is refused.
        """
        return [answer["choices"][0]["text"] for answer in self.complete(prompts, params, **fields)]

    def complete(
        self, prompts: str | Sequence[str], params: SamplingParams | None = None, **fields: Any
    ) -> list[Json]:
        """Return the whole answer of `/v1/completions` to each prompt: texts, log-probabilities, usage."""
        each = [prompts] if isinstance(prompts, str) else prompts
        return self.post_all("/v1/completions", [self._completion(params, fields, one) for one in each])

    def chat(
        self, messages: str | Sequence[Json], params: SamplingParams | None = None, **fields: Any
    ) -> Json:
        """Return the message that answers a conversation, or one message of a user.

        `fields` are those of `/v1/chat/completions`, such as `tools` and `response_format`. Raises like
        `generate`.
        """
        body = self._chat(params, fields, messages)
        answer: Json = http.post(self._client, "/v1/chat/completions", body)["choices"][0]["message"]
        return answer

    def stream(
        self, prompt: str | Sequence[Json], params: SamplingParams | None = None, **fields: Any
    ) -> Iterator[str]:
        """Yield the text that continues a prompt, or answers a conversation, as it is generated."""
        path, body = self._streamed(prompt, params, fields)
        for event in http.stream(self._client, path, body):
            yield from _texts(event)

    async def stream_async(
        self, prompt: str | Sequence[Json], params: SamplingParams | None = None, **fields: Any
    ) -> AsyncIterator[str]:
        """Yield text like `stream`, under trio or asyncio."""
        path, body = self._streamed(prompt, params, fields)
        transport = httpx.AsyncHTTPTransport(uds=self._socket)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://tgi", timeout=http.timeout()
        ) as client:
            async for event in http.stream_async(client, path, body):
                for text in _texts(event):
                    yield text

    def post_all(self, path: str, bodies: Sequence[Json]) -> list[Json]:
        """Return the answers to several requests, in order, computed together. Raises RequestError."""
        with ThreadPoolExecutor(CONCURRENCY) as pool:
            return list(pool.map(lambda body: http.post(self._client, path, body), bodies))

    def close(self) -> None:
        """End the engine."""
        self._client.close()
        self._server.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_client(self) -> httpx.Client:
        limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
        transport = httpx.HTTPTransport(uds=self._socket, limits=limits)
        return httpx.Client(transport=transport, base_url="http://tgi", timeout=http.timeout())

    def _completion(self, params: SamplingParams | None, fields: Json, prompt: str) -> Json:
        return {"model": self.model, **_known(CompletionRequest, params, fields), "prompt": prompt}

    def _chat(self, params: SamplingParams | None, fields: Json, messages: str | Sequence[Json]) -> Json:
        return {"model": self.model, **_known(ChatRequest, params, fields), "messages": _messages(messages)}

    def _streamed(
        self, prompt: str | Sequence[Json], params: SamplingParams | None, fields: Json
    ) -> tuple[str, Json]:
        if isinstance(prompt, str):
            return "/v1/completions", self._completion(params, fields, prompt)
        return "/v1/chat/completions", self._chat(params, fields, prompt)


def _messages(given: str | Sequence[Json]) -> list[Json]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else list(given)


def _known(body: type[msgspec.Struct], params: SamplingParams | None, fields: Json) -> Json:
    """Return all fields. Raises TypeError if the body of a request has no field of that name."""
    given = {**(params or {}), **fields}
    names = [field.encode_name for field in msgspec.structs.fields(body)]
    for name in given:
        if name not in names:
            close = "".join(f"; did you mean {one!r}?" for one in difflib.get_close_matches(name, names, 1))
            raise TypeError(f"requests have no field {name!r}{close}")
    return given


def _texts(event: Json) -> Iterator[str]:
    for choice in event["choices"]:
        text = choice["delta"].get("content") if "delta" in choice else choice["text"]
        if text:
            yield text
