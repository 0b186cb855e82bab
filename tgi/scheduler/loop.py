"""The scheduler: one task that plans, sends, receives and commits steps.

A client joins with `generating`; leaving its `with` block aborts, without an await. The scheduler never
waits for a client.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager

import attrs
import trio

from tgi.errors import ApiError, DeadlineExceeded, GenerationFailed, Shed, UnknownModel
from tgi.executor import STILL_SECONDS, EngineError, Executor
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.protocol import Bucket, Result
from tgi.text.grammar import GrammarError

from .allocator import BlockAllocator
from .blocks import BlockStatistics
from .buckets import Buckets
from .commit import commit
from .loras import Lora, Loras
from .matching import Matching
from .observe import StepObserver
from .policy import may_guess, plan
from .schedule import PlannedStep, Schedule
from .sequence import Sequence, State, Token, open_events
from .warming import OnBucket, WarmUp

LEAD = 0.25
"""Share of a step's expected time that is left when the next step is planned: early enough that the device
never waits, late enough that most requests that arrive during a step are in the very next one."""
STEP_SECONDS = 60.0
"""Minimum time, in seconds, after which a step counts as hanging."""
STEP_FACTOR = 10.0
"""Multiple of the slowest or expected step after which a step counts as hanging."""


@attrs.frozen
class SchedulerStatistics:
    """Snapshot of the scheduler's state and of its counters since the start."""

    waiting: int
    running: int
    steps: int
    preemptions: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    blocks: BlockStatistics

    def __add__(self, other: "SchedulerStatistics") -> "SchedulerStatistics":
        pairs = zip(attrs.astuple(self, recurse=False), attrs.astuple(other, recurse=False), strict=True)
        return SchedulerStatistics(*(one + another for one, another in pairs))

    @property
    def usage(self) -> float:
        """Share of the KV blocks that are in use."""
        return self.blocks.used / max(self.blocks.total, 1)


