"""Lets ranks find each other, on one machine or several."""

import socket
from datetime import timedelta
from os import environ
from urllib.parse import parse_qs, unquote, urlsplit

from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]

from tgi.plugins import ConfigError
from tgi.weights import Shard

_REACH_SECONDS = 10.0
"""Seconds in which the machine of rank 0 has to accept a connection."""


def local_place(shard: Shard) -> tuple[int, int]:
    """Return the rank's index among the ranks that share its cards, and their number, as the variables say
    that torchrun sets, too; without them all ranks are on this machine."""
    return int(environ.get("LOCAL_RANK", shard.rank)), int(environ.get("LOCAL_WORLD_SIZE", shard.size))


def open_store(url: str, shard: Shard, patience: timedelta) -> Store:
    """Return the store in which ranks leave their addresses: "file:///PATH", or "tcp://HOST:PORT" of rank 0.

    Rank 0 serves it on the listening socket that is its descriptor N if the URL ends in "?descriptor=N".
    Waits for `patience` for the other ranks. Raises ConfigError if rank 0 cannot be reached.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FileStore(unquote(parts.path), shard.size)
    assert parts.hostname is not None
    assert parts.port is not None
    serves = shard.rank == 0
    if not serves:
        _reach(parts.hostname, parts.port, shard)
    descriptor = parse_qs(parts.query).get("descriptor")
    return TCPStore(
        parts.hostname,
        parts.port,
        shard.size,
        is_master=serves,
        timeout=patience,
        master_listen_fd=int(descriptor[0]) if descriptor else None,
    )


def _reach(host: str, port: int, shard: Shard) -> None:
    """Raise ConfigError unless the port can be reached; torch would try again for the whole patience."""
    try:
        socket.create_connection((host, port), _REACH_SECONDS).close()
    except OSError as error:
        raise ConfigError(
            f"rank {shard.rank} on {socket.gethostname()} cannot reach rank 0 at {host}, port {port} "
            f"({error}): the machines of the ranks must reach each other on all ports"
        ) from error
