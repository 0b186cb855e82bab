"""Embeddings and scores of texts: a queue of them, batches, and the process that computes these.

A text is computed whole and at once, without a KV cache or steps.
"""

import importlib.util
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

import attrs
import msgspec
import numpy as np
import numpy.typing as npt
import trio

from tgi.child import Child, start_child
from tgi.errors import ApiError
from tgi.executor import EngineError
from tgi.plugins import ConfigError
from tgi.protocol import Failed
from tgi.protocol.pooling import Opened, PoolBatch, Pooling, PoolReport, Vectors

Array = npt.NDArray[np.float32]


@attrs.frozen
class PooledText:
    """A text, or a pair of texts, as token ids with their types."""

    ids: list[int]
    types: list[int]


@attrs.define(eq=False)
class _Waiting:
    text: PooledText
    done: trio.Event = attrs.field(factory=trio.Event)
    vector: Array | None = None
    error: ApiError | None = None
    dropped: bool = False
    """Nobody waits any longer."""


@attrs.define(eq=False)
class Pooler:
    """Computes vectors; made by `open_pooler`. `run` must run meanwhile."""

    _child: Child
    _tokens: int
    """Maximum tokens of a batch, padding included, unless a single text is longer."""
    size: int
    """Numbers in a vector."""
    _queue: deque[_Waiting] = attrs.field(factory=deque)
    _running: list[_Waiting] = attrs.field(factory=list)
    _arrived: trio.Event = attrs.field(factory=trio.Event)

    async def pool(self, texts: Sequence[PooledText]) -> Array:
        """Return the vectors of texts, [N, size]. Leaving early drops those that have not been computed."""
        waiting = [_Waiting(text) for text in texts]
        self._queue.extend(waiting)
        self._arrived.set()
        try:
            for one in waiting:
                await one.done.wait()
                if one.error is not None:
                    raise one.error
            return np.stack([one.vector for one in waiting if one.vector is not None])
        finally:
            for one in waiting:
                one.dropped = True

    async def run(self) -> None:
        """Compute what waits, in the order of arrival. Raises EngineError when the process is lost."""
        send, receive = trio.open_memory_channel[Opened | Vectors](1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read, send)
            while True:
                batch = self._running = self._next_batch()
                if not batch:
                    self._arrived = trio.Event()
                    await self._arrived.wait()
                    continue
                command = PoolBatch([one.text.ids for one in batch], [one.text.types for one in batch])
                try:
                    await self._child.send(msgspec.msgpack.encode(command))
                except trio.BrokenResourceError:
                    await trio.sleep_forever()  # the reader learns the cause
                report = await receive.receive()
                assert isinstance(report, Vectors)
                vectors = np.frombuffer(report.data, np.float32).reshape(len(batch), -1)
                for one, vector in zip(batch, vectors, strict=True):
                    one.vector = vector
                    one.done.set()

    async def _read(self, send: trio.MemorySendChannel[Opened | Vectors]) -> None:
        """Pass reports on until the process ends, also while nothing waits. Raises EngineError."""
        while True:
            await send.send(await _report(self._child))

    def fail_all(self, error: ApiError) -> None:
        """End what waits with an error."""
        for one in (*self._running, *self._queue):
            one.error = error
            one.done.set()
        self._queue.clear()

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        longest = 0
        while self._queue:
            if self._queue[0].dropped:
                self._queue.popleft()
                continue
            longest = max(longest, len(self._queue[0].text.ids))
            if batch and longest * (len(batch) + 1) > self._tokens:
                break
            batch.append(self._queue.popleft())
        return batch


@asynccontextmanager
async def open_pooler(pooling: Pooling, batch_tokens: int) -> AsyncIterator[Pooler]:
    """Start the process, and end it on leaving. Raises ConfigError and EngineError."""
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            f"{pooling.folder}: embeddings are computed by transformers: "
            "pip install 'tgi-server[transformers]'"
        )
    settings = msgspec.json.encode(pooling).decode()
    child = await start_child("-m", "tgi.worker.pool", settings, environment=os.environ)
    async with aclosing(child):
        opened = await _report(child)
        assert isinstance(opened, Opened)
        yield Pooler(child, batch_tokens, opened.size)


async def _report(child: Child) -> Opened | Vectors:
    """Return the next report of the process. Raises ConfigError and EngineError if it fails or ends."""
    payload = await child.receive()
    if payload is None:
        raise EngineError(f"{child} of the model {await child.ending()}")
    report: PoolReport = msgspec.msgpack.decode(payload, type=PoolReport)
    if not isinstance(report, Failed):
        return report
    if report.kind == "model":
        raise ConfigError(report.message)
    raise EngineError(report.message, report.kind)
