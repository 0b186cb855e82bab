"""The life of a rank: it carries out commands and sends reports until the server closes the socket."""

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Callable

import torch

from tgi.layers.loading import describe
from tgi.parent import Parent
from tgi.plugins import ConfigError
from tgi.protocol import (
    Allocate,
    Allocated,
    Arrived,
    Begun,
    Describe,
    Failed,
    Finished,
    Joined,
    Load,
    LoadLora,
    Ready,
    Report,
    Result,
    decode_command,
    digest,
    encode,
)
from tgi.weights import CheckpointError, Shard, place_in

from .runner import Runner, open_device


def serve(parent: Parent, world: Shard, store: str = "") -> bool:
    """Carry out commands in order until the server closes the socket (True) or one fails (False).

    A failure is reported. `world` are the ranks of all stages, those of the first one first. Several ranks
    find each other through `store`, a URL for `Device.connect`.
    """

    def report(message: Report) -> None:
        parent.send(encode(message))

    def answer(result: Result) -> None:
        assert runner is not None
        report(result if runner.answers else Finished(digest(result.tokens)))

    runner: Runner | None = None
    waiting = _Waiting(parent, answer)
    try:
        while (payload := parent.receive()) is not None:
            command = decode_command(payload)
            if isinstance(command, Describe):
                report(describe(command))
            elif isinstance(command, Load):
                runner = load(command, world, store, report)
                report(runner.loaded)
            elif runner is None:
                raise RuntimeError(f"{type(command).__name__} came before Load")
            elif isinstance(command, Allocate):
                runner.allocate(*command.blocks)
                report(Allocated())
            elif isinstance(command, Ready):
                runner.seal()
            elif isinstance(command, LoadLora):
                report(runner.load_lora(command))
            else:
                if world.size > 1:
                    report(Begun(digest(payload)))
                if runner.device.asynchronous:
                    waiting.add(runner.launch(command))
                else:
                    answer(runner.execute(command))
        waiting.finish()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has gone; nobody is left to tell
    except Exception as error:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            report(failure(error))
        return False
    return True


def load(command: Load, world: Shard, store: str, report: Callable[[Report], None]) -> Runner:
    """Find the other ranks, and read the model."""
    device = open_device(command.device, command.threads)
    if world.size > 1:
        report(Arrived(world.rank, world.size))
        device.connect(world, store, max(len(command.stages), 1))
        report(Joined())
    shard, stage = place_in(world, command.stages)
    runner = Runner.load(command, shard, device, report, stage)
    device.meet(world)  # what is free is known when all have loaded
    return runner


class _Waiting:
    """Waits in a thread for results, in order, so that the next step can be launched meanwhile."""

    def __init__(self, parent: Parent, answer: Callable[[Result], None]) -> None:
        self._parent, self._answer = parent, answer
        self._results: queue.SimpleQueue[Callable[[], Result] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None

    def add(self, result: Callable[[], Result]) -> None:
        """Report a result when it arrives. Raises the error of an earlier one."""
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            self._thread.start()
        self._results.put(result)

    def finish(self) -> None:
        """Wait until every result is reported. Raises the error of one that failed."""
        if self._thread.is_alive():
            self._results.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (result := self._results.get()) is not None:
                self._answer(result())
        except Exception as error:
            self._error = error
            self._parent.stop_receiving()


def failure(error: Exception) -> Failed:
    """Return the report of an error: one line, whose fault it is, and the traceback of a defect."""
    now = time.monotonic()
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConfigError | CheckpointError | OSError):
        return Failed(line, "model", at=now)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in line:
        return Failed(f"out of memory: {line}", "memory", at=now)
    trace = "".join(traceback.format_exception(error))
    return Failed(f"{type(error).__name__}: {line}", "error", trace, now)
