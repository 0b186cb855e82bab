"""The actor of one rank: starts it on its node, and passes on what it and the server tell each other.

The rank itself is a process like any other rank. It ends when the actor does, and the actor when the server
closes the connection.
"""

import contextlib
import importlib.metadata
import os
import socket
from os import environ
from pathlib import Path

import attrs
import msgspec
import psutil  # type: ignore[import-untyped]
import trio

import tgi
from tgi.child import Child, Messages, start_child
from tgi.hub import Source, fetch_model
from tgi.hub_errors import HubError
from tgi.lifecycle import Lifecycle
from tgi.protocol import Describe, Load, decode_command
from tgi.protocol import encode as encode_command
from tgi.ranks import EXIT_SECONDS, rank_arguments, rank_places

from .handshake import SECONDS, HandshakeError, introduce, tls_context, watch_silence
from .messages import Kind, Seat, Task

_MAX_LINE = 4096
"""Maximum bytes of a line of output that are passed on at once."""
_TOLD_SECONDS = 10.0
"""Seconds between two lines about the progress of a download."""
_OUTPUT_SECONDS = 1.0
"""Seconds that the last lines of a rank that has ended may take to arrive."""
_SENT_AWAY = "was sent away by the server"


def versions() -> str:
    """Return the versions that all ranks and the server must share."""
    return f"tgi {tgi.__version__}, torch {importlib.metadata.version('torch')}"


