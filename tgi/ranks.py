"""Rank processes: the executor's way to them, and those that are children of this process."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from os import environ
from types import MappingProxyType
from typing import Protocol

import trio

from tgi.child import Child, start_child

EXIT_SECONDS = 5.0
"""Seconds that a rank has to end once its socket is closed, before it is killed."""


class RankProcess(Protocol):
    """A running rank and the connection to it; `str` says where it runs, as "process 4711"."""

    async def send(self, payload: bytes) -> None:
        """Send a message. Raises trio.BrokenResourceError if the rank has gone."""

    async def receive(self) -> bytes | None:
        """Return the next message; None once the rank has gone."""

    async def ending(self) -> str:
        """Wait until the rank has ended; return how, as the rest of a sentence in one line."""


StartRanks = Callable[[int, Mapping[str, str]], AbstractAsyncContextManager[Sequence[RankProcess]]]
"""Way to start ranks: from their number, and variables that they have unless their machine sets them, to the
processes in the order of the ranks. They end when the context is left."""


@contextlib.asynccontextmanager
async def local_ranks(
    ranks: int, environment: Mapping[str, str], cards: Mapping[str, str] = MappingProxyType({})
) -> AsyncIterator[Sequence[Child]]:
    """Start ranks as children of this process.

    `cards` are variables that name their cards, and replace those of this process. Raises OSError.
    """
    children: list[Child] = []
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(meeting()) if ranks > 1 else None
        try:
            for rank in range(ranks):
                child = await start_child(
                    *rank_arguments(rank, ranks, meeting_url(store) if store else ""),
                    environment={**rank_environment(rank, ranks, environment), **cards},
                    inherited=[store] if store else [],
                    patience=EXIT_SECONDS,
                    quiet=False,  # its libraries' warnings are for the operator, at once
                )
                children.append(child)
            yield children
        finally:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as leaving:
                    for child in children:
                        leaving.start_soon(child.aclose)


@contextlib.contextmanager
def meeting() -> Iterator[int]:
    """Give the descriptor of a file in memory through which ranks find each other that inherit it.

    No disk is needed, and nothing is left of it when the last process ends. Raises OSError.
    """
    descriptor = os.memfd_create("ranks")
    try:
        os.write(descriptor, bytes(4096))  # without room, ranks would wait for each other for ever
        os.truncate(descriptor, 0)
        yield descriptor
    finally:
        os.close(descriptor)


def meeting_url(descriptor: int) -> str:
    """Return the URL of the store for the ranks that inherit the descriptor of `meeting`."""
    return f"file:///proc/self/fd/{descriptor}"


def rank_arguments(rank: int, ranks: int, store: str) -> list[str]:
    """Return the arguments of Python for a rank, which finds the others through `store`."""
    return ["-m", "tgi.worker", str(rank), str(ranks), store]


def rank_environment(rank: int, ranks: int, environment: Mapping[str, str]) -> dict[str, str]:
    """Return all variables of a rank: `environment`, this process's, which prevail, and its place."""
    if ranks == 1:
        return {**environment, **environ}
    places = rank_places(rank, ranks, rank, ranks)
    # All are on this machine: gloo need not look for an address that others could reach.
    return {"GLOO_SOCKET_IFNAME": "lo", **environment, **environ, **places}


def rank_places(rank: int, ranks: int, local_rank: int, local_size: int) -> dict[str, str]:
    """Return the variables by which torchrun tells a process its place among all, and on its machine."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_size),
    }
