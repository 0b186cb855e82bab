"""`plan` chooses the next step: a synchronous function of plain data.

Order of arrival decides everything, unless sequences have tenants or priorities: then `fairness.place` is the
order, and "oldest" and "youngest" mean the first and the last by it. Admission is first in, first out; when
blocks run out, the youngest running sequence gives up its blocks and waits again at its old place. So the
oldest always advances, and none starves. One that comes before running sequences of a tenant with more than
its share takes the lane and blocks of the youngest of them.

`plan` may run while steps are in flight: it assumes one more token for each of their sampled rows, and
`commit` drops the tokens of sequences that have ended. Only a sequence that obeys a grammar waits, for its
last token and the mask that follows from it. In a pipeline every sequence waits for its last token, and
those that decode divide into as many steps as there are stages.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence as Items
from itertools import islice

import attrs
import msgspec

from tgi.limits import Limits
from tgi.protocol import Bucket, LaneParams, Step, ints

from .blocks import BlockAllocator
from .buckets import Buckets, StepCosts
from .fairness import FairQueue, place, precedes, progress
from .guessing import Guesser
from .sequence import Sequence, State

TIES = 8
"""Most likely tokens reported beyond those asked for: room for ties with the last."""
SPREAD_STEPS = 2
"""Steps of double duration over which prompts are spread, if these are enough for all of them."""


class Row(msgspec.Struct, eq=False):
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
    epoch: int
    """Epoch of the sequence when the row was planned."""
    guesses: Items[int] = ()
    """Guessed query tokens at the end of the row; each gives a token, as the one before them does."""

    @property
    def samples(self) -> int:
        """Number of tokens that the row generates, those after wrong guesses included."""
        return 0 if self.draw < 0 else 1 + len(self.guesses)

    @property
    def targets(self) -> int:
        """Number of leading query tokens whose next prompt token's log-probability is wanted."""
        sequence = self.sequence
        if not sequence.wants_prompt_logprobs or sequence.generated:
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

    @property
    def tokens(self) -> int:
        """Number of query tokens, without padding."""
        return sum(row.length for row in self.rows)


