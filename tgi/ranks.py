"""Rank processes: the executor's way to them, and those that are children of this process."""

import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from os import environ
from pathlib import Path
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
    """Start ranks as children of this process, which reach each other through a file.

    `cards` are variables that name their cards, and replace those of this process. Raises OSError.
    """
    # A single rank has no other to find, and may run where no file can be written.
    meeting = tempfile.TemporaryDirectory(prefix="tgi-") if ranks > 1 else contextlib.nullcontext("")
    children: list[Child] = []
    with meeting as folder:
        store = file_store(Path(folder)) if folder else ""
        if folder:  # on a full disk, ranks would wait for each other in vain
            (Path(folder) / "room").write_bytes(bytes(4096))
        try:
            for rank in range(ranks):
                child = await start_child(
                    *rank_arguments(rank, ranks, store),
                    environment={**rank_environment(rank, ranks, environment), **cards},
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


def file_store(folder: Path) -> str:
    """Return the URL of the store through which ranks that share an empty folder find each other."""
    return (folder / "ranks").as_uri()


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
