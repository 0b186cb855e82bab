"""Runs the probes in child processes, one for each rank, and collects their results."""

import attrs
import msgspec
import trio

from tgi.child import Child, start_child
from tgi.plugins import DeviceSpec
from tgi.plugins.check import Check, fail
from tgi.ranks import meeting, meeting_url, rank_environment

PATIENCE = 180.0
"""Maximum seconds for all probes: the first graph of a cold card takes a while."""


def try_device(spec: DeviceSpec, threads: int, ranks: int, patience: float = PATIENCE) -> list[Check]:
    """Return the results of rank 0's probes, and a failure if a rank does not end well within `patience`."""
    with meeting() as store:
        trial = _Trial(spec, threads, store)
        trio.run(trial.run, ranks, patience)
    return trial.checks


@attrs.define(eq=False)
class _Trial:
    spec: DeviceSpec
    threads: int
    store: int
    """Descriptor of the file through which the ranks find each other."""
    checks: list[Check] = attrs.field(factory=list)
    begun: str = ""
    """Name of the probe that rank 0 has begun and not finished."""
    failed: tuple[int, str] | None = None
    """First rank that did not end well, and how it ended."""

    async def run(self, ranks: int, patience: float) -> None:
        children: list[Child] = []
        try:
            for rank in range(ranks):
                children.append(await self._start(rank, ranks))
            with trio.move_on_after(patience) as scope:
                await self._wait(children)
        finally:
            for child in children:
                await child.aclose()
        if scope.cancelled_caught:
            self._fail(self.begun or "device", f"It has not ended within {patience:g} s.")
        elif self.failed is not None:
            rank, ending = self.failed
            name = f"rank {rank}" if rank else self.begun or "device"
            self._fail(name, f"Rank {rank} {ending}.")

    def _fail(self, name: str, found: str) -> None:
        self.checks.append(fail(name, found, self.spec.open_doctor().crash))

    async def _start(self, rank: int, ranks: int) -> Child:
        arguments = self.spec.name, str(self.threads), str(rank), str(ranks), meeting_url(self.store)
        environment = rank_environment(rank, ranks, self.spec.environment)
        return await start_child(
            "-m", "tgi.doctor.probe", *arguments, environment=environment, inherited=[self.store]
        )

    async def _wait(self, children: list[Child]) -> None:
        """Follow all ranks until they have ended; kill the others when one does not end well."""
        async with trio.open_nursery() as nursery:
            for rank, child in enumerate(children):
                nursery.start_soon(self._follow, rank, child, children)

    async def _follow(self, rank: int, child: Child, children: list[Child]) -> None:
        while (payload := await child.receive()) is not None:
            if rank:
                continue  # it repeats the results of rank 0
            message = msgspec.json.decode(payload, type=str | Check)
            if isinstance(message, str):
                self.begun = message
            else:
                self.checks.append(message)
                self.begun = ""
        ending = await child.ending()
        if self.failed is None and (child.process.returncode or (rank == 0 and self.begun)):
            self.failed = rank, ending
            for other in children:
                other.kill()
