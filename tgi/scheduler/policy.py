"""`plan` chooses the next step: a synchronous function of plain data.

Order of arrival decides everything, unless sequences have tenants or priorities: then `Sequence.place` is the
order, and "oldest" and "youngest" mean the first and the last by it. Admission is first in, first out; when
blocks run out, the youngest running sequence gives up its blocks and waits again at its old place. So the
oldest always advances, and none starves. One that comes before running sequences of a tenant with more than
its share takes the lane and blocks of the youngest of them.

`plan` may run while steps are in flight: it assumes one more token for each of their sampled rows, and
`commit` drops the tokens of sequences that have ended. Only a sequence that obeys a grammar waits, for its
last token and the mask that follows from it. In a pipeline every sequence waits for its last token, and
those that decode divide into as many steps as there are stages.
"""

from collections.abc import Sequence as Items
from itertools import islice

from .schedule import PlannedStep, Row, Schedule
from .sequence import Sequence, State

SPREAD_STEPS = 2
"""Steps of double duration over which prompts are spread, if these are enough for all of them."""


def plan(schedule: Schedule) -> PlannedStep | None:
    """Return the next step, or None if nothing can be computed before a result or a request arrives.

    Where rows may not mix, prefill and decode steps alternate while both have work, so that neither a long
    prompt nor a stream of new ones holds up running sequences.
    """
    if (suspect := schedule.suspect) is not None:
        rows = _lone_row(schedule, suspect)
        return schedule.step(rows) if rows else None
    _make_way(schedule)
    if schedule.buckets.mixes:
        rows = _still_running(schedule, _mixed_rows(schedule, _chunk_tokens(schedule)))
        return schedule.step(rows) if rows else None
    decoding = decoding_room(schedule) > 0 and any(decodable(schedule, s) for s in schedule.running)
    prefill_first = not (decoding and schedule.prefilled_last)
    for prefill in (prefill_first, not prefill_first):
        rows = _prefill_rows(schedule, decoding) if prefill else _mixed_rows(schedule, 0)
        if rows := _still_running(schedule, rows):
            return schedule.step(rows)
    return None


def decodable(schedule: Schedule, sequence: Sequence) -> bool:
    """Return whether a decode row of the sequence can follow the steps that were sent.

    In a pipeline, the first stage does not know a token that the last one has sampled until it is read back.
    """
    return sequence.decodable and (schedule.limits.stages == 1 or sequence.sampled == sequence.generated)