class RankActor:
    """A rank on the node where Ray has made this object."""

    def versions(self) -> str:
        """Return the versions on this node."""
        return versions()

    def run(self, task: bytes, seat: bytes) -> str:
        """Run a rank until it ends or the server leaves; return how it ended, as the rest of a sentence."""
        given = msgspec.json.decode(task, type=Task), msgspec.json.decode(seat, type=Seat)
        try:
            return trio.run(_Rank(*given).run)
        except HubError as error:
            return f"finds no model there: {error}"
        except (HandshakeError, OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
            where = f"{given[0].host}, port {given[0].port}"
            reason = str(error) or str(error.__cause__ or f"no answer within {SECONDS:g} s")
            return f"cannot reach the server at {where}: {reason}"


@attrs.define(eq=False)
class _Rank:
    task: Task
    seat: Seat
    _sending: trio.Lock = attrs.field(factory=trio.Lock)

    async def run(self) -> str:
        """Run the rank; return how it ended."""
        listening = self._listen()
        with listening or contextlib.nullcontext():
            with trio.fail_after(SECONDS):
                server = await self._connect(listening.getsockname()[1] if listening else 0)
            async with server.stream:
                payload = await server.receive()
                if payload is None:
                    return _SENT_AWAY
                store = payload.decode()
                if listening is not None:
                    store += f"?descriptor={listening.fileno()}"
                folder = await self._fetch(server)
                if folder is None:
                    return _SENT_AWAY
                return await self._live(server, folder, store, listening)

    def _listen(self) -> socket.socket | None:
        """Return a socket for the store of all ranks if this one is to serve it."""
        if self.seat.rank or self.seat.ranks == 1:
            return None
        family = socket.AF_INET6 if ":" in self.seat.node else socket.AF_INET
        return socket.create_server((self.seat.node, 0), family=family, backlog=2048)

    async def _connect(self, port: int) -> Messages:
        context = tls_context(environ, server=False)
        stream = await trio.open_tcp_stream(self.task.host, self.task.port)
        watch_silence(stream)
        secured = stream if context is None else trio.SSLStream(stream, context, https_compatible=True)
        try:
            return await introduce(secured, self.task.token, self.seat.rank, port)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    async def _fetch(self, server: Messages) -> Path | None:
        """Return the model's folder on this node; None if the server leaves meanwhile. Raises HubError."""
        task, progress = self.task, Lifecycle()
        source = Source(
            task.model_id,
            task.revision,
            Path(task.cache) if task.cache else None,
            load_format=task.load_format,
        )

        async def tell() -> None:
            while True:
                await trio.sleep(_TOLD_SECONDS)
                share = f", {100 * progress.done // progress.total} %" if progress.total else ""
                await self._send(server, Kind.LINE, f"{progress.stage}{share}".encode())

        async def wait_for_end() -> None:
            await server.receive()
            nursery.cancel_scope.cancel()

        failure = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            nursery.start_soon(wait_for_end)
            try:
                return await fetch_model(source, progress, dict(environ))
            except HubError as error:
                failure = error
            finally:
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return None

    async def _live(self, server: Messages, folder: Path, store: str, listening: socket.socket | None) -> str:
        ours, theirs = os.pipe()
        output = trio.lowlevel.FdStream(ours)
        try:
            child = await start_child(
                *rank_arguments(self.seat.rank, self.seat.ranks, store),
                environment=self._environment(),
                patience=EXIT_SECONDS,
                quiet=False,
                output=theirs,
                inherited=[] if listening is None else [listening.fileno()],
            )
        finally:
            os.close(theirs)
        ending, printed = _SENT_AWAY, trio.Event()
        async with output, contextlib.aclosing(child), trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_lines, output, server, printed)

            async def pass_commands() -> None:
                await self._pass_commands(server, child, folder)
                nursery.cancel_scope.cancel()

            nursery.start_soon(pass_commands)
            await self._send(server, Kind.STARTED, str(child.process.pid).encode())
            while (payload := await child.receive()) is not None:
                await self._send(server, Kind.REPORT, payload)
            ending = await child.ending()
            with trio.move_on_after(_OUTPUT_SECONDS):
                await printed.wait()
            nursery.cancel_scope.cancel()
        return ending

    async def _pass_commands(self, server: Messages, child: Child, folder: Path) -> None:
        """Pass on commands until the server leaves; the model is read from its folder on this node."""
        loaded = False
        while (payload := await server.receive()) is not None:
            if not loaded:
                command = decode_command(payload)
                loaded = isinstance(command, Load)
                if isinstance(command, Describe | Load):
                    payload = encode_command(msgspec.structs.replace(command, folder=str(folder)))
            with contextlib.suppress(trio.BrokenResourceError):  # its end is told by whoever reads from it
                await child.send(payload)

    async def _pass_lines(
        self, output: trio.lowlevel.FdStream, server: Messages, printed: trio.Event
    ) -> None:
        """Pass on what the rank prints, line by line."""
        rest = b""
        async for data in output:
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _MAX_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                await self._send(server, Kind.LINE, line)
        if rest:
            await self._send(server, Kind.LINE, rest)
        printed.set()

    async def _send(self, server: Messages, kind: Kind, payload: bytes) -> None:
        async with self._sending:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await server.send(bytes([kind]) + payload)

    def _environment(self) -> dict[str, str]:
        """Return all variables of the rank: the node's prevail over those that it was given."""
        seat = self.seat
        own = {name: value for name, value in environ.items() if name != "OMP_NUM_THREADS"}  # Ray sets it
        if seat.ranks == 1:
            return {**self.task.environment, **own}
        interface = interface_of(seat.node)
        names = ("GLOO_SOCKET_IFNAME", *self.task.interface_variables)
        interfaces = dict.fromkeys(names, interface) if interface else {}
        # Where Ray shows each rank its own card only, that is the first it sees.
        cards = next((own[name] for name in self.task.card_variables if own.get(name)), "all")
        local_rank = seat.local_rank if cards == "all" or "," in cards else 0
        places = rank_places(seat.rank, seat.ranks, local_rank, seat.local_size)
        return {**interfaces, **self.task.environment, **own, **places}


def interface_of(address: str) -> str | None:
    """Return the name of this machine's network interface that has the address; None if none has."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, ends in interfaces if address in [end.address for end in ends]), None)
