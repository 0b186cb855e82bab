"""The clients of a benchmark: prompts of an exact length, and streams read with little CPU of our own.

It speaks TGI's protocol (/generate_stream) and OpenAI's (/v1/completions), and knows nothing of processes.
"""

import random
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import h11
import msgspec
import trio
from tokenizers import Tokenizer

SHAPES = {"a": (128, 0, 64), "b": (1024, 0, 16), "c": (1016, 1000, 16)}
"""Kind of a workload -> prompt tokens, how many of them are shared, output tokens."""

TIMEOUT = 600.0
"""Seconds that an answer may take."""


@attrs.frozen
class Workload:
    """What the clients of one run ask for."""

    name: str
    clients: int
    prompt: int
    shared: int
    output: int

    @classmethod
    def parse(cls, name: str) -> "Workload":
        """Of "a16" and the like."""
        match = re.fullmatch(r"([abc])([1-9]\d*)", name)
        if match is None:
            raise ValueError(f"{name!r} is not a, b or c and a number of clients")
        prompt, shared, output = SHAPES[match[1]]
        return cls(name, int(match[2]), prompt, shared, output)


class Prompts:
    """Makes prompts of an exact number of tokens, different in each process."""

    def __init__(self, checkpoint: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self._begin = len(self._tokenizer.encode("").ids)
        self._words = sorted(
            {word for word in self._candidates() if len(self._encode(word)) == self._begin + 1}
        )
        self._seed = time.time_ns()

    def _candidates(self) -> Iterator[str]:
        for token in sorted(self._tokenizer.get_vocab(with_added_tokens=False)):
            word = self._tokenizer.decoder.decode([token])
            if re.fullmatch(r" ?[a-z]{3,10}", word):
                yield " " + word.strip()

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def _text(self, key: str, words: int) -> str:
        return "".join(random.Random(f"{self._seed} {key}").choices(self._words, k=words))

    def make(self, workload: Workload, key: str) -> str:
        """The prompt of that key; its shared part depends on the workload only."""
        shared = max(workload.shared - self._begin, 0)
        text = self._text(workload.name, shared) + self._text(key, workload.prompt - shared - self._begin)
        if (count := len(self._encode(text))) != workload.prompt:
            raise ValueError(f"a prompt of {count} instead of {workload.prompt} tokens")
        return text


@attrs.frozen
class Target:
    """Where requests go."""

    url: str
    model: str | None
    """The model's name for OpenAI's protocol; None: the server speaks TGI's."""

    @classmethod
    def find(cls, url: str) -> "Target":
        """Of a server that is ready: one that has TGI's /info speaks TGI's protocol."""
        if answers(url + "/info"):
            return cls(url, None)
        with urllib.request.urlopen(url + "/v1/models", timeout=5) as response:
            return cls(url, msgspec.json.decode(response.read())["data"][0]["id"])

    def request(self, prompt: str, tokens: int) -> tuple[str, bytes]:
        """Path and body of the request for a greedy stream of that many tokens."""
        if self.model is None:
            body: dict[str, object] = {"inputs": prompt, "parameters": {"max_new_tokens": tokens}}
            return "/generate_stream", msgspec.json.encode(body)
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        return "/v1/completions", msgspec.json.encode(body)


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Event(msgspec.Struct):
    """What is read of an event of either protocol."""

    token: msgspec.Raw = msgspec.Raw()
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: msgspec.Raw = msgspec.Raw()


_decode = msgspec.json.Decoder(_Event).decode


@attrs.define
class Reply:
    """A request as the client saw it; times are of time.perf_counter."""

    started: float = attrs.field(factory=time.perf_counter)
    times: list[float] = attrs.field(factory=list)
    """When a token, or several in one event, arrived."""
    tokens: int = 0
    error: str = ""

    def read(self, data: bytes, now: float) -> None:
        """Note the data of one server-sent event."""
        if data.strip() == b"[DONE]":
            return
        event = _decode(data)
        if bytes(event.error) not in (b"", b"null"):
            self.error = bytes(event.error).decode()
        if bytes(event.token) or any(c.text or c.finish_reason is None for c in event.choices):
            self.times.append(now)
            self.tokens += 1
        if event.usage:
            self.tokens = event.usage.completion_tokens


_FAILURES = (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.ProtocolError, msgspec.DecodeError)


async def ask(target: Target, prompt: str, tokens: int) -> Reply:
    """Send one request on its own connection and read the stream to its end."""
    address = urlsplit(target.url)
    path, body = target.request(prompt, tokens)
    reply = Reply()
    try:
        with trio.fail_after(TIMEOUT):
            async with await trio.open_tcp_stream(address.hostname or "", address.port or 80) as stream:
                await post(stream, address.netloc, path, body, reply)
    except _FAILURES as error:
        reply.error = f"{type(error).__name__}: {error}"
    if not reply.error and reply.tokens != tokens:
        reply.error = f"{reply.tokens} instead of {tokens} tokens"
    return reply


async def post(stream: trio.SocketStream, host: str, path: str, body: bytes, reply: Reply) -> None:
    """Send a request and read the response, server-sent events, into the reply."""
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", host), ("Connection", "close"), ("Content-Type", "application/json")]
    headers.append(("Content-Length", str(len(body))))
    data = connection.send(h11.Request(method="POST", target=path, headers=headers)) or b""
    await stream.send_all(data + (connection.send(h11.Data(data=body)) or b""))
    connection.send(h11.EndOfMessage())
    status, rest, now = 0, b"", 0.0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(65536))
            now = time.perf_counter()
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            *lines, rest = (rest + event.data).split(b"\n")
            for line in lines:
                if line.startswith(b"data:"):
                    reply.read(line[5:], now)
        else:
            break
    if status != 200:
        reply.error = f"status {status}: {rest.decode(errors='replace')[:200]}"


async def drive(target: Target, prompts: list[str], clients: int, tokens: int) -> list[Reply]:
    """Let each client send the next prompt as soon as its last answer has ended."""
    replies: list[Reply] = []
    pending = iter(prompts)

    async def client() -> None:
        for prompt in pending:
            replies.append(await ask(target, prompt, tokens))

    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(client)
    return replies
