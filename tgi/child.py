"""Python programs in processes of their own, which exchange messages with this one.

A message is a frame of bytes (`tgi.protocol.frame`) on a socket pair, whose other end is the standard input
of the child; `tgi.parent` is the child's side. A child is in a process group of its own, so that Ctrl-C
reaches only the server, which decides.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence

import attrs
import trio

from tgi.protocol import FrameReader, frame

_RECEIVE_BYTES = 1 << 18
_MAX_LINE = 200
"""Maximum characters of a line of standard error in `Child.ending`."""


@attrs.define(eq=False)
class Messages:
    """Messages to and from another process, over a stream."""

    stream: trio.abc.Stream
    _reader: FrameReader = attrs.field(factory=FrameReader)
    _received: deque[bytes] = attrs.field(factory=deque)

    async def send(self, payload: bytes) -> None:
        """Send a message, without a checkpoint if there is room for it.

        Raises trio.BrokenResourceError if the other process has gone.
        """
        data = frame(payload)
        if rest := data[write_now(self.stream, data) :]:
            await self.stream.send_all(rest)

    async def receive(self) -> bytes | None:
        """Return the next message; None once the other process has closed its end, or has gone."""
        while not self._received:
            try:
                data = await self.stream.receive_some(_RECEIVE_BYTES)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._received.extend(self._reader.feed(data))
        return self._received.popleft()


def write_now(stream: trio.abc.Stream, data: bytes) -> int:
    """Return the number of bytes that a stream took without waiting; 0 if it is broken or closed."""
    if not isinstance(stream, trio.SocketStream):  # TLS
        return 0
    try:
        return os.write(stream.socket.fileno(), data)
    except OSError:
        return 0


@attrs.define(eq=False)
class Child(Messages):
    """A running Python program. Made by `start_child`; must be closed."""

    process: trio.Process = attrs.field(kw_only=True)
    _errors: int | None = attrs.field(kw_only=True)
    """Descriptor of a file in memory that holds the standard error; None if it is not kept."""
    _patience: float = attrs.field(kw_only=True)

    def __str__(self) -> str:
        return f"process {self.process.pid}"

    async def ending(self) -> str:
        """Wait until the child has ended; return how, as the rest of a sentence in one line.

        "ended with exit code 1: ValueError: …", "was killed by SIGKILL (out of memory?)".
        """
        code = await self.process.wait()
        if code >= 0:
            how = f"ended with exit code {code}"
        else:
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            how = f"was killed by {signal.Signals(-code).name}{hint}"
        lines = self._last_errors().split("\n")
        return f"{how}: {lines[-1][:_MAX_LINE]}" if lines[-1] else how

    def _last_errors(self) -> str:
        if self._errors is None:
            return ""
        size = os.fstat(self._errors).st_size
        tail = os.pread(self._errors, 4 * _MAX_LINE, max(0, size - 4 * _MAX_LINE))
        return tail.decode(errors="replace").strip()

    def kill(self) -> None:
        """Kill the child, and what it has started."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    async def aclose(self) -> None:
        """Close the connection, wait for `patience` seconds, then kill; return when the child has ended."""
        with trio.CancelScope(shield=True):
            await self.stream.aclose()
            with trio.move_on_after(self._patience):
                await self.process.wait()
            self.kill()
            await self.process.wait()
            if self._errors is not None:
                os.close(self._errors)
                self._errors = None


async def start_child(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    patience: float = 0.0,
    quiet: bool = True,
    output: int | None = None,
    inherited: Sequence[int] = (),
) -> Child:
    """Start a Python interpreter with these arguments, "-m", "module", … .

    `environment` replaces this process's. `patience` is the number of seconds that `Child.aclose` gives the
    child to end by itself. The standard output of a quiet child is dropped, and its standard error is kept
    for `Child.ending`; a child that is not quiet writes both to the descriptor `output`, or to where this
    process does. `inherited` are descriptors that the child has, too.
    """
    ours, theirs = socket.socketpair()
    errors = os.memfd_create("stderr") if quiet else None
    try:
        process = await trio.lowlevel.open_process(
            [sys.executable, *arguments],
            stdin=theirs,
            stdout=subprocess.DEVNULL if quiet else output,
            stderr=errors if quiet else output,
            pass_fds=inherited,
            process_group=0,
            env=environment,
        )
    except BaseException:
        ours.close()
        if errors is not None:
            os.close(errors)
        raise
    finally:
        theirs.close()
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    return Child(stream, process=process, errors=errors, patience=patience)
