"""Starts the rank processes, sends each command to all of them, and receives their reports.

It does not look into steps. A rank that ends is the end of the engine: the error names the rank and the
cause, and cancels everything that runs in the `async with`.
"""

import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import attrs
import trio

from tgi.agreement import Agreement, Patience, names
from tgi.protocol import (
    Allocate,
    Allocated,
    Arrived,
    Begun,
    Command,
    Describe,
    Described,
    Failed,
    Finished,
    Joined,
    Load,
    Loaded,
    LoadLora,
    LoraLoaded,
    Progress,
    Ready,
    Report,
    Result,
    Step,
    decode_report,
    digest,
    encode,
)
from tgi.ranks import RankProcess, StartRanks, local_ranks

log = logging.getLogger(__name__)
R = TypeVar("R", Described, Arrived, Joined, Loaded, Allocated, Result)
_BLAME_SECONDS = 0.5
"""Seconds within which all ranks report failures that follow from the failure of one."""
STILL_SECONDS = 1.0
"""Seconds by which this process wakes up too late after it was stopped, like a machine that sleeps."""
_SEND_SECONDS = 10.0
"""Seconds that ranks have to take a command which may not be cut off."""
_WATCH_SECONDS = 0.5
"""Seconds between two looks at whether ranks are late."""


