"""The LoRA adapters that requests may name, and their slots in the ranks' memory.

An adapter that is withdrawn is offered to no new request. Its slot is free once the last sequence with it has
ended; nothing needs to be told to the ranks. So loading and unloading disturb no sequence.
"""

import itertools
import logging
from collections.abc import Callable, Collection, Iterator

import attrs
import trio

from tgi.errors import Unavailable
from tgi.executor import Executor
from tgi.protocol import NO_LORAS, LoraSlots

log = logging.getLogger(__name__)
_numbers = itertools.count(1)


@attrs.define(eq=False)
class Lora:
    """A LoRA adapter in the ranks' memory."""

    name: str
    """Name under which requests use it."""
    source: str
    """Folder or id on the Hub, as whoever loaded it gave it."""
    folder: str
    """Folder with its files."""
    slot: int
    number: int = attrs.field(factory=lambda: next(_numbers))
    """Serial number, from 1 on. None is used twice, so that no adapter finds the prefixes of another."""
    offered: bool = True
    """Whether new requests may use it."""


class LoraError(Exception):
    """An adapter cannot be loaded; the message is one line for people."""


Users = Callable[[], Collection[Lora]]
"""Returns the adapters of the sequences that have not ended."""


@attrs.define(eq=False)
class Loras:
    """All adapters of a server. Every replica has the same in its slots."""

    slots: LoraSlots = NO_LORAS
    users: list[Users] = attrs.field(factory=list)
    """One for each replica."""
    _offered: dict[str, Lora] = attrs.field(factory=dict)
    _executors: dict[Executor, trio.CancelScope] = attrs.field(factory=dict)
    """Ranks of the replicas that have some, with the scope of their present work."""
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    def __iter__(self) -> Iterator[Lora]:
        """Iterate over those that requests may use, in the order in which they were loaded."""
        return iter(self._offered.values())

    def get(self, name: str) -> Lora | None:
        """Return the adapter of that name, if new requests may use it."""
        return self._offered.get(name)

    async def attach(self, executor: Executor) -> list[Lora]:
        """Fill the slots of new ranks as those of other ranks are, or were, and return what failed.

        These are offered no more, and the replica's sequences that use them cannot go on.
        """
        failed = []
        async with self._lock:
            self._executors[executor] = trio.CancelScope()
            for lora in self._kept:
                if fault := await self._send(executor, lora.slot, lora.folder):
                    log.error("the LoRA adapter %r cannot be loaded again: %s", lora.name, fault)
                    failed.append(lora)
                    self._withdraw(lora)
        return failed

    def detach(self, executor: Executor) -> None:
        """Note that the ranks of a replica are lost."""
        if (scope := self._executors.pop(executor, None)) is not None:
            scope.cancel()

    async def load(self, name: str, source: str, folder: str, *, replace: bool = False) -> None:
        """Load an adapter and offer it under a name, in the place of another with that name if `replace`.

        Raises LoraError if that cannot be, and Unavailable without ranks.
        """
        async with self._lock:
            if name in self._offered and not replace:
                raise LoraError(
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in "
                    "place, set 'load_inplace' to True."
                )
            taken = {lora.slot for lora in self._kept}
            free = [slot for slot in range(self.slots.count) if slot not in taken]
            if not free:
                raise LoraError(
                    f"--max-loras is {self.slots.count}, and all slots are taken: unload an adapter, wait "
                    "for the requests that use it, or start the server with more slots"
                )
            for executor in list(self._executors):
                if fault := await self._send(executor, free[0], folder):
                    raise LoraError(f"the LoRA adapter {name!r} cannot be loaded: {fault}")
            if not self._executors:
                raise Unavailable("recovering from the loss of a rank")
            if (before := self._offered.get(name)) is not None:
                self._withdraw(before)
            self._offered[name] = Lora(name, source, folder, free[0])

    def unload(self, name: str) -> bool:
        """Offer an adapter no more, and return whether there was one of that name."""
        lora = self._offered.get(name)
        if lora is not None:
            self._withdraw(lora)
        return lora is not None

    @property
    def _kept(self) -> set[Lora]:
        """Adapters whose slots are not free."""
        return {*self._offered.values(), *(lora for users in self.users for lora in users())}

    def _withdraw(self, lora: Lora) -> None:
        lora.offered = False
        if self._offered.get(lora.name) is lora:
            del self._offered[lora.name]

    async def _send(self, executor: Executor, slot: int, folder: str) -> str:
        """Return the answer of a replica's ranks; "" if they are lost, since new ones fill all slots."""
        if executor in self._executors:
            with trio.CancelScope() as self._executors[executor]:
                return await executor.load_lora(slot, folder)
        return ""
