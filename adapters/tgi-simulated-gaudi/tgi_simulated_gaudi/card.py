"""State of the simulated card: memory in use, simulated time, compiled recipes, the seal.

A process has one card, as with the bridge. The card knows no tensors; dispatch.py and recording.py report to
it.
"""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from .profile import Profile
from .rules import Ledger
from .streams import Streams

_ALIKE = 3
"""Number of compiled functions that may have the same operations."""


class OutOfMemoryError(RuntimeError):
    """Memory of the card is exhausted; the bridge raises an ordinary RuntimeError, too."""


@attrs.define(eq=False)
class Memory:
    """Memory of the card, in bytes."""

    limit: int
    """Bytes that the process can use."""
    in_use: int = 0
    """Bytes that are allocated now."""
    peak: int = 0
    """Maximum of `in_use` so far."""
    allocations: int = 0
    """Number of allocations so far."""
    frees: int = 0
    """Number of freed allocations so far."""
    largest: int = 0
    """Bytes of the largest allocation so far."""
    workspace: int = 0
    """Bytes of the intermediate results of the largest graph; all graphs share them."""

    def take(self, size: int) -> None:
        """Allocate bytes. Raises OutOfMemoryError."""
        if self.in_use + size > self.limit:
            free = self.limit - self.in_use
            raise OutOfMemoryError(
                f"Allocation failed for size::{size} ({size >> 20})MB, {free >> 20}MB are free"
            )
        self.in_use += size
        self.allocations += 1
        self.peak = max(self.peak, self.in_use)
        self.largest = max(self.largest, size)

    def give(self, size: int) -> None:
        """Free bytes."""
        self.in_use -= size
        self.frees += 1

    def reserve_workspace(self, size: int) -> None:
        """Make room for the intermediate results of a graph."""
        if size > self.workspace:
            self.take(size - self.workspace)
            self.workspace = size


class Allocation:
    """Memory of one storage, freed when the last tensor in it has gone."""

    __slots__ = ("graphed", "memory", "read", "size", "written")

    def __init__(self, memory: Memory | None, size: int) -> None:
        if memory is not None:
            memory.take(size)
        self.memory, self.size = memory, size
        self.graphed = False
        """Whether a graph uses it, other than as an input."""
        # (stream, tick) of the last write, and of the last read by a copy; see streams.py.
        self.written: tuple[int, int] | None = None
        self.read: tuple[int, int] | None = None

    def __del__(self) -> None:
        memory = getattr(self, "memory", None)
        if memory is not None:
            memory.give(self.size)


@attrs.define
class Clock:
    """Simulated time by the roofline of profile.py and costs.py."""

    causes: Counter[str] = attrs.field(factory=Counter)
    """Seconds by cause: "compute", "launch", "h2d", "d2h", "collective" or "compile"."""

    @property
    def seconds(self) -> float:
        """Seconds of all causes."""
        return float(sum(self.causes.values()))

    def spend(self, cause: str, seconds: float) -> None:
        """Add seconds to a cause."""
        self.causes[cause] += seconds  # type: ignore[assignment]


@attrs.define
class Recipes:
    """Compiled recipes of this process, and those that earlier ones left in the folder for recipes."""

    profile: Profile
    known: set[str] = attrs.field(factory=set)
    """Hashes of the keys of recipes, which are long."""
    number: int = 0
    """Number of compilations."""
    seconds: float = 0.0
    """Simulated seconds of all compilations."""
    cache_hits: int = 0
    """Number of compilations that found their recipe in the folder."""

    def compile(self, key: Hashable, operations: int, base_seconds: float) -> float | None:
        """Return the simulated seconds of compiling a recipe; None if it is known already."""
        name = hashlib.sha256(f"{self.profile.name} {key!r}".encode()).hexdigest()[:32]
        if name in self.known:
            return None
        self.known.add(name)
        seconds = base_seconds + operations * self.profile.op_seconds
        if self.profile.recipe_cache and self._on_disk(name):
            seconds *= 0.3  # capture and tracing are not in the cache
            self.cache_hits += 1
        self.number += 1
        self.seconds += seconds
        return seconds

    def _on_disk(self, name: str) -> bool:
        folder = Path(self.profile.recipe_cache)
        if (folder / name).exists():
            return True
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        return False


