"""Replicas of a model behind the interface of one scheduler: each call goes to one of them.

`route` is a synchronous function of plain data, like `plan`. It knows exactly what each replica has cached,
because the block tables are the server's.
"""

import functools
import heapq
import math
import operator
from collections import Counter
from collections.abc import Sequence as Items
from contextlib import AbstractContextManager

import attrs
import trio

from tgi.errors import ApiError

from .loop import Scheduler, SchedulerStatistics
from .loras import Loras
from .schedule import Schedule
from .sequence import Sequence, Token

DECODING_TOKENS = 128
"""Tokens of prompts whose computation delays a new request as much as a sequence that decodes beside it:
benchmarks/replicas.py compares others."""


def route(sequence: Sequence, schedules: Items[Schedule]) -> int:
    """Return the index of the schedule where a new sequence would have least before and beside it.

    It is the number of tokens to compute until its first one, its own that are not cached included, and
    DECODING_TOKENS for each sequence that is there. Of equals, the one with the most unused blocks. Notes
    in the sequence how much of it is cached there. The pools of all schedules must share their `Prefixes`.
    """
    length = len(sequence.tokens)
    cached = _may_be_cached(sequence, schedules)
    burdens = [
        (_burden(one, length - known), index)
        for index, (one, known) in enumerate(zip(schedules, cached, strict=True))
    ]
    heapq.heapify(burdens)
    while True:
        _, index = burdens[0]
        sequence.cached = schedules[index].allocator.cached_tokens(sequence)
        if sequence.cached == cached[index]:
            return index
        cached[index] = sequence.cached
        heapq.heapreplace(burdens, (_burden(schedules[index], length - sequence.cached), index))


def _may_be_cached(sequence: Sequence, schedules: Items[Schedule]) -> list[int]:
    """Return how many tokens of a sequence each schedule has cached at most.

    Exact unless layers have windows: then some of the blocks may have been handed out again.
    """
    first = schedules[0].allocator
    limit = first.shareable_blocks(sequence)
    depths = first.widest.prefixes.depths(sequence.tokens, limit, first.block_size, sequence.root)
    return [first.block_size * depths.get(one.allocator.widest.number, 0) for one in schedules]


def _burden(schedule: Schedule, own: int) -> tuple[int, int]:
    """Return what a sequence with `own` tokens to compute would have to wait for, and the blocks in use."""
    pool = schedule.allocator.widest
    missing = max(own - pool.available * pool.block_size, 0)
    beside = DECODING_TOKENS * (len(schedule.running) + len(schedule.waiting))
    return own + schedule.owed + missing + beside, -pool.empties


@attrs.define(eq=False)
class Replica:
    """One of the engines of a server."""

    scheduler: Scheduler
    serving: bool = True
    """Whether it computes; False while its ranks start."""
    lost: bool = False
    """Whether its ranks were lost too often to be started again."""


class Router:
    """The schedulers of all replicas, used as one.

    A call stays on its replica, also while that waits for new ranks.
    """

    def __init__(self, *schedulers: Scheduler) -> None:
        """`schedulers` are those of replicas that compute already; more may join `replicas`."""
        self.replicas = [Replica(scheduler) for scheduler in schedulers]

    @property
    def serving(self) -> list[Replica]:
        """Replicas that compute."""
        return [replica for replica in self.replicas if replica.serving]

    @property
    def loras(self) -> Loras:
        """LoRA adapters, which all replicas share."""
        return self.replicas[0].scheduler.loras

    def count_loras(self) -> tuple[Counter[str], Counter[str]]:
        """Count the sequences that run, and those that wait, by the names of their LoRA adapters."""
        schedules = [replica.scheduler.schedule for replica in self.replicas]
        running = [one.lora.name for schedule in schedules for one in schedule.running if one.lora]
        waiting = [one.lora.name for schedule in schedules for one in schedule.waiting if one.lora]
        return Counter(running), Counter(waiting)

    def generating(
        self, sequences: Items[Sequence], deadline: float = math.inf
    ) -> AbstractContextManager[trio.MemoryReceiveChannel[tuple[int, Token | ApiError]]]:
        """Generate on one replica; see `Scheduler.generating`."""
        chosen = self._choose(sequences[0]) if sequences else self.replicas[0].scheduler
        return chosen.generating(sequences, deadline)

    def waited_seconds(self) -> float:
        """Return how long the step of the replica that is best off has taken so far; 0 if it has none."""
        return min((one.scheduler.waited_seconds() for one in self.serving), default=0.0)

    def fail_all(self, error: ApiError) -> None:
        """End every sequence with an error for its client."""
        for replica in self.replicas:
            replica.scheduler.fail_all(error)

    def statistics(self) -> SchedulerStatistics:
        """Take a snapshot, summed over the replicas."""
        return functools.reduce(operator.add, (one.scheduler.statistics() for one in self.replicas))

    def _choose(self, sequence: Sequence) -> Scheduler:
        """Return the scheduler for a sequence: of a replica that computes, or else of one that will again."""
        candidates = self.serving or [replica for replica in self.replicas if not replica.lost]
        schedulers = [replica.scheduler for replica in candidates]
        if len(schedulers) == 1:
            return schedulers[0]
        return schedulers[route(sequence, [scheduler.schedule for scheduler in schedulers])]
