"""What to run next (`plan`) and what has come of it (`commit`): synchronous functions of plain data.

The order of arrival decides everything: admission is first in, first out, with no overtaking; when blocks
run out the youngest running sequence gives its up and waits again at its old place. So the oldest always
advances, and nothing starves. `plan` may be called while a step is in flight: it counts on every row of
that step having one more token, and `commit` drops what turns out to belong to a sequence that has ended.
Only a sequence that obeys a grammar waits: for its last token, and for the mask that follows from it.
"""

from bisect import insort
from collections import deque
from collections.abc import Sequence as Items

import attrs

from tgi.limits import Limits
from tgi.protocol import LaneParams, Step, floats, ints

from .blocks import BlockPool
from .buckets import Bucket, Buckets
from .sequence import Sequence, State

GROW_BLOCKS = 4
"""A decoding sequence takes up to this many blocks at once, so that its cache stays in long runs."""
TIES = 8
"""How many more of the most likely tokens are reported than asked for: room for ties with the last."""


@attrs.define(eq=False)
class Row:
    """A sequence in a step."""

    sequence: Sequence
    start: int
    """Tokens in the KV cache before the step."""
    length: int
    """Query tokens."""
    draw: int
    """Number of the random draw, -1 if no token comes of this row."""
    epoch: int


@attrs.frozen(eq=False)
class Planned:
    """A step with the rows it was made from; kept until its result is there."""

    step: Step
    bucket: Bucket
    rows: list[Row]
    shape: Bucket
    """What there is of the bucket without padding."""


@attrs.define(eq=False)
class Schedule:
    """All that `plan` and `commit` know and change."""

    limits: Limits
    buckets: Buckets
    pool: BlockPool
    prefix_limit: int | None = None
    """Prompts of up to so many tokens share prefixes, blocks up to there are cached; None: all, 0: none."""
    waiting: deque[Sequence] = attrs.field(factory=deque)
    """By order of arrival."""
    running: list[Sequence] = attrs.field(factory=list)
    """By order of arrival: those that have a lane and blocks."""
    free_lanes: list[int] = attrs.field(factory=list)
    number: int = 0
    """Of the last step."""
    steps_since_prefill: int = 0
    prefilled_last: bool = False
    preemptions: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0

    def __attrs_post_init__(self) -> None:
        self.free_lanes = list(range(self.limits.max_batch_size))[::-1]

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence, state: State) -> None:
        """It has ended, whatever it was doing; its lane and blocks are free at once.

        A step in flight may still write to them. It runs before any step that could use them again.
        """
        if sequence.state is State.RUNNING:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence.state is State.WAITING:
            self.waiting.remove(sequence)
        sequence.state = state

    def preempt(self, sequence: Sequence) -> None:
        """Free its lane and blocks; it waits at its old place, to be prefilled with all its tokens."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.state = State.WAITING
        sequence.epoch += 1
        if not sequence.generated:
            sequence.prompt_logprobs.clear()
            sequence.prompt_tops.clear()
        insort(self.waiting, sequence, key=lambda s: s.number)
        self.preemptions += 1

    def shareable(self, sequence: Sequence) -> int:
        """How many of its first tokens have keys and values that any sequence could use."""
        limit = len(sequence.tokens) if self.prefix_limit is None else self.prefix_limit
        return limit if len(sequence.prompt) <= limit else 0

    def free_behind(self, sequence: Sequence) -> None:
        """Free the blocks that none of its tokens still to be computed sees."""
        first = self.pool.first_block(sequence.computed)
        if first > sequence.freed:
            self.pool.release(sequence.blocks[sequence.freed : first])
            sequence.freed = first

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks[sequence.freed :])
        sequence.blocks, sequence.freed, sequence.sent = [], 0, 0
        self.free_lanes.append(sequence.lane)
        sequence.lane = -1


def plan(schedule: Schedule) -> Planned | None:
    """The next step, or None when nothing can be computed before a result or a request arrives.

    Prefill and decode take turns while both have work, so that neither a long prompt nor a stream of new
    ones holds up the sequences that are being generated.
    """
    decoding = any(s.decodable for s in schedule.running)
    prefill_first = not (decoding and schedule.prefilled_last)
    for prefill in (prefill_first, not prefill_first):
        rows = _prefill_rows(schedule, decoding) if prefill else _decode_rows(schedule)
        if rows:
            schedule.prefilled_last = prefill
            schedule.steps_since_prefill = 1 if prefill else schedule.steps_since_prefill + 1
            return _step(schedule, rows, prefill)
    return None


def _prefill_rows(schedule: Schedule, decoding: bool) -> list[Row]:
    """First the sequences in the middle of their prompt, then new ones while they share a step well."""
    rows: list[Row] = []
    for sequence in schedule.running:
        if sequence.prefilling and not sequence.unmasked and not _join(schedule, rows, sequence):
            return rows
    if not _may_admit(schedule, decoding):
        return rows
    while schedule.waiting and schedule.free_lanes:
        sequence = schedule.waiting[0]
        if not _admit(schedule, sequence):
            break
        if not sequence.unmasked and not _join(schedule, rows, sequence):
            break  # it is running now, and first in line for the next prefill step
    return rows


def _may_admit(schedule: Schedule, decoding: bool) -> bool:
    """TGI's rule (Q11): for a few, the running batch is interrupted only every max_waiting_tokens steps."""
    if not schedule.waiting or not schedule.free_lanes:
        return False
    if not decoding or schedule.steps_since_prefill >= schedule.limits.max_waiting_tokens:
        return True
    return len(schedule.waiting) >= int(len(schedule.running) * schedule.limits.waiting_served_ratio)


