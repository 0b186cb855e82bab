"""Checks that all ranks do the same, and in time.

Ranks wait for each other many times in a step. If one does something else, or nothing, the others would wait
for ever; so each reports the digest of a step before it begins, and that of the tokens when it has finished.
Knows no clock and no processes; complaints are one line for people.
"""

from collections import deque
from collections.abc import Iterable

import attrs


@attrs.frozen(kw_only=True)
class Patience:
    """Seconds that ranks may take before the engine counts as lost."""

    join: float = 120.0
    """Seconds in which all ranks must find each other when they start."""
    lag: float = 60.0
    """Maximum seconds that a rank may be behind another."""
    step: float = 900.0
    """Maximum seconds for a step until the first rank has finished it."""
    compiling: float = 0.0
    """Seconds added to `lag` and `step` until the warm-up has ended: one rank may compile a program that
    another has in its cache."""


@attrs.define
class _Step:
    number: int
    digest: bytes
    since: float
    """Time from which all ranks could begin."""
    begun: dict[int, float] = attrs.field(factory=dict)
    """Times at which ranks began."""
    finished: dict[int, float] = attrs.field(factory=dict)
    """Times at which ranks finished."""
    tokens: dict[int, tuple[int, bytes]] = attrs.field(factory=dict)
    """First rank that finished, and the digest of its tokens, by stage."""

    def __str__(self) -> str:
        return f"step {self.number}" if self.number else "a step of the warm-up"


class Agreement:
    """Progress of `ranks` ranks in the steps that not all of them have finished.

    Ranks are compared with those of their stage. The first ranks are in the first of the `stages`.
    """

    def __init__(self, ranks: int, patience: Patience, stages: int = 1) -> None:
        self._ranks = range(ranks)
        self._shards = ranks // stages
        self._patience = patience
        self._extra = patience.compiling
        self._steps: deque[_Step] = deque()

    def settle(self) -> None:
        """Note that nothing is compiled from now on."""
        self._extra = 0.0

    def sent(self, number: int, digest: bytes, now: float) -> None:
        """Note that a step is handed to all ranks."""
        self._steps.append(_Step(number, digest, now))

    def begun(self, rank: int, digest: bytes, now: float) -> str | None:
        """Note that a rank begins its next step; return a complaint if it is another one."""
        step = next((step for step in self._steps if rank not in step.begun), None)
        if step is None:
            return f"rank {rank} begins with a step that it was not given"
        step.begun[rank] = now
        if digest != step.digest:
            return f"ranks disagree: rank {rank} has got another {step} than was sent"
        return None

    def finished(self, rank: int, tokens: bytes, now: float) -> str | None:
        """Note that a rank finished its oldest step; return a complaint if its tokens differ."""
        step = next((step for step in self._steps if rank not in step.finished), None)
        if step is None or rank not in step.begun:
            return f"rank {rank} has finished a step that it has not begun"
        step.finished[rank] = now
        first, wanted = step.tokens.setdefault(rank // self._shards, (rank, tokens))
        if tokens != wanted:
            one, other = sorted((first, rank))
            return f"ranks disagree: {step} gave other tokens on rank {other} than on rank {one}"
        if len(step.finished) == len(self._ranks):
            self._steps.remove(step)
            if self._steps:
                self._steps[0].since = max(self._steps[0].since, now)
        return None

    def stood_still(self, seconds: float) -> None:
        """Note that the server did nothing for that long, and perhaps the ranks neither: nobody is late."""
        for step in self._steps:
            step.since += seconds
            for times in (step.begun, step.finished):
                times.update({rank: time + seconds for rank, time in times.items()})

    def overdue(self, now: float) -> str | None:
        """Return a complaint if a rank is late."""
        if not self._steps:
            return None
        step, since = self._steps[0], self._steps[0].since
        lag, longest = (seconds + self._extra for seconds in (self._patience.lag, self._patience.step))
        for first in range(0, len(self._ranks), self._shards):
            stage = range(first, first + self._shards)
            for of_all, verb in ((step.finished, "finished"), (step.begun, "begun with")):
                done = {rank: of_all[rank] for rank in stage if rank in of_all}
                late = [rank for rank in stage if rank not in done]
                if done and late and now - min(done.values()) > lag:
                    return (
                        f"{names(late)} {_has(late)} not {verb} {step}, which {names(done)} {_has(done)} "
                        f"{verb} more than {lag:g} s ago"
                    )
            finished = [step.finished[rank] for rank in stage if rank in step.finished]
            if not finished and now - since > longest:
                who = "no rank" if len(stage) == len(self._ranks) else f"none of {names(stage)}"
                return f"{who} has finished {step} within {longest:g} s"
            since = max(finished, default=since)
        return None


def names(ranks: Iterable[int]) -> str:
    """Return "rank 0" or "ranks 0, 1"."""
    each = [str(rank) for rank in ranks]
    return f"rank{'s' if len(each) > 1 else ''} {', '.join(each)}"


def _has(ranks: Iterable[int]) -> str:
    return "have" if len(list(ranks)) > 1 else "has"