class EngineError(Exception):
    """The engine cannot start or is lost; the message is one line for people.

    `kind` is that of `protocol.Failed`: "model", "memory" or "error".
    """

    def __init__(self, message: str, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind


class Executor(Protocol):
    """Executes steps; their results come in the same order."""

    async def send(self, step: Step) -> None:
        """Hand over a step; return before it is executed."""

    async def receive(self) -> Result:
        """Wait for the result of the oldest step that has none yet."""

    async def load_lora(self, slot: int, folder: str) -> str:
        """Let every rank fill a slot of LoRA adapters; return the reason why one cannot, or ""."""


@attrs.define(eq=False)
class _Rank:
    """The server's side of one rank process."""

    index: int
    process: RankProcess
    send: trio.MemorySendChannel[Report]
    receive: trio.MemoryReceiveChannel[Report]
    """Reports other than failures and those that `Agreement` compares."""
    arrived: bool = False
    """The rank has started and is about to look for the others."""
    joined: bool = False
    """The rank has found all others."""
    failed: Failed | None = None
    """Reason that the rank gave before it ended."""
    gone: bool = False
    """The rank has ended."""

    def __str__(self) -> str:
        return f"rank {self.index} ({self.process})"


@attrs.define(eq=False)
class _Loading:
    """Answers to a `LoadLora`."""

    missing: int
    """Number of ranks that have not answered."""
    fault: str = ""
    done: trio.Event = attrs.field(factory=trio.Event)

    def add(self, answer: LoraLoaded) -> None:
        self.missing -= 1
        self.fault = self.fault or answer.fault
        if not self.missing:
            self.done.set()


@attrs.define(eq=False)
class RankExecutor:
    """All ranks of one model. Made by `open_executor`."""

    _patience: Patience
    _agreement: Agreement | None
    """Comparison of the ranks; None for a single rank."""
    _ranks: list[_Rank] = attrs.field(factory=list)
    _answering: int = 0
    """Index of the rank that reports results: the first one of the last stage."""
    _sending: trio.Lock = attrs.field(factory=trio.Lock)
    """Held while a command goes to the ranks, so that all get the same order."""
    _numbers: Iterator[int] = attrs.field(factory=itertools.count)
    """Numbers of `LoadLora`."""
    _loading: dict[int, _Loading] = attrs.field(factory=dict)
    """Those commands whose answers are waited for, by number."""

    async def describe(self, command: Describe) -> Described:
        """Let the first rank describe the model, without reading its weights.

        Raises EngineError (through the nursery of `open_executor`) if it cannot.
        """
        await self._send(self._ranks[:1], command)
        return await self._report(self._ranks[0], Described)

    async def load(self, command: Load, on_progress: Callable[[list[Progress]], None]) -> list[Loaded]:
        """Let the ranks find each other and read the model; return their answers by rank.

        Calls `on_progress` with the progress of every rank. Raises EngineError (through the nursery of
        `open_executor`) if a rank cannot load its share.
        """
        await self._send_all(command)
        if len(self._ranks) > 1:
            await self._join()
        progress = [Progress(0, 0) for _ in self._ranks]
        loaded: dict[int, Loaded] = {}

        async def follow(rank: _Rank) -> None:
            def note(report: Progress) -> None:
                progress[rank.index] = report
                on_progress(list(progress))

            loaded[rank.index] = await self._report(rank, Loaded, note)

        async with trio.open_nursery() as nursery:
            for rank in self._ranks:
                nursery.start_soon(follow, rank)
        return [loaded[rank.index] for rank in self._ranks]

    async def allocate(self, *blocks: int) -> None:
        """Reserve that many KV blocks for each layer group on every rank."""
        await self._send_all(Allocate(blocks))
        for rank in self._ranks:
            await self._report(rank, Allocated)

    async def load_lora(self, slot: int, folder: str) -> str:
        """Let every rank put a LoRA adapter into a slot, also while steps are executed.

        Returns the reason why one cannot, or "". May be cancelled; then the slot may be filled or not. Waits
        for ever if a rank is lost.
        """
        number = next(self._numbers)
        self._loading[number] = loading = _Loading(len(self._ranks))
        try:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _SEND_SECONDS):
                await self._write(self._ranks, encode(LoadLora(number, slot, folder)))
            await loading.done.wait()
        finally:
            del self._loading[number]
        return loading.fault

    async def ready(self) -> None:
        """Tell the ranks that the warm-up has ended; return before they know."""
        await self._send_all(Ready())
        if self._agreement is not None:
            self._agreement.settle()

    async def send(self, step: Step) -> None:
        """Hand a step to every rank; return before it is executed."""
        await self._send_all(step)

    async def receive(self) -> Result:
        """Wait for the result of the oldest step that has none yet."""
        return await self._report(self._ranks[self._answering], Result)

    async def read_reports(self, rank: _Rank) -> None:
        """Sort the reports of a rank until it ends; then raise EngineError, since no rank ends by itself."""
        while (payload := await rank.process.receive()) is not None:
            report = decode_report(payload)
            if self._agreement is not None and isinstance(report, Begun | Finished | Result):
                _compare(self._agreement, rank.index, report)
            if isinstance(report, Failed):
                rank.failed = report
            elif isinstance(report, LoraLoaded):
                if report.number in self._loading:
                    self._loading[report.number].add(report)
            elif not isinstance(report, Begun | Finished):
                rank.send.send_nowait(report)
        rank.gone = True
        ending = await rank.process.ending()
        if rank.failed is None:
            raise EngineError(f"{rank} {ending}")
        await self._blame()

    async def watch(self, agreement: Agreement) -> None:
        """Raise EngineError when a rank is late."""
        while True:
            due = trio.current_time() + _WATCH_SECONDS
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due > STILL_SECONDS:
                agreement.stood_still(now - due)
                continue
            complaint = agreement.overdue(now)
            if complaint is not None:
                raise EngineError(complaint)

    async def _blame(self) -> None:
        """Raise EngineError with the first failure of all ranks."""
        several = len(self._ranks) > 1
        if several:
            await trio.sleep(_BLAME_SECONDS)
        if any(rank.gone and rank.failed is None for rank in self._ranks):
            await trio.sleep_forever()  # a rank that was killed gives no reason; its own reader raises
        reasons = [(rank.failed.at, rank.index, rank.failed) for rank in self._ranks if rank.failed]
        _, index, failed = min(reasons, key=lambda reason: reason[:2])
        if failed.trace:
            log.error("rank %d failed:\n%s", index, failed.trace.rstrip())
        where = f"rank {index}: " if several and failed.kind != "model" else ""
        raise EngineError(where + failed.message, failed.kind)

    async def _join(self) -> None:
        """Wait until every rank has found all others. Raises EngineError with those that have not."""

        async def join(rank: _Rank) -> None:
            arrived = await self._report(rank, Arrived)
            if (arrived.rank, arrived.ranks) != (rank.index, len(self._ranks)):
                wanted = f"{rank.index} of {len(self._ranks)}"
                raise EngineError(f"{rank} has started as {arrived.rank} of {arrived.ranks}, not as {wanted}")
            rank.arrived = True
            await self._report(rank, Joined)
            rank.joined = True

        with trio.move_on_after(self._patience.join) as scope:
            async with trio.open_nursery() as nursery:
                for rank in self._ranks:
                    nursery.start_soon(join, rank)
        if scope.cancelled_caught:
            raise EngineError(self._absence())

    def _absence(self) -> str:
        within = f"within {self._patience.join:g} s"
        absent = [rank.index for rank in self._ranks if not rank.arrived]
        if absent:
            return f"{names(absent)} did not start {within}"
        absent = [rank.index for rank in self._ranks if not rank.joined]
        others = "the others" if len(absent) < len(self._ranks) else "each other"
        return f"{names(absent)} did not reach {others} {within}"

    async def _send_all(self, command: Command) -> None:
        await self._send(self._ranks, command)

    async def _send(self, ranks: Sequence[_Rank], command: Command) -> None:
        payload = encode(command)
        if self._agreement is not None and isinstance(command, Step):
            self._agreement.sent(command.number, digest(payload), trio.current_time())
        if not await self._write(ranks, payload):
            # A rank has gone; its reader learns the cause, and cancels this task.
            await trio.sleep_forever()

    async def _write(self, ranks: Sequence[_Rank], payload: bytes) -> bool:
        """Send bytes to each rank, and return whether all have taken them."""
        try:
            self._sending.acquire_nowait()  # without a checkpoint, so that the ranks have a step sooner
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            for rank in ranks:
                await rank.process.send(payload)
        except trio.BrokenResourceError:
            return False
        finally:
            self._sending.release()
        return True

    async def _report(
        self, rank: _Rank, kind: type[R], on_progress: Callable[[Progress], None] | None = None
    ) -> R:
        while True:
            report = await rank.receive.receive()
            if isinstance(report, kind):
                return report
            if not isinstance(report, Progress):
                raise EngineError(f"rank {rank.index} answered {type(report).__name__}, not {kind.__name__}")
            if on_progress is not None:
                on_progress(report)