def _admit(schedule: Schedule, sequence: Sequence) -> bool:
    """Give a waiting sequence its lane and blocks, shared ones first, or nothing.

    These are the blocks of all its tokens, or as many as it has at once.
    """
    pool, size, known = schedule.pool, schedule.pool.block_size, len(sequence.tokens)
    shared, serial = pool.share(sequence.tokens, _reusable(schedule, sequence) // size)
    first, most = pool.first_block(len(shared) * size), schedule.limits.sequence_blocks
    missing = min(-(-(known + 1) // size), first + most) - len(shared)
    if pool.available < missing + len(schedule.running):
        pool.release(shared[first:])
        return False
    room = min(-(-(len(sequence.prompt) + sequence.max_new_tokens) // size), first + most) - len(shared)
    sequence.blocks = shared + pool.take(missing, after=shared[-1] if shared else 0, room=room)
    sequence.freed = first
    sequence.lane = schedule.free_lanes.pop()
    sequence.computed = len(shared) * size
    sequence.sampled = sequence.generated
    sequence.prefill_end = known
    sequence.registered, sequence.serial = len(shared), serial
    sequence.state = State.RUNNING
    schedule.waiting.popleft()
    insort(schedule.running, sequence, key=lambda s: s.number)
    schedule.prefix_hit_tokens += sequence.computed
    schedule.prefix_query_tokens += known
    return True


def _reusable(schedule: Schedule, sequence: Sequence) -> int:
    """How many of its tokens may be taken from the prefix cache."""
    if sequence.wants_prompt_logprobs and not sequence.generated:
        return 0
    return min(len(sequence.tokens) - 1, schedule.shareable(sequence))


def _join(schedule: Schedule, rows: list[Row], sequence: Sequence) -> bool:
    """Add the next chunk of a prompt to a prefill step, if that is cheaper than a step of its own."""
    buckets = schedule.buckets
    length = min(sequence.prefill_end - sequence.computed, buckets.longest_prefill)
    ends = sequence.computed + length == sequence.prefill_end
    row = Row(sequence, sequence.computed, length, sequence.sampled if ends else -1, sequence.epoch)
    if rows:
        if rows[0].sequence.wants_prompt_logprobs or sequence.wants_prompt_logprobs:
            return False
        total = length + sum(other.length for other in rows)
        if total > buckets.max_prefill or not _worth_joining(schedule, rows, row):
            return False
    schedule.free_behind(sequence)
    if not _grow(schedule, sequence, row.start + length):
        return False
    rows.append(row)
    sequence.computed += length
    sequence.sampled += ends
    return True


def _worth_joining(schedule: Schedule, rows: list[Row], row: Row) -> bool:
    """Whether rows of unequal length share a padded step at less cost than that of another step."""
    if not schedule.buckets.padded:
        return True
    steps = ([*rows, row], rows, [row])
    together, before, alone = (schedule.buckets.find(_shape(schedule, some, prefill=True)) for some in steps)
    return schedule.buckets.worth_joining(together, (before, alone))


def _shape(schedule: Schedule, rows: Items[Row], *, prefill: bool) -> Bucket:
    """Of a step with these rows, before padding; how blocks count is a matter of `DeviceSpec.flat`."""
    flat, pool = schedule.buckets.flat, schedule.pool
    counted = [row.start if prefill and flat else row.start + row.length for row in rows]
    blocks = [
        -(-reached // pool.block_size) - pool.first_block(row.start)
        for row, reached in zip(rows, counted, strict=True)
    ]
    if not prefill:
        return Bucket(len(rows), 1, sum(blocks) if flat else max(blocks))
    return Bucket(len(rows), max([row.length for row in rows]), max(blocks), prefill=True)


def _decode_rows(schedule: Schedule) -> list[Row]:
    """Every sequence that can go on, the oldest first; the youngest make room if blocks run out."""
    rows: list[Row] = []
    for sequence in list(schedule.running):
        if sequence.state is not State.RUNNING or not sequence.decodable:
            continue
        schedule.free_behind(sequence)
        if not _grow(schedule, sequence, sequence.computed + 1):
            continue
        rows.append(Row(sequence, sequence.computed, 1, sequence.sampled, sequence.epoch))
        sequence.computed += 1
        sequence.sampled += 1
    return rows


def _grow(schedule: Schedule, sequence: Sequence, tokens: int) -> bool:
    """Make sure it has blocks for so many tokens; False if the sequence had to be preempted itself."""
    pool, size = schedule.pool, schedule.pool.block_size
    missing = -(-tokens // size) - len(sequence.blocks)
    if missing <= 0:
        return True
    while pool.available < missing:
        youngest = schedule.running[-1]
        schedule.preempt(youngest)
        if youngest is sequence:
            return False
    wanted = -(-(len(sequence.prompt) + sequence.max_new_tokens) // size) - len(sequence.blocks)
    if pool.available > GROW_BLOCKS * len(schedule.running):
        missing = max(missing, min(wanted, GROW_BLOCKS))
    sequence.blocks += pool.take(missing, after=sequence.blocks[-1])
    return True


def _step(schedule: Schedule, rows: list[Row], prefill: bool) -> Planned:
    """Write the rows down as columns, with what their lanes need to be told."""
    shape = _shape(schedule, rows, prefill=prefill)
    bucket = schedule.buckets.find(shape)
    assert bucket is not None, f"no bucket for {shape}"
    schedule.number += 1
    mask_rows, masks = _masks(rows)
    top = max([row.sequence.sampling.top_n_tokens for row in rows])
    queries = [row.sequence.tokens[row.start : row.start + row.length] for row in rows] if prefill else []
    tables = [row.sequence for row in rows if row.sequence.sent < len(row.sequence.blocks)]
    step = Step(
        number=schedule.number,
        prefill=prefill,
        bucket_rows=bucket.rows,
        bucket_tokens=bucket.tokens,
        bucket_blocks=bucket.blocks,
        lanes=ints([row.sequence.lane for row in rows]),
        starts=ints([row.start for row in rows]),
        draws=ints([row.draw for row in rows]),
        tokens=ints([token for query in queries for token in query]),
        lengths=ints([row.length for row in rows]) if prefill else b"",
        targets=_targets(rows),
        params=tuple(_lane_params(s) for s in tables if not s.sent),
        table_lanes=ints([s.lane for s in tables]),
        table_starts=ints([s.sent for s in tables]),
        table_counts=ints([len(s.blocks) - s.sent for s in tables]),
        table_blocks=ints([block for s in tables for block in s.blocks[s.sent :]]),
        top=top + TIES if top else 0,
        prompt_top=rows[0].sequence.prompt_top if prefill else 0,
        mask_rows=mask_rows,
        masks=masks,
    )
    for sequence in tables:
        sequence.sent = len(sequence.blocks)
    if prefill:
        for row in rows:
            register(schedule, row.sequence)
    return Planned(step, bucket, rows, shape)


def _masks(rows: Items[Row]) -> tuple[bytes, bytes]:
    """Of the rows whose next token must obey a grammar: which they are, and what may come."""
    masks = [
        (index, matcher.mask)
        for index, row in enumerate(rows)
        if (matcher := row.sequence.matcher) is not None and row.draw >= 0
    ]
    return ints([index for index, _ in masks]), b"".join([mask for _, mask in masks])


def _targets(rows: Items[Row]) -> bytes:
    """The tokens whose log-probabilities are wanted: those after each query token of a prompt."""
    sequence, row = rows[0].sequence, rows[0]
    if not sequence.wants_prompt_logprobs or sequence.generated or row.start >= len(sequence.prompt):
        return b""
    after = sequence.prompt[row.start + 1 : row.start + row.length + 1]
    return ints([*after, *[-1] * (row.length - len(after))])


def _lane_params(sequence: Sequence) -> LaneParams:
    sampling = sequence.sampling
    min_tokens = 0 if sequence.matcher is not None else sampling.min_tokens
    return LaneParams(
        lane=sequence.lane,
        seed=sampling.seed,
        sample=sampling.sample,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        typical_p=sampling.typical_p,
        repetition_penalty=sampling.repetition_penalty,
        frequency_penalty=sampling.frequency_penalty,
        watermark=sampling.watermark,
        history=ints(sequence.tokens) if sampling.needs_history else b"",
        prompt_length=len(sequence.prompt),
        min_p=sampling.min_p,
        presence_penalty=sampling.presence_penalty,
        count_penalty=sampling.count_penalty,
        bias_ids=ints([token for token, _ in sampling.logit_bias]),
        bias_values=floats([value for _, value in sampling.logit_bias]),
        min_tokens=min_tokens,
        ends=ints(sampling.ends) if min_tokens else b"",
    )


def register(schedule: Schedule, sequence: Sequence) -> None:
    """Offer every block that is full, of tokens that are known, to the prefix cache.

    A step that is only sent counts as executed, for whatever uses the block comes after it. So no
    block is freed behind a window that has not been offered.
    """
    size = schedule.pool.block_size
    if len(sequence.tokens) < (sequence.registered + 1) * size:
        return  # as after most tokens
    full = min(sequence.computed, len(sequence.tokens), schedule.shareable(sequence)) // size
    while sequence.registered < full:
        start = sequence.registered * size
        block = sequence.blocks[sequence.registered]
        content = sequence.tokens[start : start + size]
        sequence.serial = schedule.pool.register(block, sequence.serial, content)
        sequence.registered += 1
