"""hypercorn's TCP connection with a shorter way to the socket, a limit on how long a write may wait, and an
end of its own when it fails.

hypercorn writes through a lock, a cancel scope and trio's checkpoints; for one small event of each of
hundreds of streams, that costs more than everything else together. And it shields the write without a
limit, so that a client that has stopped reading could keep the process from ending. And it lets what goes
wrong with one connection end the server: a byte that is no ASCII in a method of HTTP/2 is enough.
"""

import logging
import os

import hypercorn.trio.run
import trio
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer

log = logging.getLogger(__name__)
STALLED_SECONDS = 60.0
"""A client that takes nothing for so long is gone."""


def install() -> None:
    """Let hypercorn's trio worker use `Connection`, in this process; it has no setting for that."""
    hypercorn.trio.run.TCPServer = Connection  # type: ignore[attr-defined]


class Connection(TCPServer):
    """Takes the place of hypercorn's TCPServer."""

    async def run(self) -> None:
        """Serve one connection to its end, and close it; raises nothing but a cancellation."""
        try:
            await super().run()
        except* Exception as failures:
            failed = failures.exceptions[0]
            while isinstance(failed, ExceptionGroup):
                failed = failed.exceptions[0]
            shown = failures if log.isEnabledFor(logging.DEBUG) else None
            log.warning("a connection was lost: %s: %s", type(failed).__name__, failed, exc_info=shown)

    async def protocol_send(self, event: Event) -> None:
        """Write, at once if the socket takes it; returns quietly when the client has gone."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        data = event.data
        if not self.send_lock.locked():
            data = data[self._write_now(data) :]
        if data:
            async with self.send_lock:
                await self._write(data)

    def _write_now(self, data: bytes) -> int:
        """How many bytes the socket took without waiting."""
        if not isinstance(self.stream, trio.SocketStream):  # TLS
            return 0
        try:
            return os.write(self.stream.socket.fileno(), data)
        except OSError:  # full, or gone: `_write` finds out
            return 0

    async def _write(self, data: bytes) -> None:
        try:
            with trio.fail_after(STALLED_SECONDS) as scope:
                scope.shield = True
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            await trio.aclose_forcefully(self.stream)
            await self.protocol.handle(Closed())
