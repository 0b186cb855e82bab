"""The life of a rank: commands come in on a socket, reports go out, until the socket is closed."""

import queue
import socket
import threading
import traceback
from collections.abc import Callable, Iterator

import torch

from tgi.plugins import ConfigError
from tgi.protocol import (
    Allocate,
    Allocated,
    Command,
    Failed,
    FrameReader,
    Load,
    Ready,
    Report,
    Result,
    decode_command,
    encode,
    frame,
)
from tgi.weights import CheckpointError, Shard

from .runner import Runner, open_device

_RECEIVE_BYTES = 1 << 18


def serve(connection: socket.socket, shard: Shard) -> bool:
    """Carry out commands in order until the server closes the socket (True) or one fails (False).

    A failure is reported; the traceback of a defect goes to stderr as well.
    """

    def report(message: Report) -> None:
        connection.sendall(frame(encode(message)))

    runner: Runner | None = None
    waiting = _Waiting(connection, report if shard.rank == 0 else lambda _: None)
    try:
        for command in commands(connection):
            if isinstance(command, Load):
                runner = Runner.load(command, shard, open_device(command.device, command.threads), report)
                report(runner.loaded)
            elif runner is None:
                raise RuntimeError(f"{type(command).__name__} came before Load")
            elif isinstance(command, Allocate):
                runner.allocate(command.blocks)
                report(Allocated())
            elif isinstance(command, Ready):
                runner.seal()
            elif runner.device.asynchronous:
                waiting.add(runner.launch(command))
            else:
                result = runner.execute(command)
                if shard.rank == 0:
                    report(result)
        waiting.finish()
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has gone; nobody is left to tell
    except Exception as error:
        report(failure(error))
        return False
    return True


class _Waiting:
    """Waits for results in their order, in a thread, so that the next step can be launched meanwhile."""

    def __init__(self, connection: socket.socket, report: Callable[[Report], None]) -> None:
        self._connection, self._report = connection, report
        self._results: queue.SimpleQueue[Callable[[], Result] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._error: Exception | None = None

    def add(self, result: Callable[[], Result]) -> None:
        """Report it when it is there."""
        if self._error is not None:
            raise self._error
        if not self._thread.is_alive():
            self._thread.start()
        self._results.put(result)

    def finish(self) -> None:
        """No more will come. Raises what went wrong."""
        if self._thread.is_alive():
            self._results.put(None)
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (result := self._results.get()) is not None:
                self._report(result())
        except Exception as error:
            self._error = error
            self._connection.shutdown(socket.SHUT_RD)  # as if the server had no more to say


def commands(connection: socket.socket) -> Iterator[Command]:
    """Every command until the socket is closed. What has been sent ahead waits in the socket's buffer."""
    reader = FrameReader()
    while data := connection.recv(_RECEIVE_BYTES):
        for payload in reader.feed(data):
            yield decode_command(payload)


def failure(error: Exception) -> Failed:
    """What to tell the server of an error, in one line, and whose fault it is. Prints a defect's trace."""
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConfigError | CheckpointError | OSError):
        return Failed(line, "model")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in line:
        return Failed(f"out of memory: {line}", "memory")
    traceback.print_exception(error)
    return Failed(f"{type(error).__name__}: {line}", "error")