@attrs.define(eq=False)
class Card:
    """The simulated card of this process; `dispatch.active` returns it."""

    profile: Profile
    ledger: Ledger = attrs.field(factory=Ledger)
    memory: Memory = attrs.field(init=False)
    clock: Clock = attrs.field(factory=Clock)
    recipes: Recipes = attrs.field(init=False)
    streams: Streams = attrs.field(init=False)
    recorder: Any = None
    """The `Recorder` of the capture that is running, if one is."""
    sealed: bool = False
    """Whether the warm-up has ended."""
    forked: bool = False
    """Whether this process is a fork of the one that opened the card (S26)."""
    compile_budget: float = float("inf")
    """Maximum simulated seconds of compilation (S25)."""
    step_bytes: float = float("inf")
    """Maximum bytes in use beyond those at `seal` (S7)."""
    sealed_bytes: int = 0
    """Bytes in use at `seal`."""
    pending: list[Hashable] = attrs.field(factory=list)
    """Operations outside of graphs since the last cut, in lazy mode."""
    _traces: Counter[Hashable] = attrs.field(factory=Counter)
    """Number of compiled functions by their operations."""
    _temporaries: list[Allocation] = attrs.field(factory=list)
    """Memory that pending operations need until the next cut."""
    collectives: "hashlib._Hash" = attrs.field(factory=hashlib.sha256)
    """Hash of all collectives so far."""
    guards: dict[str, Any] = attrs.field(factory=dict)
    """State of other modules: "kv" (kv.py), "arena" (recording.py), "collectives" (collectives.py)."""

    def __attrs_post_init__(self) -> None:
        self.memory = Memory(self.profile.memory_bytes)
        self.recipes = Recipes(self.profile)
        self.streams = Streams(self.ledger)
        self.streams.seconds = lambda: self.clock.seconds

    @property
    def lazy(self) -> bool:
        """Whether the bridge is in lazy mode."""
        return self.profile.engine == "lazy"

    def seal(self, step_bytes: float = float("inf")) -> None:
        """End the warm-up: refuse compilations (S1), and more than `step_bytes` of further memory (S7)."""
        self.cut()
        self.sealed, self.step_bytes, self.sealed_bytes = True, step_bytes, self.memory.in_use

    def report(self) -> dict[str, Any]:
        """Return everything that happened so far as plain data."""
        return {
            "profile": self.profile.name,
            "violations": [attrs.asdict(violation) for violation in self.ledger.violations],
            "counters": dict(self.ledger.counters),
            "seconds": dict(self.clock.causes),
            "memory": {
                "in_use": self.memory.in_use,
                "peak": self.memory.peak,
                "workspace": self.memory.workspace,
            },
            "recipes": {"number": self.recipes.number, "seconds": self.recipes.seconds},
        }

    def unseal(self) -> None:
        """Undo `seal`."""
        self.sealed, self.step_bytes = False, float("inf")

    def allocate(self, size: int, label: str) -> Allocation:
        """Allocate memory for a tensor outside of graphs."""
        made = Allocation(self.memory, size)
        if self.sealed and self.memory.in_use - self.sealed_bytes > self.step_bytes:
            over = self.memory.in_use - self.sealed_bytes
            self.ledger.violate(
                "S7", label, f"{over} bytes more than at seal() are in use, {self.step_bytes} are allowed"
            )
        return made

    def compile(self, key: Hashable, operations: int, label: str, base_seconds: float | None = None) -> None:
        """Compile a recipe unless it is known (S1, S25)."""
        base = self.profile.segment_seconds if base_seconds is None else base_seconds
        seconds = self.recipes.compile(key, operations, base)
        if seconds is None:
            return
        self.ledger.counters["graph_compilation"] += 1
        self.clock.spend("compile", seconds)
        if self.sealed:
            self.ledger.violate(
                "S1", label, f"a recipe of {operations} operations is compiled after seal(): {key!r}"[:600]
            )
        if self.recipes.seconds > self.compile_budget:
            spent = f"{self.recipes.seconds:.1f} simulated seconds of compilation"
            self.ledger.violate("S25", label, f"{spent}, {self.compile_budget:.1f} allowed")

    def trace(self, recipe: Hashable, label: str) -> None:
        """Note that a function was traced which has the operations of this recipe (S30)."""
        self._traces[recipe] += 1
        if self._traces[recipe] > _ALIKE:
            count = self._traces[recipe]
            self.ledger.violate("S30", label, f"{count} functions with the same operations were traced")

    def begin_model(self) -> None:
        """Note that what is traced from now on belongs to another model (S30)."""
        self._traces.clear()

    def ran(self, key: Hashable, label: str) -> None:
        """Note an operation outside of graphs: a recipe of its own, or in lazy mode a part of the next."""
        if self.lazy:
            self.pending.append(key)
        else:
            self.compile(("op", key), 1, label, 0.02)
            self.clock.spend("launch", 20e-6)

    def defer_insert(self, key: Hashable, size: int, label: str) -> None:
        """Note a copy from the host into a part of a tensor, in lazy mode.

        The bridge copies into a temporary tensor of `size` bytes, which pending work inserts later.
        """
        self._temporaries.append(self.allocate(size, label))
        self.pending.append(("insert", key))

    def cut(self) -> None:
        """Compile and launch the pending operations, in lazy mode."""
        if not self.pending:
            return
        key, count = tuple(self.pending), len(self.pending)
        self.pending.clear()
        self._temporaries.clear()
        self.compile(("lazy", key), count, "a lazy graph", 0.02)
        self.clock.spend("launch", 50e-6)

    @contextmanager
    def step(self, host_reads: int = 1, copies_in: int = 1, copies_out: int = 1) -> Iterator[None]:
        """Limit the reads of values and the copies to and from the card in the body, one step (S4)."""
        names = {"host_sync": host_reads, "h2d": copies_in, "d2h": copies_out}
        before = {name: self.ledger.counters[name] for name in names}
        yield
        for name, allowed in names.items():
            done = self.ledger.counters[name] - before[name]
            if done > allowed:
                self.ledger.violate("S4", name, f"{done} in one step, {allowed} allowed")

    def change_view(self, allocation: Allocation, label: str) -> None:
        """Note a change outside of graphs by a view (S21).

        In lazy mode the bridge writes the changed tensor elsewhere, and graphs keep reading the old one.
        """
        if self.lazy and allocation.graphed:
            self.ledger.violate("S21", label, "changes a tensor that a graph uses by a view of it")

    def host_sync(self, label: str) -> None:
        """Note that the host waits for a value."""
        if self.recorder is not None:
            self.ledger.violate("S4", label, "a value is read on the host while a graph is captured")
        self.cut()
        self.ledger.counters["host_sync"] += 1