@attrs.define(eq=False)
class Schedule:
    """State of `plan` and `commit`."""

    # Field                                written by
    # ------------------------------------------------------------------------------------------
    # limits, allocator                    never replaced; the allocator changes itself and sequences
    # buckets                              the warm-up, if it cannot afford all of them
    # waiting, running, free_lanes         `add`, `remove`, `preempt` and `restart`; `_admit`
    # suspects                             `restart`, `suspect`
    # fair                                 `add`, `remove`, `_stop`; `_admit`
    # owed                                 `add`, `remove`, `_requeue`; `_admit`, `_add_chunk`
    # preemptions                          `preempt`
    # prefix_hit_tokens, _query_tokens     `_admit`
    # number, steps_since_prefill,         `_step`
    #   prefilled_last
    # decode_steps                         `_step`; `commit`, `restart`
    # costs                                the `Scheduler`, from every result
    #
    # `remove` comes from `commit` for sequences that finish, and from the `Scheduler` for aborted ones.

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
        while index and precedes(sequence, self.waiting[index - 1]):
            index -= 1
        self.waiting.insert(index, sequence)

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
    def suspect(self) -> Sequence | None:
        """The sequence that has to be computed alone next, if there is one."""
        while self.suspects:
            first = self.suspects[0]
            if first.state in (State.WAITING, State.RUNNING) and first.generated < first.cleared_at:
                return first
            first.losses = 0
            del self.suspects[0]
        return None

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
        insort(self.waiting, sequence, key=place)

    def _stop(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence.tenant:
            self.fair.tenants[sequence.tenant].running -= 1
        self.allocator.release(sequence)
        self.free_lanes.append(sequence.lane)
        sequence.lane = -1

    def _sort(self) -> None:
        """Restore the order, once virtual starts have changed."""
        self.waiting = deque(sorted(self.waiting, key=place))
        self.running.sort(key=place)


def plan(schedule: Schedule) -> PlannedStep | None:
    """Return the next step, or None if nothing can be computed before a result or a request arrives.

    Where rows may not mix, prefill and decode steps alternate while both have work, so that neither a long
    prompt nor a stream of new ones holds up running sequences.
    """
    if (suspect := schedule.suspect) is not None:
        rows = _lone_row(schedule, suspect)
        return _step(schedule, rows) if rows else None
    _make_way(schedule)
    if schedule.buckets.mixes:
        rows = _still_running(schedule, _mixed_rows(schedule, _chunk_tokens(schedule)))
        return _step(schedule, rows) if rows else None
    decoding = decoding_room(schedule) > 0 and any(decodable(schedule, s) for s in schedule.running)
    prefill_first = not (decoding and schedule.prefilled_last)
    for prefill in (prefill_first, not prefill_first):
        rows = _prefill_rows(schedule, decoding) if prefill else _mixed_rows(schedule, 0)
        if rows := _still_running(schedule, rows):
            return _step(schedule, rows)
    return None


def decodable(schedule: Schedule, sequence: Sequence) -> bool:
    """Return whether a decode row of the sequence can follow the steps that were sent.

    In a pipeline, the first stage does not know a token that the last one has sampled until it is read back.
    """
    known = schedule.limits.stages == 1 or sequence.sampled == sequence.generated
    return known and sequence.decodable


def _decoding_share(schedule: Schedule) -> int:
    """Return the maximum decode rows of a step, which leave each stage of a pipeline its share."""
    count = sum(not sequence.prefilling for sequence in schedule.running)
    return -(-count // schedule.limits.stages)


def decoding_room(schedule: Schedule) -> int:
    """Return the maximum decode rows of the next step.

    In a pipeline no more such steps than stages are in flight, or rows would divide into more than these.
    """
    stages = schedule.limits.stages
    return 0 if 1 < stages <= schedule.decode_steps else _decoding_share(schedule)


def _make_way(schedule: Schedule) -> None:
    """Admit waiting sequences that come before running ones, and preempt the youngest for them if need be."""
    while schedule.waiting and schedule.running and _overtakes(schedule, schedule.waiting[0]):
        first = schedule.waiting[0]
        while not (schedule.free_lanes and _admit(schedule, first)):
            if (last := _last_to_yield(schedule, first)) is None:
                return
            schedule.preempt(last)


def _overtakes(schedule: Schedule, first: Sequence) -> bool:
    """Return whether a waiting sequence comes before a running one, or before the rest of its prompt."""
    if precedes(first, schedule.running[-1]):
        return True
    return bool(first.tenant) and any(
        s.prefilling and s.tenant != first.tenant and first.virtual_start <= progress(s)
        for s in schedule.running
    )


def _last_to_yield(schedule: Schedule, first: Sequence) -> Sequence | None:
    """Return the youngest running sequence that should make way for a waiting one."""
    for sequence in reversed(schedule.running):
        if not precedes(first, sequence):
            return None
        if not (first.tenant and sequence.tenant) or schedule.fair.yields(sequence, first):
            return sequence
    return None


def _by_turn(schedule: Schedule) -> list[Sequence]:
    """Return the running sequences, the oldest first; with tenants or in a pipeline, those that prefill last.

    With tenants, among these the one first whose tenant has had least, so that a long prompt does not hold up
    a short one. In a pipeline, of those that decode the ones first whose last step is longest ago.
    """
    piped, fair = schedule.limits.stages > 1, bool(schedule.fair)

    def turn(sequence: Sequence) -> tuple[float, ...]:
        if not sequence.prefilling:
            return 0, sequence.last_step if piped else 0
        return (1, progress(sequence), -sequence.number) if fair else (1,)

    return sorted(schedule.running, key=turn) if piped or fair else schedule.running[:]


def _still_running(schedule: Schedule, rows: list[Row]) -> list[Row]:
    """Leave out rows of sequences that an older one, which had its turn later, has preempted since."""
    if not schedule.fair and schedule.limits.stages == 1:
        return rows
    return [row for row in rows if row.epoch == row.sequence.epoch]


def _mixed_rows(schedule: Schedule, left: int) -> list[Row]:
    """Take every sequence that can decode, then chunks of prompts of up to `left` tokens, oldest first.

    Younger sequences make room if blocks run out. New ones are admitted while chunks have room.
    """
    rows: list[Row] = []
    chunks: list[Row] = []
    room, most = _guess_tokens(schedule), decoding_room(schedule)
    for sequence in _by_turn(schedule):
        if sequence.state is not State.RUNNING:
            continue  # it was preempted for one before it
        if decodable(schedule, sequence):
            if len(rows) < most:
                _add_decode(schedule, rows, sequence, room - sum(row.length - 1 for row in rows))
        elif left and sequence.prefilling and not sequence.unmasked:
            left -= _add_chunk(schedule, chunks, sequence, left)
    while left and schedule.waiting and schedule.free_lanes:
        sequence = schedule.waiting[0]
        if not _admit(schedule, sequence):
            break
        if not sequence.unmasked:
            if not (length := _add_chunk(schedule, chunks, sequence, left)):
                break
            left -= length
    return rows + chunks  # devices treat single tokens together


def _lone_row(schedule: Schedule, sequence: Sequence) -> list[Row]:
    """Take the next row of one sequence, which takes lane and blocks from the youngest if none are free."""
    while sequence.state is State.WAITING:
        if not (schedule.free_lanes and _admit(schedule, sequence)):
            schedule.preempt(schedule.running[-1])
    rows: list[Row] = []
    if sequence.prefilling and not sequence.unmasked:
        _add_chunk(schedule, rows, sequence, schedule.limits.longest_chunk)
    elif decodable(schedule, sequence):
        _add_decode(schedule, rows, sequence)
    return rows


def _add_decode(schedule: Schedule, rows: list[Row], sequence: Sequence, room: int = 0) -> None:
    """Add the next token of a sequence to a step, unless it was the youngest and no blocks were left.

    Up to `room` guesses come with it.
    """
    start, draw = sequence.computed, sequence.sampled
    if start < sequence.settled or _reserve(schedule, sequence, start + 1):
        guesses = _guess(schedule, sequence, room) if room else ()
        rows.append(Row(sequence, start, 1 + len(guesses), False, draw, sequence.epoch, guesses))
        sequence.computed, sequence.sampled = start + 1, draw + 1
        sequence.guessing = bool(guesses)


def _guess_tokens(schedule: Schedule) -> int:
    """Return how many tokens the next step may guess: half of those that would double its time.

    None beside chunks of prompts, which have that room first.
    """
    limits, rows = schedule.limits, _decoding_share(schedule)
    if not limits.speculate or schedule.waiting or any(s.prefilling for s in schedule.running):
        return 0
    room = (schedule.costs.doubling_tokens(rows) or 2 * rows * limits.speculate) // 2
    return max(min(room, limits.max_batch_prefill_tokens - rows), 0)


def _guess(schedule: Schedule, sequence: Sequence, room: int) -> Items[int]:
    """Guess tokens of a sequence that is to decode, as many as there are room and blocks for."""
    guesses = sequence.guess()[:room]
    tokens = sequence.computed + 1 + len(guesses)
    if tokens > sequence.settled and not schedule.allocator.reserve(sequence, tokens, len(schedule.running)):
        return ()
    return guesses


def may_guess(schedule: Schedule) -> bool:
    """Return whether the next step should wait for the result of the last one.

    What follows the token in that result may be guessed, or guesses that it has may be wrong.
    """
    if not schedule.limits.speculate or schedule.limits.stages > 1:
        return False  # in a pipeline, rows wait for their own last token
    return any(sequence.guessing or sequence.repeats() for sequence in schedule.running)


def _chunk_tokens(schedule: Schedule) -> int:
    """Return how many tokens of prompts the next step may compute beside the rows that decode.

    Short prompts at most double the time between two tokens of a running sequence, by measured cost. What
    takes more than SPREAD_STEPS such steps is computed in full ones: spread over small steps, it would keep
    requests from their first token for longer, and the device from its best speed.
    """
    prefilling = [sequence for sequence in schedule.running if sequence.prefilling]
    decoding = _decoding_share(schedule)
    room = max(schedule.limits.max_batch_prefill_tokens - decoding, 1)
    doubling = schedule.costs.doubling_tokens(decoding)
    if not decoding or not doubling:
        return room
    doubling = max(doubling, schedule.limits.block_size)
    backlog = sum(sequence.prefill_end - sequence.computed for sequence in prefilling)
    backlog += sum(len(s.tokens) for s in islice(schedule.waiting, len(schedule.free_lanes)))
    return min(room, doubling) if backlog <= SPREAD_STEPS * doubling else room


def _prefill_rows(schedule: Schedule, decoding: bool) -> list[Row]:
    """Take sequences in the middle of their prompts, then new ones while they share a step well."""
    rows: list[Row] = []
    for sequence in _by_turn(schedule):
        if sequence.state is not State.RUNNING:
            continue  # it was preempted for one before it
        if sequence.prefilling and not sequence.unmasked and not _join(schedule, rows, sequence):
            return rows
    if not _may_admit(schedule, decoding):
        return rows
    while schedule.waiting and schedule.free_lanes:
        sequence = schedule.waiting[0]
        if not _admit(schedule, sequence):
            break
        if not sequence.unmasked and not _join(schedule, rows, sequence):
            break  # it is running now, and in the next prefill step
    return rows


def _may_admit(schedule: Schedule, decoding: bool) -> bool:
    """Apply TGI's rule (Q11): few waiting requests interrupt only every max_waiting_tokens steps."""
    if not schedule.waiting or not schedule.free_lanes:
        return False
    if not decoding or schedule.steps_since_prefill >= schedule.limits.max_waiting_tokens:
        return True
    return len(schedule.waiting) >= int(len(schedule.running) * schedule.limits.waiting_served_ratio)


def _admit(schedule: Schedule, sequence: Sequence) -> bool:
    """Give a waiting sequence a lane and blocks; False: nothing was given."""
    if not schedule.allocator.admit(sequence, len(schedule.running)):
        return False
    schedule.owed -= sequence.owed
    known = len(sequence.tokens)
    sequence.lane = schedule.free_lanes.pop()
    sequence.sampled = sequence.generated
    sequence.prefill_end = known
    if schedule.limits.speculate and sequence.guessable and sequence.guesser is None:
        sequence.guesser = Guesser(schedule.limits.speculate)
    sequence.state = State.RUNNING
    schedule.owed += sequence.owed
    schedule.waiting.remove(sequence)
    insort(schedule.running, sequence, key=place)
    if sequence.tenant:
        schedule.fair.tenants[sequence.tenant].running += 1
    schedule.prefix_hit_tokens += sequence.computed
    if not sequence.epoch:
        sequence.cached = sequence.computed
    sequence.admitted = True
    schedule.prefix_query_tokens += known
    return True


def _join(schedule: Schedule, rows: list[Row], sequence: Sequence) -> bool:
    """Add the next chunk of a prompt to a prefill step, if that is cheaper than a step of its own."""
    length = min(sequence.prefill_end - sequence.computed, schedule.limits.longest_chunk)
    if rows:
        if rows[0].sequence.wants_prompt_logprobs or sequence.wants_prompt_logprobs:
            return False
        if length + sum(row.length for row in rows) > schedule.limits.max_batch_prefill_tokens:
            return False
        row = _chunk(sequence, length)
        joined, before, alone = (
            schedule.buckets.find(_shape(schedule, step)) for step in ([*rows, row], rows, [row])
        )
        if not schedule.buckets.worth_joining(joined, (before, alone)):
            return False
    return _add_chunk(schedule, rows, sequence, length) > 0


def _shape(schedule: Schedule, rows: Items[Row]) -> Bucket:
    """Return the shape of a step with these rows, chunks last, before padding.

    `DeviceSpec.flat` says how blocks count.
    """
    flat, pool, prefill = schedule.buckets.flat, schedule.allocator.widest, rows[-1].chunk
    size = pool.block_size
    ends = [row.start for row in rows] if prefill and flat else [row.start + row.length for row in rows]
    blocks = [-(-end // size) for end in ends]
    if pool.window is not None:
        blocks = [count - pool.first_block(row.start) for count, row in zip(blocks, rows, strict=True)]
    total = sum(blocks) if flat and not prefill else max(blocks)
    return Bucket(len(rows), max([row.length for row in rows]), total, prefill)


def _chunk(sequence: Sequence, length: int) -> Row:
    """Make the row of the next `length` tokens of a prompt; its end gives a new token."""
    start = sequence.computed
    draw = sequence.sampled if start + length >= sequence.prefill_end else -1
    return Row(sequence, start, length, True, draw, sequence.epoch)


def _add_chunk(schedule: Schedule, rows: list[Row], sequence: Sequence, most: int) -> int:
    """Add the next tokens of a prompt to a step, `most` of them at most, and return how many.

    0: the sequence was the youngest, and was preempted for want of blocks.
    """
    length = min(sequence.prefill_end - sequence.computed, most)
    if not _reserve(schedule, sequence, sequence.computed + length):
        return 0
    rows.append(row := _chunk(sequence, length))
    sequence.computed += length
    schedule.owed -= length
    sequence.sampled += row.draw >= 0
    return length


def _reserve(schedule: Schedule, sequence: Sequence, tokens: int) -> bool:
    """Make sure that a sequence has blocks for `tokens` tokens, preempting the youngest for them.

    False: the sequence was the youngest and was preempted itself.
    """
    while not schedule.allocator.reserve(sequence, tokens, len(schedule.running)):
        youngest = schedule.running[-1]
        schedule.preempt(youngest)
        if youngest is sequence:
            return False
    return True


def _step(schedule: Schedule, rows: list[Row]) -> PlannedStep:
    """Write the rows down as columns, with the table entries and parameters that are new to the ranks."""
    shape = _shape(schedule, rows)
    bucket = schedule.buckets.find(shape)
    assert bucket is not None, f"no bucket for {shape}"
    schedule.number += 1
    schedule.prefilled_last = shape.prefill
    schedule.steps_since_prefill = 1 if shape.prefill else schedule.steps_since_prefill + 1
    sequences = [row.sequence for row in rows]
    for sequence in sequences:
        sequence.last_step = schedule.number
    chunks = [row for row in rows if row.chunk]
    schedule.decode_steps += len(chunks) < len(rows)
    tokens: list[int] = []
    for row in rows:
        known = row.sequence.tokens[row.start : row.start + row.length - len(row.guesses)]
        tokens += known or [-1]  # the ranks alone know a token that is in flight
        tokens += row.guesses
    draws = [row.draw for row in rows]
    masked, masks = _masks(rows)
    targets = _targets(rows) if any(row.targets for row in chunks) else b""
    top = max([sequence.sampling.top_n_tokens for sequence in sequences])
    unsent = [sequence for sequence in sequences if sequence.unsent]
    grown = [
        (group, sequence.lane, table)
        for sequence in unsent
        for group, table in enumerate(sequence.tables)
        if table.sent < len(table.blocks)
    ]
    step = Step(
        number=schedule.number,
        bucket=bucket,
        lanes=ints([sequence.lane for sequence in sequences]),
        starts=ints([row.start for row in rows]),
        samples=ints([row.samples for row in rows]),
        draws=ints([max(draw, 0) for draw in draws]),
        tokens=ints(tokens),
        lengths=ints([row.length for row in rows]),
        targets=targets,
        params=tuple([_lane_params(sequence) for sequence in unsent if not sequence.tables[0].sent]),
        table_groups=ints([group for group, _, _ in grown]) if len(schedule.allocator.pools) > 1 else b"",
        table_lanes=ints([lane for _, lane, _ in grown]),
        table_starts=ints([table.sent for _, _, table in grown]),
        table_counts=ints([len(table.blocks) - table.sent for _, _, table in grown]),
        table_blocks=ints([block for _, _, table in grown for block in table.blocks[table.sent :]]),
        top=top + TIES if top else 0,
        prompt_top=max([sequence.prompt_top for sequence in sequences]) if targets else 0,
        masked=masked,
        masks=masks,
        loras=_loras(sequences),
        least_sampler=max([sequence.least_sampler for sequence in sequences]),
    )
    for sequence in unsent:
        sequence.unsent = False
    for _, _, table in grown:
        table.sent = len(table.blocks)
    for row in chunks:
        schedule.allocator.register(row.sequence)
    return PlannedStep(step, bucket, rows, shape)


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
