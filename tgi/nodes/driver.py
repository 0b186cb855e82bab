"""`python -m tgi.nodes.driver`: the server's driver in a Ray cluster, a child of `tgi.child`.

It finds room for the ranks, starts an actor for each, and tells which have ended. When the server closes the
connection, or has gone, it removes the actors and the placement group. Ray's calls block, so a thread reads
what the server says.
"""

import os
import queue
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import attrs
import msgspec

from tgi.parent import Parent
from tgi.ranks import EXIT_SECONDS

from .actor import RankActor, versions
from .messages import LEAVE_SECONDS, Ended, Lacking, Place, Placed, Refused, Seat, Start, encode

_REACH_SECONDS = 5.0
"""Maximum seconds until the head of the cluster accepts a connection."""
_PLACE_SECONDS = 3.0
"""Maximum seconds until Ray reserves resources that it reports as free."""
_ACTOR_SECONDS = 120.0
"""Maximum seconds until an actor starts on its node."""
_AGAIN_SECONDS = 1.0
"""Seconds between two checks of the resources of a cluster that has too few."""


class RayError(Exception):
    """The ranks cannot run in the cluster; the message is one line for people."""


class Left(Exception):
    """The server has left."""


@attrs.define(eq=False)
class _Server:
    """The connection to the server, read by a thread."""

    parent: Parent
    heard: "queue.SimpleQueue[object]" = attrs.field(factory=queue.SimpleQueue)
    """Messages of the server, None when it has left, and ranks that have ended."""
    left: threading.Event = attrs.field(factory=threading.Event)

    def listen(self) -> None:
        """Read messages until the server leaves; then end this process in time."""
        while (payload := self.parent.receive()) is not None:
            self.heard.put(msgspec.json.decode(payload, type=Place | Start))
        self.left.set()
        self.heard.put(None)
        time.sleep(LEAVE_SECONDS - 1.0)
        os._exit(1)  # Ray does not let go

    def wait(self) -> Any:
        """Return the next message or the end of a rank. Raises Left if the server has left."""
        message = self.heard.get()
        if message is None:
            raise Left
        return message

    def tell(self, message: object) -> None:
        """Send the server a message. Raises Left if it has left."""
        try:
            self.parent.send(encode(message))
        except (BrokenPipeError, ConnectionResetError):
            raise Left from None


