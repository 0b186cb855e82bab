"""The state that `plan` and `commit` share: which sequences wait and run, and what every step is made of.

A sequence enters with `add`, `admit` gives it a lane and blocks, `preempt` and `restart` take them back, and
`remove` ends it. `step` writes rows that the policy has chosen down as columns for the ranks.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence as Items

import attrs
import msgspec

from tgi.limits import Limits
from tgi.protocol import Bucket, LaneParams, Step, ints

from .allocator import BlockAllocator
from .buckets import Buckets, StepCosts
from .fairness import FairQueue
from .guessing import Guesser
from .sequence import Sequence, State

TIES = 8
"""Most likely tokens reported beyond those asked for: room for ties with the last."""


class Row(msgspec.Struct, eq=False, gc=False):
    """A sequence in a step."""

    sequence: Sequence
    start: int
    """Tokens in the KV cache before the step."""
    length: int
    """Number of query tokens."""
    chunk: bool
    """Whether these are known tokens, part of a prompt or of what a preempted sequence had; else the row
    continues with the token that its last step sampled."""
    draw: int
    """Index of the first token that the row generates, which selects its random numbers; -1: none."""
    samples: int
    """Number of tokens that the row generates, those after wrong guesses included."""
    epoch: int
    """Epoch of the sequence when the row was planned."""
    guesses: Items[int] = ()
    """Guessed query tokens at the end of the row; each gives a token, as the one before them does."""

    @property
    def targets(self) -> int:
        """Number of leading query tokens whose next prompt token's log-probability is wanted."""
        sequence = self.sequence
        if sequence.prompt_top is None or sequence.generated:
            return 0
        return max(min(self.length, len(sequence.prompt) - 1 - self.start), 0)


@attrs.frozen(eq=False)
class PlannedStep:
    """A step and the rows that it was made from, kept until its result arrives."""

    step: Step
    bucket: Bucket
    rows: list[Row]
    shape: Bucket
    """Shape before padding to the bucket."""
    tokens: int
    """Number of query tokens, without padding."""


