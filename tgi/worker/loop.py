"""The life of a rank: commands come in on a socket, reports go out, until the socket is closed."""

import socket
import traceback
from collections.abc import Iterator

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
            else:
                result = runner.execute(command)
                if shard.rank == 0:
                    report(result)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has gone; nobody is left to tell
    except Exception as error:
        failed = failure(error)
        if failed.kind == "error":
            traceback.print_exc()
        report(failed)
        return False
    return True


def commands(connection: socket.socket) -> Iterator[Command]:
    """Every command until the socket is closed. What has been sent ahead waits in the socket's buffer."""
    reader = FrameReader()
    while data := connection.recv(_RECEIVE_BYTES):
        for payload in reader.feed(data):
            yield decode_command(payload)


def failure(error: Exception) -> Failed:
    """What to tell the server of an error, in one line, and whose fault it is."""
    line = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ConfigError | CheckpointError | OSError):
        return Failed(line, "model")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in line:
        return Failed(f"out of memory: {line}", "memory")
    return Failed(f"{type(error).__name__}: {line}", "error")