@attrs.define(eq=False)
class _Job:
    """Actors and a placement group in the cluster, which must be removed at the end."""

    server: _Server
    group: Any = None
    actors: list[Any] = attrs.field(factory=list)
    runs: list[Any] = attrs.field(factory=list)

    def run(self) -> None:
        """Do what the server asks until it leaves. Raises RayError or Left."""
        place = self.server.wait()
        connect(place.address)
        nodes = self.place(place)
        order = sorted(range(place.ranks), key=lambda index: _near(nodes[index]))
        seats = list(seat_ranks([nodes[index] for index in order]))
        self.server.tell(Placed([seat.node for seat in seats], source_address(seats[-1].node)))
        start = self.server.wait()
        self.start(encode(start.task), place.demand, order, seats)
        while True:
            self.server.tell(self.server.wait())

    def place(self, place: Place) -> list[str]:
        """Reserve resources; return the address of the node of each. Raises RayError if the cluster has too
        few."""
        import ray
        from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

        deadline, told = time.monotonic() + place.patience, False
        while True:
            free = ray.available_resources()
            enough = all(free.get(name, 0) >= amount * place.ranks for name, amount in place.demand.items())
            for size in bundle_sizes(place.ranks, place.demand, _live_nodes()) if enough else ():
                bundle = {name: amount * size for name, amount in place.demand.items()}
                self.group = placement_group([bundle] * (place.ranks // size), strategy="PACK")
                if self._wait_for_room():
                    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
                    found = placement_group_table(self.group)["bundles_to_node_id"]
                    return [addresses[found[rank // size]] for rank in range(place.ranks)]
                remove_placement_group(self.group)
                self.group = None
            lacking = shortage(place, _live_nodes(), free)
            if time.monotonic() >= deadline:
                raise RayError(lacking)
            if not told:
                self.server.tell(Lacking(lacking))
                told = True
            if self.server.left.wait(_AGAIN_SECONDS):
                raise Left

    def _wait_for_room(self) -> bool:
        end = time.monotonic() + _PLACE_SECONDS
        while time.monotonic() < end:
            if self.server.left.is_set():
                raise Left
            if self.group.wait(0.25):
                return True
        return False

    def start(
        self, task: bytes, demand: Mapping[str, float], order: Sequence[int], seats: Sequence[Seat]
    ) -> None:
        """Start an actor for each rank, and let them run. Raises RayError if one cannot start."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        made = ray.remote(RankActor)
        others = {name: amount for name, amount in demand.items() if name not in ("CPU", "GPU")}
        size = len(order) // self.group.bundle_count
        for index in order:
            strategy = PlacementGroupSchedulingStrategy(self.group, index // size)
            actor = made.options(
                num_cpus=demand.get("CPU", 0),
                num_gpus=demand.get("GPU", 0),
                resources=others,
                scheduling_strategy=strategy,
            )
            self.actors.append(actor.remote())
        self._compare_versions(seats)
        for actor, seat in zip(self.actors, seats, strict=True):
            run = actor.run.remote(task, encode(seat))
            self.runs.append(run)
            threading.Thread(target=self._follow, args=(seat.rank, run), daemon=True).start()

    def _compare_versions(self, seats: Sequence[Seat]) -> None:
        import ray

        ours = versions()
        for actor, seat in zip(self.actors, seats, strict=True):
            try:
                theirs = ray.get(actor.versions.remote(), timeout=_ACTOR_SECONDS)
            except ray.exceptions.GetTimeoutError as error:
                raise RayError(f"node {seat.node} starts no actor within {_ACTOR_SECONDS:g} s") from error
            except ray.exceptions.RayError as error:
                reason = _last_line(error)
                raise RayError(
                    f"node {seat.node} cannot run tgi, which must be installed there: {reason}"
                ) from error
            if theirs != ours:
                raise RayError(
                    f"node {seat.node} has {theirs}, and the server {ours}: install the same on all"
                )

    def _follow(self, rank: int, run: Any) -> None:
        """Wait for the end of a rank."""
        import ray

        try:
            how = ray.get(run)
        except ray.exceptions.ActorUnavailableError:
            how = "was lost: its node cannot be reached"
        except ray.exceptions.RayError as error:
            died = "its node has died" in str(error)
            how = f"was lost: {'its node has died' if died else _last_line(error)}"
        self.server.heard.put(Ended(rank, how))

    def take_away(self) -> None:
        """Let the ranks end, whose connections the server has closed, and remove the actors and the placement
        group."""
        import ray
        from ray.util.placement_group import remove_placement_group

        if self.runs:
            ray.wait(self.runs, num_returns=len(self.runs), timeout=EXIT_SECONDS + 1.0)
        for actor in self.actors:
            ray.kill(actor)
        if self.group is not None:
            remove_placement_group(self.group)
        ray.shutdown()


def connect(address: str) -> None:
    """Become a driver of the cluster. Raises RayError."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise RayError("--executor ray needs Ray: pip install 'tgi-server[ray]'") from error

    parts = urlsplit(address if "//" in address else f"ray://{address}")
    if parts.hostname and parts.port:  # Ray itself would try for a minute
        try:
            socket.create_connection((parts.hostname, parts.port), _REACH_SECONDS).close()
        except OSError as error:
            raise RayError(f"no Ray cluster answers at {address} ({error}): {_ADVICE}") from error
    try:
        ray.init(address, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray raises plain ones
        raise RayError(
            f"no Ray cluster can be joined at {address}: {_last_line(error)} ({_ADVICE})"
        ) from error


_ADVICE = "`ray start --head` starts one, and `ray start --address=HOST:PORT` joins it from another machine"


def _last_line(error: Exception) -> str:
    """Return the message of an error in a line: of a traceback, the last one."""
    text = str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if "Traceback" in text else " ".join(lines))[:400]


def _live_nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _near(address: str) -> tuple[bool, str]:
    """Return the key by which nodes are sorted: this machine comes first, the ranks of a node together."""
    return source_address(address) != address, address


def source_address(address: str) -> str:
    """Return the address of this machine on its way to another one. Sends nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))
        return str(probe.getsockname()[0])


def seat_ranks(nodes: Sequence[str]) -> Iterator[Seat]:
    """Yield the place of each rank, whose nodes are given in order."""
    sizes, seen = Counter(nodes), Counter[str]()
    for rank, node in enumerate(nodes):
        yield Seat(rank, len(nodes), node, seen[node], sizes[node])
        seen[node] += 1


def bundle_sizes(
    ranks: int, demand: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]
) -> Iterator[int]:
    """Yield how many ranks must share a node, best first: all, or else an equal part that a node can hold."""
    for size in range(ranks, 0, -1):
        if ranks % size:
            continue
        room = [
            min(int(node["Resources"].get(name, 0) // amount) for name, amount in demand.items())
            for node in nodes
        ]
        if sum(space // size for space in room) * size >= ranks:
            yield size


def shortage(place: Place, nodes: Sequence[Mapping[str, Any]], free: Mapping[str, float]) -> str:
    """Return the resources that were asked for, and those that the cluster has, as a sentence."""
    wanted = ", ".join(f"{amount * place.ranks:g} {name}" for name, amount in place.demand.items())
    there = ", ".join(
        f"{free.get(name, 0):g} {name} free of {sum(node['Resources'].get(name, 0) for node in nodes):g}"
        for name in place.demand
    )
    each = "; ".join(
        f"{node['NodeManagerAddress']} has "
        + ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in place.demand)
        for node in nodes
        if all(name in node["Resources"] for name in place.demand)
    )
    none = f"no node has {' and '.join(place.demand)}"
    subject = "1 rank asks" if place.ranks == 1 else f"{place.ranks} ranks ask"
    return f"{subject} for {wanted}, and the Ray cluster has {there} ({each or none})"


def main() -> None:
    """Live until the server leaves."""
    server = _Server(Parent.of_this_process())
    threading.Thread(target=server.listen, daemon=True).start()
    job = _Job(server)
    try:
        job.run()
    except RayError as error:
        server.parent.send(encode(Refused(str(error))))
    except Left:
        pass
    finally:
        if "ray" in sys.modules and sys.modules["ray"].is_initialized():
            job.take_away()


if __name__ == "__main__":
    main()