@attrs.define(eq=False)
class Schedule:
    """All sequences, their blocks, and what is known of the steps. Its methods change it.

    Aside from these: the warm-up replaces `buckets` if it cannot afford all of them, the policy counts what
    it takes of `owed`, `commit` counts `decode_steps`, and the `Scheduler` adds to `costs`.
    """

    limits: Limits
    buckets: Buckets
    allocator: BlockAllocator
    costs: StepCosts = attrs.field(factory=StepCosts)
    waiting: deque[Sequence] = attrs.field(factory=deque)
    """Sequences without a lane, the next first."""
    running: list[Sequence] = attrs.field(factory=list)
    """Sequences with a lane and blocks, the oldest first."""
    suspects: list[Sequence] = attrs.field(factory=list)
    """Sequences of which one may have ended the ranks, by order of arrival."""
    fair: FairQueue = attrs.field(factory=FairQueue)
    """Shares of the tenants; empty without any."""
    free_lanes: list[int] = attrs.field(init=False)
    owed: int = 0
    """Sum of `Sequence.owed` of all sequences."""
    preemptions: int = 0
    prefix_hit_tokens: int = 0
    """Tokens that admitted sequences found in the prefix cache."""
    prefix_query_tokens: int = 0
    """Tokens of all admitted sequences."""
    number: int = 0
    """Number of the latest step."""
    decode_steps: int = 0
    """Number of steps in flight that have decode rows."""
    steps_since_prefill: int = 0
    prefilled_last: bool = False
    """Whether the latest step was a prefill step."""

    def __attrs_post_init__(self) -> None:
        self.free_lanes = list(range(self.limits.max_batch_size))[::-1]

    def add(self, sequence: Sequence) -> None:
        """Let a new sequence wait behind those that come before it."""
        if sequence.tenant and self.fair.enter(sequence):
            self._sort()
        self.owed += sequence.owed
        index = len(self.waiting)
        while index and sequence.precedes(self.waiting[index - 1]):
            index -= 1
        self.waiting.insert(index, sequence)

    def admit(self, sequence: Sequence) -> bool:
        """Give a waiting sequence a lane and blocks; False: nothing was given."""
        if not self.allocator.admit(sequence, len(self.running)):
            return False
        self.owed -= sequence.owed
        known = len(sequence.tokens)
        sequence.lane = self.free_lanes.pop()
        sequence.sampled = sequence.generated
        sequence.prefill_end = known
        sequence.special = sequence.needs_columns
        if self.limits.speculate and sequence.guessable and sequence.guesser is None:
            sequence.guesser = Guesser(self.limits.speculate)
        sequence.state = State.RUNNING
        self.owed += sequence.owed
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=Sequence.place)
        if sequence.tenant:
            self.fair.tenants[sequence.tenant].running += 1
        self.prefix_hit_tokens += sequence.computed
        if not sequence.epoch:
            sequence.cached = sequence.computed
        sequence.admitted = True
        self.prefix_query_tokens += known
        return True

    def reserve(self, sequence: Sequence, tokens: int) -> bool:
        """Make sure that a sequence has blocks for `tokens` tokens, preempting the youngest for them.

        False: the sequence was the youngest and was preempted itself.
        """
        while not self.allocator.reserve(sequence, tokens, len(self.running)):
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def remove(self, sequence: Sequence, state: State) -> None:
        """End a sequence in any state; its lane and blocks are free at once.

        A step in flight may still write to them. It runs before any step that could use them again.
        """
        owed = sequence.owed
        if sequence.state is State.RUNNING:
            self._stop(sequence)
        elif sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        else:
            return
        self.owed -= owed
        sequence.state = state
        if sequence.tenant and self.fair.leave(sequence):
            self._sort()

    def preempt(self, sequence: Sequence) -> None:
        """Free a sequence's lane and blocks; it waits at its old place, to be prefilled with all tokens."""
        self._requeue(sequence)
        self.preemptions += 1

    def restart(self, rows: Items[Row]) -> Sequence | None:
        """Let every sequence wait, since the ranks were lost while they computed these rows.

        Each of the rows' sequences is suspected until it has got further than now, and is computed alone.
        Returns the one that has to fail: it was alone, and was being computed at the loss before as well.
        """
        computed = {row.sequence for row in rows if row.epoch == row.sequence.epoch}
        computed = {sequence for sequence in computed if sequence.state is State.RUNNING}
        for sequence in computed:
            sequence.losses += 1
            sequence.cleared_at = max(sequence.sampled, sequence.generated + 1)
        for sequence in self.running[:]:
            self._requeue(sequence)
        self.allocator.clear()
        self.decode_steps = 0
        suspects = computed | {one for one in self.suspects if one.losses}
        self.suspects = sorted(suspects, key=lambda sequence: sequence.number)
        alone = computed.pop() if len(computed) == 1 else None
        return alone if alone is not None and alone.losses > 1 else None

    @property
    def prefilling(self) -> list[Sequence]:
        """Running sequences of which known tokens are still to be prefilled, the oldest first."""
        return [one for one in self.running if one.computed < one.prefill_end] if self.owed else []

    @property
    def suspect(self) -> Sequence | None:
        """The sequence that has to be computed alone next, if any."""
        while self.suspects:
            first = self.suspects[0]
            if first.state in (State.WAITING, State.RUNNING) and first.generated < first.cleared_at:
                return first
            first.losses = 0
            del self.suspects[0]
        return None

    def shape(self, rows: Items[Row]) -> Bucket:
        """Return the shape of a step with these rows, chunks last, before padding.

        `DeviceSpec.flat` says how blocks count.
        """
        flat, pool, prefill = self.buckets.flat, self.allocator.widest, rows[-1].chunk
        size = pool.block_size
        ends = [row.start for row in rows] if prefill and flat else [row.start + row.length for row in rows]
        blocks = [-(-end // size) for end in ends]
        if pool.window is not None:
            blocks = [count - pool.first_block(row.start) for count, row in zip(blocks, rows, strict=True)]
        total = sum(blocks) if flat and not prefill else max(blocks)
        if self.limits.contiguous and not prefill:
            total = 1 + max([_highest_block(row, size) for row in rows])
        return Bucket(len(rows), max([row.length for row in rows]), total, prefill)

    def step(self, rows: list[Row]) -> PlannedStep:
        """Write rows down as columns, with the table entries and parameters that are new to the ranks."""
        shape = self.shape(rows)
        bucket = self.buckets.find(shape)
        assert bucket is not None, f"no bucket for {shape}"
        self.number += 1
        self.prefilled_last = shape.prefill
        self.steps_since_prefill = 1 if shape.prefill else self.steps_since_prefill + 1
        self.decode_steps += any(not row.chunk for row in rows)
        unsent = [row.sequence for row in rows if row.sequence.unsent]
        step = _columns(self.number, bucket, rows, unsent)
        for sequence in unsent:
            sequence.mark_sent()
        for row in rows if shape.prefill else ():
            if row.chunk:
                self.allocator.register(row.sequence)
        for row in rows if self.limits.stages > 1 else ():
            row.sequence.last_step = self.number
        return PlannedStep(step, bucket, rows, shape, len(step.tokens) // 4)

    def _requeue(self, sequence: Sequence) -> None:
        self._stop(sequence)
        self.owed -= sequence.owed
        sequence.state = State.WAITING
        self.owed += sequence.owed
        sequence.guessing = False
        sequence.epoch += 1
        if not sequence.generated:
            sequence.prompt_logprobs.clear()
            sequence.prompt_tops.clear()
        insort(self.waiting, sequence, key=Sequence.place)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence.tenant:
            self.fair.tenants[sequence.tenant].running -= 1
        self.allocator.release(sequence)
        self.free_lanes.append(sequence.lane)
        sequence.lane = -1

    def _sort(self) -> None:
        """Restore the order, once virtual starts have changed."""
        self.waiting = deque(sorted(self.waiting, key=Sequence.place))
        self.running.sort(key=Sequence.place)


def _columns(number: int, bucket: Bucket, rows: Items[Row], unsent: Items[Sequence]) -> Step:
    """Return the step `number` of these rows; the ranks do not know all tables of `unsent`."""
    sequences = [row.sequence for row in rows]
    special = [sequence for sequence in sequences if sequence.special]
    grown = [
        (group, sequence.lane, table)
        for sequence in unsent
        for group, table in enumerate(sequence.tables)
        if table.sent < len(table.blocks)
    ]
    masked, masks = _masks(rows) if special else (b"", b"")
    targets = _targets(rows) if any(row.targets for row in rows if row.chunk) else b""
    top = max([sequence.sampling.top_n_tokens for sequence in special], default=0)
    return Step(
        number=number,
        bucket=bucket,
        lanes=ints([sequence.lane for sequence in sequences]),
        starts=ints([row.start for row in rows]),
        samples=ints([row.samples for row in rows]),
        draws=ints([row.draw for row in rows]),
        tokens=ints(_tokens(rows)),
        lengths=ints([row.length for row in rows]),
        targets=targets,
        params=tuple([_lane_params(sequence) for sequence in unsent if not sequence.tables[0].sent]),
        table_groups=ints([group for group, _, _ in grown]) if len(sequences[0].tables) > 1 else b"",
        table_lanes=ints([lane for _, lane, _ in grown]),
        table_starts=ints([table.sent for _, _, table in grown]),
        table_counts=ints([len(table.blocks) - table.sent for _, _, table in grown]),
        table_blocks=ints([block for _, _, table in grown for block in table.blocks[table.sent :]]),
        top=top + TIES if top else 0,
        prompt_top=max([sequence.prompt_top or 0 for sequence in special]) if targets else 0,
        masked=masked,
        masks=masks,
        loras=_loras(sequences) if special else b"",
        least_sampler=max([sequence.least_sampler for sequence in special], default=0),
    )


def _tokens(rows: Items[Row]) -> list[int]:
    """Return the query tokens of all rows; -1 for one that is in flight, which the ranks alone know."""
    tokens: list[int] = []
    for row in rows:
        known = row.sequence.tokens
        if row.chunk:
            tokens += known[row.start : row.start + row.length]
        else:
            tokens.append(known[row.start] if row.start < len(known) else -1)
            tokens += row.guesses
    return tokens


def _loras(sequences: Items[Sequence]) -> bytes:
    """Return the column `loras` of a step."""
    if all(sequence.lora is None for sequence in sequences):
        return b""
    return ints([-1 if sequence.lora is None else sequence.lora.slot for sequence in sequences])


def _masks(rows: Items[Row]) -> tuple[bytes, bytes]:
    """Return the columns `masked` and `masks` of a step: one mask per sample that must obey a grammar."""
    matchers = [row.sequence.matcher for row in rows for _ in range(row.samples)]
    masks = [(index, matcher.mask) for index, matcher in enumerate(matchers) if matcher is not None]
    return ints([index for index, _ in masks]), b"".join([mask for _, mask in masks])


def _targets(rows: Items[Row]) -> bytes:
    """Return the column `targets`: the token after each query token whose log-probability is wanted."""
    targets = []
    for row in rows:
        after = row.sequence.prompt[row.start + 1 : row.start + 1 + row.targets]
        targets += [*after, *[-1] * (row.length - row.targets)]
    return ints(targets)


def _lane_params(sequence: Sequence) -> LaneParams:
    return LaneParams(
        lane=sequence.lane,
        sampling=sequence.sampling,
        history=ints(sequence.tokens) if sequence.sampling.needs_history else b"",
        prompt_length=len(sequence.prompt),
    )


def _highest_block(row: Row, block_size: int) -> int:
    """Return the highest block that a decode row reads or writes, in any layer group."""
    end = -(-(row.start + row.length) // block_size)
    return max([max(table.blocks[table.freed : end]) for table in row.sequence.tables])
