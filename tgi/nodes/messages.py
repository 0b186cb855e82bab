"""Messages between the server and its driver, and the tasks and reports of a rank's actor."""

import enum
from collections.abc import Mapping, Sequence

import msgspec

from tgi.ranks import EXIT_SECONDS

LEAVE_SECONDS = EXIT_SECONDS + 5.0
"""Seconds that the driver has to end once the server has left, before it is killed."""


class Place(msgspec.Struct, frozen=True, tag=True):
    """Find room for the ranks; answered with Placed, or Refused."""

    address: str
    """Address of the cluster, as `ray.init` takes it."""
    ranks: int
    demand: Mapping[str, float]
    """Resources of a Ray node that a rank takes."""
    patience: float
    """Seconds to wait for resources that the cluster lacks now."""


class Lacking(msgspec.Struct, frozen=True, tag=True):
    """Resources are lacking, which the driver waits for."""

    what: str
    """One line for people."""


class Placed(msgspec.Struct, frozen=True, tag=True):
    """The ranks have room."""

    nodes: Sequence[str]
    """Address of the node of each rank."""
    host: str
    """Address at which the nodes reach the server."""


class Task(msgspec.Struct, frozen=True):
    """Settings that every rank of a start has in common."""

    host: str
    port: int
    """Port of the server on `host` that ranks connect to."""
    token: bytes
    """Secret of this start, which the server and its ranks alone know."""
    model_id: str
    """Folder that is shared by all nodes, or id on the Hub, as for `tgi.hub.Source`."""
    revision: str | None
    cache: str | None
    load_format: str
    environment: Mapping[str, str]
    """Variables of a rank, unless its node sets them."""
    card_variables: Sequence[str]
    """Variables that list the cards a rank may use."""
    interface_variables: Sequence[str]
    """Variables that name the network interface over which ranks reach each other."""


class Seat(msgspec.Struct, frozen=True):
    """Place of a rank among all, and on its node."""

    rank: int
    ranks: int
    node: str
    """Address of the node."""
    local_rank: int
    local_size: int


class Start(msgspec.Struct, frozen=True, tag=True):
    """Start the ranks where they have room."""

    task: Task


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The ranks cannot be placed or started."""

    reason: str
    """One line for people."""


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A rank has ended, or its node is lost."""

    rank: int
    how: str
    """Rest of a sentence: "was killed by SIGKILL"."""


class Kind(enum.IntEnum):
    """First byte of what an actor sends."""

    REPORT = 0
    """A report of the rank follows."""
    LINE = 1
    """A line for the log follows, from the rank's output or about its start."""
    STARTED = 2
    """The rank runs; its process id follows."""


def encode(message: object) -> bytes:
    """Return the bytes of a message."""
    return msgspec.json.encode(message)
