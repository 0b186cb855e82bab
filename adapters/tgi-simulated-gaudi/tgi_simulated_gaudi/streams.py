"""Streams and events of the simulated card, and the copies between host and device that they order.

Operations run at once; only their visibility is simulated. Every stream counts its work in ticks, and knows
up to which tick it has waited for each other stream (a vector clock). A copy to the host leaves rubbish in
its buffer until the host has waited for an event after the copy. If the buffer is not pinned, events do not
cover the copy: the bridge copies into a buffer of its own, and from there later, in a thread.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs
import torch

from .pinning import extent, is_pinned
from .rules import Ledger


class Moments(Protocol):
    """(stream, tick) of the last write to memory, and of the last read of it by a copy."""

    written: tuple[int, int] | None
    read: tuple[int, int] | None


@attrs.frozen(eq=False)
class Arrival:
    """A copy between host and device that the host has not waited for."""

    tick: int
    """Tick of its stream at which it is done."""
    host: torch.Tensor
    """Buffer on the host."""
    to_host: bool
    in_events: bool
    """Whether an event after the copy covers it."""
    finish: Callable[[], None]
    """Makes the copy visible, or checks that its source is unchanged."""

    def uses(self, tensor: torch.Tensor) -> bool:
        """Whether the buffer and a tensor share memory."""
        (first, last), (begin, end) = extent(self.host), extent(tensor)
        return first < end and begin < last


@attrs.define(eq=False)
class Stream:
    """`torch.hpu.Stream`."""

    streams: "Streams"
    number: int
    tick: int = 0
    """Number of operations so far that matter to other streams."""
    seen: dict[int, int] = attrs.field(factory=dict)
    """Ticks of other streams that this one has waited for."""
    arrivals: deque[Arrival] = attrs.field(factory=deque)
    """Unfinished copies, the oldest first."""

    def wait_event(self, event: "Event") -> None:
        """Let later work wait for the event."""
        _merge(self.seen, event.seen)

    def wait_stream(self, stream: "Stream") -> None:
        """Let later work wait for all present work of another stream."""
        _merge(self.seen, stream.position)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Record and return an event after all present work."""
        made = Event(self.streams) if event is None else event
        made.record(self)
        return made

    def query(self) -> bool:
        """Return whether all work is done, and the host may read copies: always, since it waits."""
        self.synchronize()
        return True

    def synchronize(self) -> None:
        """Let the host wait for all present work."""
        self.streams.host_waits(self.position)

    @property
    def position(self) -> dict[int, int]:
        """Ticks of all streams that are reached when all present work is done."""
        return self.seen | {self.number: self.tick}


class Event:
    """`torch.hpu.Event`."""

    def __init__(self, streams: "Streams", enable_timing: bool = False) -> None:
        self.streams, self.enable_timing = streams, enable_timing
        self.seen: dict[int, int] = {}
        self.seconds = 0.0
        self._asked = False

    def record(self, stream: Stream | None = None) -> None:
        """Place the event after all present work of the stream."""
        self.seen = dict((stream or self.streams.current).position)
        self.seconds = self.streams.seconds()
        self._asked = False

    def wait(self, stream: Stream | None = None) -> None:
        """Let later work of the stream wait for the event."""
        (stream or self.streams.current).wait_event(self)

    def query(self) -> bool:
        """Return False the first time, so that code that asks has to wait."""
        if not self._asked and self.seen:
            self._asked = True
            return False
        self.synchronize()
        return True

    def synchronize(self) -> None:
        """Let the host wait for the event."""
        self.streams.host_waits(self.seen)

    def elapsed_time(self, end: "Event") -> float:
        """Return the simulated milliseconds until another event."""
        return (end.seconds - self.seconds) * 1000


class Streams:
    """All streams of a card."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.all: list[Stream] = []
        self.current = self.default = self.new()
        self._host_seen: dict[int, int] = {}
        self._lock = threading.RLock()  # one thread may launch steps while another waits for results
        self.seconds: Callable[[], float] = lambda: 0.0

    def new(self) -> Stream:
        """Add a stream."""
        self.all.append(Stream(self, len(self.all)))
        return self.all[-1]

    def host_waits(self, position: dict[int, int], everything: bool = False) -> None:
        """Let the host wait for these ticks, and finish the copies up to them that events cover.

        With `everything` finish the other copies, too.
        """
        with self._lock:
            _merge(self._host_seen, position)
            for stream in self.all:
                reached = self._host_seen.get(stream.number, 0)
                for arrival in [item for item in stream.arrivals if item.tick <= reached]:
                    if arrival.in_events or everything:
                        stream.arrivals.remove(arrival)
                        arrival.finish()

    def host_waits_for_all(self) -> None:
        """Let the host wait for all work, as `torch.hpu.synchronize` does."""
        for stream in self.all:
            self.host_waits(stream.position, everything=True)

    def arrive(self, host: torch.Tensor, to_host: bool, finish: Callable[[], None]) -> None:
        """Begin a copy on the current stream, which `finish` ends when the host has waited for it."""
        self.current.tick += 1
        in_events = not to_host or is_pinned(host)
        self.current.arrivals.append(Arrival(self.current.tick, host, to_host, in_events, finish))

    def uses_host(self, host: torch.Tensor, label: str, to_host: bool) -> None:
        """Check that no unfinished copy uses a buffer on the host, unless all copy from it (S27)."""
        with self._lock:
            pending = [copy for stream in self.all for copy in stream.arrivals if copy.uses(host)]
        for copy in pending:
            if to_host or copy.to_host:
                self._ledger.violate(
                    "S27", label, "a buffer on the host is used again while its first copy is unfinished"
                )
            else:
                copy.finish()

    def reads(self, memory: Moments, label: str, copy: bool = False) -> None:
        """Check a read by the current stream (S27)."""
        if len(self.all) == 1:
            return
        self._must_have_seen(
            memory.written, label, "reads memory that another stream writes, and has not waited for it"
        )
        if copy:
            memory.read = (self.current.number, self.current.tick + 1)

    def writes(self, memory: Moments, label: str) -> None:
        """Check a write by the current stream (S27)."""
        if len(self.all) == 1:
            return
        self._must_have_seen(
            memory.written, label, "writes memory that another stream writes, and has not waited for it"
        )
        self._must_have_seen(
            memory.read, label, "overwrites memory that another stream copies, and has not waited for it"
        )
        self.current.tick += 1
        memory.written, memory.read = (self.current.number, self.current.tick), None

    def _must_have_seen(self, moment: tuple[int, int] | None, label: str, problem: str) -> None:
        if moment is None or moment[0] == self.current.number:
            return
        number, tick = moment
        if max(self.current.seen.get(number, 0), self._host_seen.get(number, 0)) < tick:
            self._ledger.violate("S27", label, f"stream {self.current.number} {problem}")


def _merge(into: dict[int, int], other: dict[int, int]) -> None:
    for number, tick in other.items():
        into[number] = max(into.get(number, 0), tick)