class Scheduler:
    """Owns every sequence from `generating` until it ends."""

    def __init__(
        self,
        executor: Executor,
        limits: Limits,
        buckets: Buckets,
        allocator: BlockAllocator,
        metrics: Metrics,
        *,
        count_shape: Callable[[Bucket], None] | None = None,
        step_timeout: float | None = None,
        loras: Loras | None = None,
        max_queue_seconds: float | None = None,
    ) -> None:
        """The allocator's pools have as many blocks as the ranks have reserved, without the padding block.

        `count_shape` is called with the shape of every step that serves requests, before padding.
        `loras` are the LoRA adapters of all replicas; None: there can be none.
        `step_timeout` is the number of seconds after which a step counts as hanging; None: by measurement.
        A sequence that has not begun after `max_queue_seconds` fails; None: it waits for any time.
        """
        self._executor = executor
        self._step_timeout = step_timeout
        self._max_queue_seconds = max_queue_seconds
        self._buckets = buckets
        self._schedule = Schedule(limits, buckets, allocator)
        self.loras = Loras() if loras is None else loras
        self.loras.users.append(self._used_loras)
        self._observer = StepObserver(metrics, self._schedule, count_shape)
        self._in_flight: deque[tuple[PlannedStep, float]] = deque()
        """Steps sent, with the time of sending; the first is being executed."""
        self._running_since = 0.0
        """End of the step before it."""
        self._seconds: dict[Bucket, float] = {}
        """Duration of the latest step of each bucket, where steps are padded."""
        self._last_seconds = 0.0
        """Duration of the latest step."""
        self._prompt_pace = math.inf
        """Fewest seconds for each token that a step with chunks of prompts has taken."""
        self._slowest = 0.0
        """Duration of the slowest step."""
        self._unmatched: list[Sequence] = []
        """Sequences whose matchers were to see a token when the ranks were lost."""
        self._matching: Matching
        """Threads that advance matchers, while `run` runs."""
        self._work = trio.Event()
        self._ahead = trio.CancelScope()
        """Scope in which a result is waited for until the next step is planned."""

    @property
    def schedule(self) -> Schedule:
        """State that routing reads."""
        return self._schedule

    @contextmanager
    def generating(
        self, sequences: Items[Sequence], deadline: float = math.inf
    ) -> Iterator[trio.MemoryReceiveChannel[tuple[int, Token | ApiError]]]:
        """Generate while the body runs. The channel yields pairs of a sequence's index and an item.

        Items are `Token`s, the last of a sequence with `finish` set; an `ApiError` ends one that failed. The
        channel ends when all have ended. Leaving earlier aborts the others: their rows and blocks are free
        for the next step that is planned. Raises DeadlineExceeded at the deadline, a time on trio's clock,
        Shed if none can have a token by then, and UnknownModel if a LoRA adapter has been unloaded.
        """
        for sequence in sequences:
            if sequence.lora is not None and not sequence.lora.offered:
                raise UnknownModel(sequence.lora.name)
        if trio.current_time() >= deadline:
            raise DeadlineExceeded
        if trio.current_time() + self._least_seconds(sequences, deadline) > deadline:
            raise Shed("the first token cannot come within x-request-timeout")
        now, patience = time.monotonic(), self._max_queue_seconds
        receive = open_events(sequences)
        for sequence in sequences:
            sequence.queued = now
            if patience is not None:
                sequence.expires = trio.current_time() + patience
            self._schedule.add(sequence)
        self._wake()
        try:
            with receive:
                yield receive
        finally:
            for sequence in sequences:
                if sequence.state in (State.WAITING, State.RUNNING):
                    self._schedule.remove(sequence, State.ABORTED)
            self._work.set()

    async def warm_up(
        self,
        on_bucket: OnBucket,
        *,
        timeout: float = math.inf,
        skip: bool = False,
        budget: float = math.inf,
        fewer: Callable[[int], Buckets] | None = None,
    ) -> None:
        """Run a step for each bucket; with `skip`, for the largest only. Then measure a decode step.

        Where the largest buckets suggest that all take more than `budget` seconds, `fewer` is called with
        the number that fits, and returns about that many buckets, which still dominate every step. Raises
        EngineError where a bucket takes more than `timeout` seconds.
        """
        warming = WarmUp(
            self._executor,
            self._observer,
            self._schedule.costs,
            on_bucket,
            timeout,
            padded=self._buckets.padded,
            loras=bool(self.loras.slots.count),
        )
        buckets = self._buckets.to_warm_up(everything=not skip)
        await warming.run(self._buckets.largest(), len(buckets))
        affordable = warming.affordable(budget)
        if fewer is not None and affordable < len(buckets):
            self._buckets = await trio.to_thread.run_sync(fewer, max(int(affordable), 1))
            self._schedule.buckets = self._buckets
            buckets = self._buckets.to_warm_up(everything=not skip)
        await warming.run(buckets)
        await warming.measure()

    async def run(self) -> None:
        """Schedule until cancelled. Raises EngineError when a step hangs."""
        async with trio.open_nursery() as nursery:
            self._matching = Matching(nursery, self._on_mask)
            self._matching.start(self._unmatched)
            try:
                while True:
                    await self._turn()
            finally:
                self._unmatched = self._matching.stop()
                for planned, _ in self._in_flight:
                    self._observer.lost(planned)

    def lose_ranks(self) -> None:
        """Let every sequence wait for other ranks, once `run` has ended with the ranks.

        One that has ended the ranks twice fails. Nothing that clients have received is computed again.
        """
        self.loras.detach(self._executor)
        rows = [row for planned, _ in self._in_flight for row in planned.rows]
        self._in_flight.clear()
        culprit = self._schedule.restart(rows)
        if culprit is not None:
            self._fail(culprit, GenerationFailed("the engine was lost twice while it computed this request"))

    def resume(self, executor: Executor) -> None:
        """Go on with other ranks, which have as many blocks and know nothing; `warm_up` and `run` follow."""
        self._executor = executor

    async def attach_loras(self) -> None:
        """Fill the slots of new ranks; sequences whose LoRA adapters cannot be read any more fail."""
        failed = await self.loras.attach(self._executor)
        for sequence in [*self._schedule.running, *self._schedule.waiting]:
            if sequence.lora in failed:
                self._fail(sequence, GenerationFailed(f"the LoRA adapter {sequence.lora.name!r} is lost"))

    def _used_loras(self) -> set[Lora]:
        sequences = (*self._schedule.running, *self._schedule.waiting)
        return {sequence.lora for sequence in sequences if sequence.lora is not None}

    def waited_seconds(self) -> float:
        """Return how long the step that is being executed has taken so far; 0 if none is."""
        if not self._in_flight:
            return 0.0
        _, sent = self._in_flight[0]
        return trio.current_time() - max(sent, self._running_since)

    async def _turn(self) -> None:
        """Send what the device needs to have work, and commit the oldest result."""
        self._shed()
        if not self._in_flight:
            await self._wait_for_masks()
            if not await self._send_next():
                self._work = trio.Event()
                await self._work.wait()
                return
        if may_guess(self._schedule):
            await self._commit_next()
            return
        await self._fill_stages()
        while True:
            with trio.move_on_at(self._time_to_plan()) as self._ahead:
                await self._commit_next()
                return
            if not await self._send_next() or len(self._in_flight) > self._schedule.limits.stages:
                break
        await self._commit_next()

    async def _wait_for_masks(self) -> None:
        """Wait a moment for masks that are being computed, so that their sequences share a step."""
        if self._matching.pending:
            await self._matching.wait(LEAD * self._last_seconds)

    async def _fill_stages(self) -> None:
        """Send a step to each stage that has none."""
        while len(self._in_flight) < self._schedule.limits.stages:
            await self._wait_for_masks()
            if not await self._send_next():
                return

    def _wake(self) -> None:
        """Plan a step for a sequence that can be computed now, if a stage has no work."""
        self._work.set()
        if len(self._in_flight) < self._schedule.limits.stages:
            self._ahead.cancel()

    def fail_all(self, error: ApiError) -> None:
        """End every sequence with an error for its client."""
        for sequence in [*self._schedule.running, *self._schedule.waiting]:
            self._fail(sequence, error)

    def _fail(self, sequence: Sequence, error: ApiError) -> None:
        self._schedule.remove(sequence, State.ABORTED)
        if sequence.events is not None:
            sequence.events.send_nowait(error)
            sequence.events.close()

    def _shed(self) -> None:
        """End sequences that have waited for too long."""
        if self._max_queue_seconds is None:
            return
        now = trio.current_time()
        for sequence in [s for s in self._schedule.waiting if now >= s.expires and not s.admitted]:
            self._fail(sequence, Shed(f"the request has waited for {self._max_queue_seconds:g} s"))

    def _least_seconds(self, sequences: Items[Sequence], deadline: float) -> float:
        """Return the least time until a first token, at the best speed that was measured.

        It is that of the prompt, and without tenants, that of all prompts that wait before it; less what is
        cached, or is likely to be. 0 without a deadline or a measurement.
        """
        if math.isinf(deadline) or math.isinf(self._prompt_pace):
            return 0.0
        schedule, first = self._schedule, sequences[0]
        tokens = float(len(first.prompt) - schedule.allocator.cached_tokens(first))
        if not first.tenant:
            missed = 1 - schedule.prefix_hit_tokens / max(schedule.prefix_query_tokens, 1)
            before = (len(s.tokens) for s in schedule.waiting if s.priority <= first.priority)
            tokens += missed * sum(before)
        return tokens * self._prompt_pace

    def _on_mask(self, sequence: Sequence, error: GrammarError | None) -> None:
        """Note that a matcher has seen its sequence's last token; the sequence may have ended meanwhile."""
        if sequence.state not in (State.WAITING, State.RUNNING):
            return
        if error is None:
            sequence.matched += 1
        else:
            self._fail(sequence, GenerationFailed(str(error)))
        self._wake()

    def statistics(self) -> SchedulerStatistics:
        """Take a snapshot."""
        schedule = self._schedule
        return SchedulerStatistics(
            waiting=len(schedule.waiting),
            running=len(schedule.running),
            steps=schedule.number,
            preemptions=schedule.preemptions,
            prefix_hit_tokens=schedule.prefix_hit_tokens,
            prefix_query_tokens=schedule.prefix_query_tokens,
            blocks=schedule.allocator.widest.statistics(),
        )

    def __repr__(self) -> str:
        return f"<Scheduler {self.statistics()}>"

    async def _send_next(self) -> bool:
        if not self._may_send():
            return False
        began, waited = time.perf_counter(), self._schedule.steps_since_prefill
        planned = plan(self._schedule)
        if planned is None:
            return False
        self._observer.planned(planned, time.perf_counter() - began, waited)
        self._in_flight.append((planned, trio.current_time()))
        await self._executor.send(planned.step)
        return True

    def _may_send(self) -> bool:
        """Return False while other sequences' steps are in flight and a suspect is to be computed alone."""
        suspect = self._schedule.suspect
        flying = (row.sequence for planned, _ in self._in_flight for row in planned.rows)
        return suspect is None or all(sequence is suspect for sequence in flying)

    async def _commit_next(self) -> None:
        result = await self._receive()
        planned, sent = self._in_flight.popleft()
        assert result.number == planned.step.number, "results come in the order of the steps"
        began = time.monotonic()
        if sequences := commit(self._schedule, planned, result):
            self._matching.start(sequences)
        self._last_seconds = result.seconds
        self._slowest = max(self._slowest, result.seconds)
        if planned.shape.prefill:
            self._prompt_pace = min(self._prompt_pace, result.seconds / planned.tokens)
        if self._buckets.padded:
            self._seconds[planned.bucket] = result.seconds
        else:
            self._schedule.costs.add(planned.tokens, planned.shape.prefill, result.seconds)
        self._running_since = now = trio.current_time()
        self._observer.committed(planned, result, now - sent, began)

    async def _receive(self) -> Result:
        """Wait for the oldest step's result. Raises EngineError if it takes too long."""
        planned, sent = self._in_flight[0]
        seconds = self._step_timeout
        if seconds is None:
            seconds = max(STEP_SECONDS, STEP_FACTOR * max(self._slowest, self._expected(planned)))
        deadline = max(sent, self._running_since) + seconds
        while True:
            with trio.move_on_at(deadline):
                return await self._executor.receive()
            if (now := trio.current_time()) < deadline + STILL_SECONDS:
                break
            deadline = now + seconds  # this process stood still, and perhaps its ranks did
        raise EngineError(f"step {planned.step.number} has taken more than {seconds:.0f} s: a rank hangs")

    def _expected(self, planned: PlannedStep) -> float:
        """Return how long a step is expected to take, in seconds; 0 if nothing is known."""
        if self._buckets.padded:
            return self._seconds.get(planned.bucket, 0.0)
        return self._schedule.costs.seconds(planned.tokens) or self._last_seconds

    def _time_to_plan(self) -> float:
        """Return when to plan the step after the one that is running, on trio's clock."""
        planned, sent = self._in_flight[0]
        return max(sent, self._running_since) + (1 - LEAD) * self._expected(planned)
