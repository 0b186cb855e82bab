"""Turns of requests at the threads that read and tokenise texts too long for the event loop."""

import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import trio

from tgi.errors import Overloaded

THREADS = 2
SHORT = 20_000
"""Bytes or characters of work that takes milliseconds: one thread does nothing longer."""


@attrs.define(eq=False)
class _Client:
    """One client's work since the last time that nobody waited."""

    done: int
    """Bytes and characters that had their turn, or those of the client with the fewest when this one came."""
    waiting: list[tuple[int, int, trio.Event]] = attrs.field(factory=list)
    """Heap of sizes, with a number that tells equal ones apart."""


@attrs.define(eq=False)
class Turns:
    """Gives THREADS turns at a time: to the client that had least, and to its shortest text.

    A client that sends long texts delays its own long texts only.
    """

    limit: int
    """Maximum number of texts that wait; more raise Overloaded."""
    taken: int = 0
    """Number of turns at present."""
    waiting: int = 0
    """Number of texts that wait."""
    _long: int = 0
    _clients: dict[str, _Client] = attrs.field(factory=dict)
    _numbers: "itertools.count[int]" = attrs.field(factory=itertools.count)

    @asynccontextmanager
    async def turn(self, client: str, size: int) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the body runs. Raises Overloaded."""
        if self.waiting >= self.limit:
            raise Overloaded
        least = min((known.done for known in self._clients.values()), default=0)
        if len(self._clients) > self.limit:
            self._clients = {name: known for name, known in self._clients.items() if known.waiting}
        queue = self._clients.setdefault(client, _Client(least)).waiting
        entry = size, next(self._numbers), trio.Event()
        heapq.heappush(queue, entry)
        self.waiting += 1
        self._call()
        try:
            await entry[2].wait()
        except trio.Cancelled:
            if entry in queue:
                queue.remove(entry)
                heapq.heapify(queue)
                self.waiting -= 1
            else:
                self._end(size)
            raise
        try:
            yield
        finally:
            self._end(size)

    def _call(self) -> None:
        """Give the free turns away."""
        while self.taken < THREADS:
            may_be_long = self._long < THREADS - 1
            clients = [
                client
                for client in self._clients.values()
                if client.waiting and (may_be_long or client.waiting[0][0] <= SHORT)
            ]
            if not clients:
                return
            client = min(reversed(clients), key=lambda client: client.done)  # the newest of equal ones
            size, _, event = heapq.heappop(client.waiting)
            client.done += size
            self.taken += 1
            self._long += size > SHORT
            self.waiting -= 1
            event.set()

    def _end(self, size: int) -> None:
        self.taken -= 1
        self._long -= size > SHORT
        self._call()
        if not self.taken:
            self._clients.clear()
