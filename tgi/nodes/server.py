"""The server's side of ranks on the nodes of a Ray cluster."""

import contextlib
import logging
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from os import environ
from typing import TypeVar

import attrs
import msgspec
import trio

from tgi.child import Child, Messages, start_child
from tgi.executor import EngineError
from tgi.hub import Source
from tgi.lifecycle import Lifecycle
from tgi.plugins import DeviceSpec
from tgi.ranks import RankProcess

from .handshake import SECONDS, HandshakeError, admit, tls_context, watch_silence, welcome
from .messages import LEAVE_SECONDS, Ended, Kind, Lacking, Place, Placed, Refused, Start, Task, encode

M = TypeVar("M", Placed, Ended)
log = logging.getLogger(__name__)
_RECOVERY_SECONDS = 300.0
"""Seconds to wait for resources when ranks are lost: of another node, or of the lost ranks themselves."""
_REASON_SECONDS = 3.0
"""Seconds that Ray may take to tell why a connection has broken off."""


@attrs.define(eq=False)
class NodeRank:
    """A rank on a node, which connects by itself."""

    index: int
    node: str
    pid: int | None = None
    """Process id on the node; None before the rank has started."""
    messages: Messages | None = None
    """Connection to the rank; None before it is made."""
    store_port: int = 0
    """Port at which the rank serves the store of all, if it is rank 0."""
    connected: trio.Event = attrs.field(factory=trio.Event)
    started: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    how: str = "has lost its connection"
    """End of the rank, told as the rest of a sentence."""

    def __str__(self) -> str:
        return f"process {self.pid} on node {self.node}"

    async def send(self, payload: bytes) -> None:
        """Send a message. Raises trio.BrokenResourceError if the rank has gone."""
        assert self.messages is not None
        try:
            await self.messages.send(payload)
        except trio.ClosedResourceError as error:
            raise trio.BrokenResourceError from error

    async def receive(self) -> bytes | None:
        """Return the next report; None once the rank has gone."""
        while (message := await self._next()) is not None:
            if message[0] == Kind.REPORT:
                return message[1:]
        return None

    async def wait_for_start(self) -> None:
        """Return when the rank has started, or has gone."""
        while not self.started.is_set() and await self._next() is not None:
            pass

    async def _next(self) -> bytes | None:
        """Return the next message; None once the rank has gone. Lines are logged."""
        assert self.messages is not None
        try:
            message = await self.messages.receive()
        except trio.ClosedResourceError:
            return None
        if message is None:
            return None
        if message[0] == Kind.LINE:
            log.warning("rank %d on %s: %s", self.index, self.node, message[1:].decode(errors="replace"))
        if message[0] == Kind.STARTED:
            self.pid = int(message[1:])
            self.started.set()
        return message

    async def ending(self) -> str:
        """Wait until Ray has told how the rank has ended, or for some seconds; return it."""
        with trio.move_on_after(_REASON_SECONDS):
            await self.ended.wait()
        return self.how

    async def end(self, how: str) -> None:
        """Note how the rank has ended, and close its connection, which may not have noticed."""
        self.how = how
        self.ended.set()
        await trio.sleep(_REASON_SECONDS)  # the last reports may still be under way
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection, so that the rank ends."""
        if self.messages is not None:
            await trio.aclose_forcefully(self.messages.stream)


@attrs.define(eq=False)
class _Start:
    """Connections of the ranks of one start."""

    ranks: Sequence[NodeRank]
    tls: ssl.SSLContext | None
    token: bytes = attrs.field(factory=lambda: secrets.token_bytes(32))

    async def take(self, stream: trio.SocketStream) -> None:
        """Accept a connection, which may come from anybody, and wait for the start of its rank."""
        peer = "a host that has left"
        try:
            peer = stream.socket.getpeername()[0]
            watch_silence(stream)
            with trio.fail_after(SECONDS):
                secured = stream if self.tls is None else _secured(stream, self.tls)
                index, port, proof = await admit(secured, self.token)
                rank = self._free_rank(index)
                rank.store_port = port
                rank.messages = await welcome(secured, proof)
                rank.connected.set()
            await self.ranks[0].connected.wait()
            await rank.send(self._store().encode())
        except (HandshakeError, trio.TooSlowError, trio.BrokenResourceError, OSError) as error:
            reason = str(error) or str(error.__cause__ or "it does not introduce itself in time")
            log.warning("refused a connection of %s to the port for ranks: %s", peer, reason)
            await trio.aclose_forcefully(stream)
        else:
            await rank.wait_for_start()
            await trio.sleep_forever()  # the connection lives as long as this

    def _free_rank(self, index: int) -> NodeRank:
        """Return a rank that has not connected. Raises HandshakeError."""
        if index >= len(self.ranks):
            raise HandshakeError(f"rank {index} does not exist")
        if self.ranks[index].messages is not None:
            raise HandshakeError(f"rank {index} is connected already")
        return self.ranks[index]

    def _store(self) -> str:
        first = self.ranks[0]
        host = f"[{first.node}]" if ":" in first.node else first.node
        return f"tcp://{host}:{first.store_port}"

    async def follow(self, driver: Child) -> None:
        """Note which ranks have ended. Raises EngineError if one has not started, or if Ray is lost."""
        async with trio.open_nursery() as nursery:
            while True:
                ended = await _hear(driver, Ended)
                rank = self.ranks[ended.rank]
                if not rank.started.is_set():
                    raise EngineError(f"rank {rank.index} on node {rank.node} {ended.how}")
                nursery.start_soon(rank.end, ended.how)

    async def aclose(self) -> None:
        """Close all connections, so that the ranks end."""
        with trio.CancelScope(shield=True):
            for rank in self.ranks:
                await rank.aclose()


@attrs.define(eq=False)
class RayRanks:
    """Starts ranks on the nodes of a Ray cluster, and again when some are lost."""

    address: str
    """Address of the cluster, as `ray.init` takes it."""
    device: DeviceSpec
    source: Source
    """Place of the model: a folder that every node has, or an id on the Hub."""
    lifecycle: Lifecycle
    patience: float = 0.0
    """Seconds to wait for resources that the cluster lacks."""

    @contextlib.asynccontextmanager
    async def start(self, ranks: int, environment: Mapping[str, str]) -> AsyncIterator[Sequence[RankProcess]]:
        """Start ranks, as `tgi.ranks.StartRanks` says. Raises EngineError if they cannot start."""
        try:
            tls = tls_context(environ, server=True)
        except HandshakeError as error:
            raise EngineError(str(error)) from error
        self.lifecycle.enter("placing the ranks on nodes")
        driver = await start_child("-m", "tgi.nodes.driver", patience=LEAVE_SECONDS)
        async with contextlib.aclosing(driver):
            await driver.send(encode(Place(self.address, ranks, self.device.node_resources, self.patience)))
            placed = await _hear(driver, Placed)
            log.info("%s", ", ".join(f"rank {rank} on {node}" for rank, node in enumerate(placed.nodes)))
            listeners = await trio.open_tcp_listeners(0, host=placed.host)
            start = _Start([NodeRank(*each) for each in enumerate(placed.nodes)], tls)
            async with trio.open_nursery() as nursery:
                try:
                    nursery.start_soon(trio.serve_listeners, start.take, listeners)
                    nursery.start_soon(start.follow, driver)
                    port = listeners[0].socket.getsockname()[1]
                    await driver.send(encode(Start(self._task(placed.host, port, start.token, environment))))
                    for rank in start.ranks:
                        await rank.started.wait()
                    self.patience = max(self.patience, _RECOVERY_SECONDS)  # for the next time
                    yield start.ranks
                    nursery.cancel_scope.cancel()
                finally:
                    await start.aclose()

    def _task(self, host: str, port: int, token: bytes, environment: Mapping[str, str]) -> Task:
        source, device = self.source, self.device
        return Task(
            host=host,
            port=port,
            token=token,
            model_id=source.model_id,
            revision=source.revision,
            cache=None if source.cache is None else str(source.cache),
            load_format=source.load_format,
            environment=environment,
            card_variables=device.card_variables,
            interface_variables=device.interface_variables,
        )


def _secured(stream: trio.SocketStream, context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
    return trio.SSLStream(stream, context, server_side=True, https_compatible=True)


async def _hear(driver: Child, kind: type[M]) -> M:
    """Return the driver's next message. Raises EngineError if it refuses, or has ended."""
    while (payload := await driver.receive()) is not None:
        message = msgspec.json.decode(payload, type=Lacking | Placed | Refused | Ended)
        if isinstance(message, Refused):
            raise EngineError(message.reason)
        if isinstance(message, kind):
            return message
        assert isinstance(message, Lacking)
        log.warning("%s; waiting for more", message.what)
    raise EngineError(f"the connection to Ray is lost: its driver {await driver.ending()}")