def _compare(agreement: Agreement, rank: int, report: Begun | Finished | Result) -> None:
    """Raise EngineError if a rank does something else than the others."""
    now = trio.current_time()
    if isinstance(report, Begun):
        complaint = agreement.begun(rank, report.digest, now)
    else:
        tokens = report.digest if isinstance(report, Finished) else digest(report.tokens)
        complaint = agreement.finished(rank, tokens, now)
    if complaint is not None:
        raise EngineError(complaint)


@contextlib.asynccontextmanager
async def open_executor(
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    patience: Patience = Patience(),  # noqa: B008 (frozen)
    start: StartRanks = local_ranks,
    stages: int = 1,
) -> AsyncIterator[RankExecutor]:
    """Start `ranks` processes with `start`, and end them on leaving.

    `environment` are variables of the ranks, unless the machine that they run on has them already. Raises
    EngineError if they cannot be started. A rank that ends before the body does, or does not keep up with the
    others, cancels the body and raises EngineError (in an exception group).
    """
    agreement = Agreement(ranks, patience, stages) if ranks > 1 else None
    async with contextlib.AsyncExitStack() as held:
        try:
            processes = await held.enter_async_context(start(ranks, environment or {}))
        except OSError as error:  # no file, process or folder is left for them
            where = "" if error.filename is None else f" ({error.filename})"
            raise EngineError(f"no rank can be started: {error.strerror or error}{where}") from error
        nursery = await held.enter_async_context(trio.open_nursery())
        started = [
            _Rank(index, process, *trio.open_memory_channel[Report](float("inf")))
            for index, process in enumerate(processes)
        ]
        executor = RankExecutor(patience, agreement, started, ranks - ranks // stages)
        for rank in started:
            nursery.start_soon(executor.read_reports, rank)
        if agreement is not None:
            nursery.start_soon(executor.watch, agreement)
        yield executor
        nursery.cancel_scope.cancel()