def _stage_share(schedule: Schedule, decoding: int) -> int:
    """Return how many of the sequences that decode are in one step, which leaves each stage its share."""
    return -(-decoding // schedule.limits.stages)


def decoding_room(schedule: Schedule) -> int:
    """Return the most decode rows that the next step can have.

    In a pipeline no more such steps than stages are in flight, or rows would divide into more than these.
    """
    stages = schedule.limits.stages
    if stages == 1:
        return len(schedule.running)  # without a look at each, of which there may be many
    if stages <= schedule.decode_steps:
        return 0
    return _stage_share(schedule, len(schedule.running) - len(schedule.prefilling))


def _make_way(schedule: Schedule) -> None:
    """Admit waiting sequences that come before running ones, and preempt the youngest for them if need be."""
    while schedule.waiting and schedule.running and _overtakes(schedule, schedule.waiting[0]):
        first = schedule.waiting[0]
        while not (schedule.free_lanes and schedule.admit(first)):
            if (last := _last_to_yield(schedule, first)) is None:
                return
            schedule.preempt(last)


def _overtakes(schedule: Schedule, first: Sequence) -> bool:
    """Return whether a waiting sequence comes before a running one, or before the rest of its prompt."""
    if first.precedes(schedule.running[-1]):
        return True
    return bool(first.tenant) and any(
        s.prefilling and s.tenant != first.tenant and first.virtual_start <= s.progress()
        for s in schedule.running
    )


def _last_to_yield(schedule: Schedule, first: Sequence) -> Sequence | None:
    """Return the youngest running sequence that should make way for a waiting one."""
    for sequence in reversed(schedule.running):
        if not first.precedes(sequence):
            return None
        if not (first.tenant and sequence.tenant) or schedule.fair.yields(sequence, first):
            return sequence
    return None


def _by_turn(schedule: Schedule, running: list[Sequence]) -> list[Sequence]:
    """Return running sequences, the oldest first; with tenants or in a pipeline, those that prefill last.

    With tenants, among these the one first whose tenant has had least, so that a long prompt does not hold up
    a short one. In a pipeline, of those that decode the ones first whose last step is longest ago.
    """
    piped, fair = schedule.limits.stages > 1, bool(schedule.fair.tenants)

    def turn(sequence: Sequence) -> tuple[float, ...]:
        if not sequence.prefilling:
            return 0, sequence.last_step if piped else 0
        return (1, sequence.progress(), -sequence.number) if fair else (1,)

    return sorted(running, key=turn) if piped or fair else running[:]


def _still_running(schedule: Schedule, rows: list[Row]) -> list[Row]:
    """Leave out rows of sequences that an older one, which had its turn later, has preempted since."""
    if not schedule.fair.tenants and schedule.limits.stages == 1:
        return rows
    return [row for row in rows if row.epoch == row.sequence.epoch]


def _mixed_rows(schedule: Schedule, left: int) -> list[Row]:
    """Take every sequence that can decode, then chunks of prompts of up to `left` tokens, oldest first.

    Younger sequences make room if blocks run out. New ones are admitted while chunks have room.
    """
    rows: list[Row] = []
    chunks: list[Row] = []
    room, most = _guess_tokens(schedule), decoding_room(schedule)
    running = State.RUNNING
    for sequence in _by_turn(schedule, schedule.running):
        if sequence.state is not running:
            continue  # it was preempted for one before it
        if decodable(schedule, sequence):
            if len(rows) < most:
                room -= _add_decode(schedule, rows, sequence, room)
        elif left and sequence.prefilling and not sequence.unmasked:
            left -= _add_chunk(schedule, chunks, sequence, left)
    while left and schedule.waiting and schedule.free_lanes:
        sequence = schedule.waiting[0]
        if not schedule.admit(sequence):
            break
        if not sequence.unmasked:
            if not (length := _add_chunk(schedule, chunks, sequence, left)):
                break
            left -= length
    return rows + chunks  # devices treat single tokens together


def _lone_row(schedule: Schedule, sequence: Sequence) -> list[Row]:
    """Take the next row of one sequence, which takes lane and blocks from the youngest if none are free."""
    while sequence.state is State.WAITING:
        if not (schedule.free_lanes and schedule.admit(sequence)):
            schedule.preempt(schedule.running[-1])
    rows: list[Row] = []
    if sequence.prefilling and not sequence.unmasked:
        _add_chunk(schedule, rows, sequence, schedule.limits.longest_chunk)
    elif decodable(schedule, sequence):
        _add_decode(schedule, rows, sequence)
    return rows


def _add_decode(schedule: Schedule, rows: list[Row], sequence: Sequence, room: int = 0) -> int:
    """Add the next token of a sequence to a step, with up to `room` guesses, and return how many came.

    Adds nothing if the sequence was the youngest and no blocks were left.
    """
    start, draw = sequence.computed, sequence.sampled
    if start >= sequence.settled and not schedule.reserve(sequence, start + 1):
        return 0
    guesses = _guess(schedule, sequence, room) if room else ()
    size = 1 + len(guesses)
    rows.append(Row(sequence, start, size, False, draw, size, sequence.epoch, guesses))
    sequence.computed, sequence.sampled = start + 1, draw + 1
    sequence.guessing = bool(guesses)
    return len(guesses)


def _guess_tokens(schedule: Schedule) -> int:
    """Return how many tokens the next step may guess: half of those that would double its time.

    None beside chunks of prompts, which have that room first.
    """
    limits = schedule.limits
    if not limits.speculate or schedule.waiting or schedule.prefilling:
        return 0
    rows = _stage_share(schedule, len(schedule.running))
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
    prefilling = schedule.prefilling
    decoding = _stage_share(schedule, len(schedule.running) - len(prefilling))
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
    for sequence in _by_turn(schedule, schedule.prefilling):
        if sequence.state is not State.RUNNING:
            continue  # it was preempted for one before it
        if not sequence.unmasked and not _join(schedule, rows, sequence):
            return rows
    if not _may_admit(schedule, decoding):
        return rows
    while schedule.waiting and schedule.free_lanes:
        sequence = schedule.waiting[0]
        if not schedule.admit(sequence):
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


def _join(schedule: Schedule, rows: list[Row], sequence: Sequence) -> bool:
    """Add the next chunk of a prompt to a prefill step, if that is cheaper than a step of its own."""
    length = min(sequence.prefill_end - sequence.computed, schedule.limits.longest_chunk)
    if rows:
        if any(one.prompt_top is not None for one in (rows[0].sequence, sequence)):
            return False
        if length + sum(row.length for row in rows) > schedule.limits.max_batch_prefill_tokens:
            return False
        row = _chunk(sequence, length)
        joined, before, alone = (
            schedule.buckets.find(schedule.shape(step)) for step in ([*rows, row], rows, [row])
        )
        if not schedule.buckets.worth_joining(joined, (before, alone)):
            return False
    return _add_chunk(schedule, rows, sequence, length) > 0


def _chunk(sequence: Sequence, length: int) -> Row:
    """Make the row of the next `length` tokens of a prompt; its end gives a new token."""
    start = sequence.computed
    ends = start + length >= sequence.prefill_end
    return Row(sequence, start, length, True, sequence.sampled if ends else -1, int(ends), sequence.epoch)


def _add_chunk(schedule: Schedule, rows: list[Row], sequence: Sequence, most: int) -> int:
    """Add the next tokens of a prompt to a step, `most` of them at most, and return how many.

    0: the sequence was the youngest, and was preempted because blocks ran out.
    """
    length = min(sequence.prefill_end - sequence.computed, most)
    if not schedule.reserve(sequence, sequence.computed + length):
        return 0
    rows.append(row := _chunk(sequence, length))
    sequence.computed += length
    schedule.owed -= length
    sequence.sampled += row.samples
    return length
