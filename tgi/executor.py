"""Starts the rank processes, sends each command to all of them, and hands on what they report.

It knows bytes and processes, not what a step means. A rank that ends is the end of the engine: the error
names the rank and the cause, and cancels everything that lives in the `async with`.
"""

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from os import environ
from typing import Protocol, TypeVar

import attrs
import trio

from tgi.protocol import (
    Allocate,
    Allocated,
    Command,
    Failed,
    FrameReader,
    Load,
    Loaded,
    Progress,
    Ready,
    Report,
    Result,
    Step,
    decode_report,
    encode,
    frame,
)

R = TypeVar("R", Loaded, Allocated, Result)
_RECEIVE_BYTES = 1 << 18
_EXIT_SECONDS = 5.0
"""How long a rank may take to leave once its socket is closed, before it is killed."""


class EngineError(Exception):
    """The engine cannot start or is lost; the message is one line for people.

    `kind` is that of `protocol.Failed`: "model", "memory" or "error".
    """

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind


class Executor(Protocol):
    """What the scheduler needs: steps go in, their results come out in the same order."""

    async def send(self, step: Step) -> None:
        """Hand over a step; returns before it is executed."""

    async def receive(self) -> Result:
        """Wait for the result of the oldest step that has none yet."""


@attrs.define(eq=False)
class _Rank:
    """The server's side of one rank process."""

    index: int
    process: trio.Process
    stream: trio.SocketStream
    send: trio.MemorySendChannel[Report]
    receive: trio.MemoryReceiveChannel[Report]
    failed: Failed | None = None

    async def read_reports(self) -> None:
        """Pass on what the rank reports until it ends; raises EngineError then: it never ends by itself."""
        reader = FrameReader()
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some(_RECEIVE_BYTES):
                for payload in reader.feed(data):
                    report = decode_report(payload)
                    if isinstance(report, Failed):
                        self.failed = report
                    else:
                        self.send.send_nowait(report)
        code = await self.process.wait()
        if self.failed:
            raise EngineError(self.failed.message, self.failed.kind)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        raise EngineError(f"rank {self.index} (process {self.process.pid}) {how}")


@attrs.define(eq=False)
class RankExecutor:
    """All ranks of one model. Made by `open_executor`."""

    _ranks: list[_Rank]

    async def load(self, command: Load, on_progress: Callable[[Progress], None]) -> list[Loaded]:
        """Read the model on every rank; the ranks' answers, in their order.

        Raises EngineError (through the nursery of `open_executor`) when a rank cannot.
        """
        await self._send_all(command)
        return [await self._report(rank, Loaded, on_progress) for rank in self._ranks]

    async def allocate(self, blocks: int) -> None:
        """Reserve `blocks` KV blocks on every rank."""
        await self._send_all(Allocate(blocks))
        for rank in self._ranks:
            await self._report(rank, Allocated)

    async def ready(self) -> None:
        """Say that the warm-up has ended; returns before the ranks know."""
        await self._send_all(Ready())

    async def send(self, step: Step) -> None:
        """Hand a step to every rank; returns before it is executed."""
        await self._send_all(step)

    async def receive(self) -> Result:
        """Wait for rank 0's result of the oldest step that has none yet."""
        return await self._report(self._ranks[0], Result)

    async def _send_all(self, command: Command) -> None:
        data = frame(encode(command))
        for rank in self._ranks:
            try:
                await rank.stream.send_all(data)
            except trio.BrokenResourceError:
                # The rank has gone; its reader learns the cause, and cancels this task.
                await trio.sleep_forever()

    async def _report(
        self, rank: _Rank, kind: type[R], on_progress: Callable[[Progress], None] | None = None
    ) -> R:
        while True:
            report = await rank.receive.receive()
            if isinstance(report, kind):
                return report
            if not isinstance(report, Progress):
                raise EngineError(f"rank {rank.index} answered {type(report).__name__}, not {kind.__name__}")
            if on_progress is not None and rank.index == 0:
                on_progress(report)


@contextlib.asynccontextmanager
async def open_executor(
    ranks: int = 1, environment: Mapping[str, str] | None = None
) -> AsyncIterator[RankExecutor]:
    """Start `ranks` processes with `environment` where it is not set already; end them on leaving.

    A rank that ends before that raises EngineError (in an exception group) and cancels the body.
    """
    started: list[_Rank] = []
    try:
        async with trio.open_nursery() as nursery:
            for index in range(ranks):
                started.append(await _start_rank(index, ranks, environment or {}))
                nursery.start_soon(started[-1].read_reports)
            yield RankExecutor(started)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            for rank in started:
                await rank.stream.aclose()
            async with trio.open_nursery() as leaving:
                for rank in started:
                    leaving.start_soon(_end, rank.process)


async def _start_rank(index: int, ranks: int, environment: Mapping[str, str]) -> _Rank:
    ours, theirs = socket.socketpair()
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "tgi.worker", str(theirs.fileno()), str(index), str(ranks)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**environment, **environ},
        )
    finally:
        theirs.close()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    return _Rank(index, process, stream, *trio.open_memory_channel[Report](float("inf")))


async def _end(process: trio.Process) -> None:
    with trio.move_on_after(_EXIT_SECONDS):
        await process.wait()
    if process.returncode is None:
        process.kill()
        await process.wait()
