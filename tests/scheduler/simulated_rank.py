"""A rank in plain Python that follows the wire protocol and checks every slot that a step would read.

Instead of keys and values a slot holds the digest of all tokens up to its position; a row's context is
right if its slots hold exactly the chain of digests of its tokens. The next token is a function of that
digest, of the draw, and of the mask if the row has one, so a generation is right if and only if it equals
`expected_tokens`.
"""

from collections.abc import Sequence
from hashlib import blake2b
from itertools import islice

from tgi.protocol import Result, Step, floats, ints, unpack_ints

EOS = 2
VOCABULARY = 40


def digest(before: int, token: int) -> int:
    """Return the uint64 digest of a sequence that goes on with `token`."""
    data = before.to_bytes(8, "little") + token.to_bytes(4, "little")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def next_token(state: int, draw: int, mask: bytes | None = None) -> int:
    """Return the next token, EOS about once in 40."""
    drawn = digest(state, draw)
    if mask is None:
        return EOS + drawn % VOCABULARY
    allowed = int.from_bytes(mask, "little")
    ids = [token for token in range(EOS + VOCABULARY) if allowed >> token & 1]
    return ids[drawn % len(ids)]


class SimulatedMatcher:
    """A grammar that allows about half of the tokens, chosen by a digest of all tokens so far."""

    def __init__(self) -> None:
        self._state = digest(0, 0)

    @property
    def mask(self) -> bytes:
        """Mask of the next token."""
        allowed = (self._state % 2**VOCABULARY or 1) << EOS
        return allowed.to_bytes(8, "little")

    def advance(self, token: int) -> None:
        """Take the next token."""
        self._state = digest(self._state, token)


def expected_tokens(prompt: list[int], max_new_tokens: int, *, matched: bool = False) -> list[int]:
    """Return the tokens of a sequence, the same in any company; `matched`: with a SimulatedMatcher."""
    state = 0
    for token in prompt:
        state = digest(state, token)
    generated: list[int] = []
    matcher = SimulatedMatcher() if matched else None
    while len(generated) < max_new_tokens and EOS not in generated:
        generated.append(next_token(state, len(generated), matcher.mask if matcher else None))
        state = digest(state, generated[-1])
        if matcher:
            matcher.advance(generated[-1])
    return generated


class SimulatedRank:
    """Executes steps in order."""

    def __init__(
        self,
        block_size: int,
        *,
        flat: bool = False,
        contiguous: bool = False,
        windows: Sequence[int | None] = (None,),
    ) -> None:
        """`flat` is `DeviceSpec.flat`, `contiguous` is `Limits.contiguous`. `windows` are those of the layer
        groups: the number of tokens that a token sees, 2 or more; None: all."""
        self.block_size = block_size
        self.contiguous = contiguous
        self.flat = flat
        self.windows = windows
        self.tables: dict[tuple[int, int], list[int]] = {}
        """Block table of each (group, lane)."""
        self.last: dict[int, int] = {}
        self.slots: dict[tuple[int, int, int], tuple[int, int]] = {}
        """Digests before and after the token in each (group, block, offset)."""
        self.computed = 0
        """Query tokens of all steps, padding not counted."""

    def execute(self, step: Step) -> Result:
        """Carry out a step. Raises AssertionError for anything that a device would compute wrongly."""
        self._update_tables(step)
        columns = (step.lanes, step.starts, step.lengths, step.samples, step.draws)
        lanes, starts, lengths, samples, draws = (unpack_ints(column).tolist() for column in columns)
        tokens = iter(unpack_ints(step.tokens).tolist())
        assert len(set(lanes)) == len(lanes) <= step.bucket.rows
        assert max(lengths) <= step.bucket.tokens
        if self.contiguous and not step.bucket.prefill:
            self._check_one_piece(step, lanes, starts)
        else:
            assert self._blocks(step, starts, lengths) <= step.bucket.blocks
        masks = self._masks(step)
        sampled: list[int] = []
        for lane, start, length, count, draw in zip(lanes, starts, lengths, samples, draws, strict=True):
            assert count <= length, "more samples than query tokens"
            queries = [self.last[lane] if token < 0 else token for token in islice(tokens, length)]
            assert len(queries) == length, "a row without all of its tokens"
            states, *others = (
                self._compute(group, lane, start, queries) for group in range(len(self.windows))
            )
            assert all(other == states for other in others)
            self.computed += length
            for later in range(count):
                state = states[length - count + later]
                self.last[lane] = next_token(state, draw + later, masks.pop(len(sampled), None))
                sampled.append(self.last[lane])
        assert next(tokens, None) is None, "tokens that belong to no row"
        assert not masks, "a mask for a token that is not sampled"
        return Result(number=step.number, tokens=ints(sampled), logprobs=floats([-1.0] * len(sampled)))

    def _blocks(self, step: Step, starts: list[int], lengths: list[int]) -> int:
        """Count the blocks that a block list or a row's table must have room for, in the widest group."""
        window = None if None in self.windows else max(w for w in self.windows if w)
        context_only = self.flat and step.bucket.prefill
        blocks = []
        for start, length in zip(starts, lengths, strict=True):
            reached = start if context_only else start + length
            blocks.append(-(-reached // self.block_size) - _first_seen(start, window) // self.block_size)
        return sum(blocks) if self.flat and not step.bucket.prefill else max(blocks)

    def _check_one_piece(self, step: Step, lanes: list[int], starts: list[int]) -> None:
        """Assert that the bucket reaches up to the last block that a row sees, and that no two see one."""
        for group, window in enumerate(self.windows):
            seen: list[int] = []
            for lane, start in zip(lanes, starts, strict=True):
                first = _first_seen(start, window) // self.block_size
                seen += self.tables[group, lane][first : start // self.block_size + 1]
            assert max(seen) < step.bucket.blocks
            assert len(set(seen)) == len(seen), "a block of two sequences"

    def _masks(self, step: Step) -> dict[int, bytes]:
        masked = unpack_ints(step.masked).tolist()
        assert len(step.masks) == 8 * len(masked)
        return {sample: step.masks[8 * index : 8 * index + 8] for index, sample in enumerate(masked)}

    def _update_tables(self, step: Step) -> None:
        blocks = iter(unpack_ints(step.table_blocks).tolist())
        groups = step.table_groups or bytes(len(step.table_lanes))
        columns = (groups, step.table_lanes, step.table_starts, step.table_counts)
        for group, lane, start, count in zip(*(unpack_ints(c).tolist() for c in columns), strict=True):
            table = self.tables.setdefault((group, lane), [])
            del table[start:]
            assert len(table) == start, "a gap in a block table"
            table += [next(blocks) for _ in range(count)]
        for group in range(len(self.windows)):
            of_group = (unpack_ints(step.table_starts) == 0) & (unpack_ints(groups) == group)
            fresh = unpack_ints(step.table_lanes)[of_group].tolist()
            assert fresh == [params.lane for params in step.params], "a new sequence without its params"

    def _compute(self, group: int, lane: int, start: int, queries: list[int]) -> list[int]:
        """Write the slots of the query tokens, and return the digests after each."""
        size, table = self.block_size, self.tables[group, lane]
        assert start + len(queries) <= len(table) * size, "no block for a query token"
        first = _first_seen(start, self.windows[group])
        assert 0 not in table[first // size :], "the padding block belongs to no sequence"
        state = 0
        for position in range(first, start):
            before, after = self.slots[group, table[position // size], position % size]
            assert before == state or position == first > 0, "a slot holds another sequence's token"
            state = after
        states = []
        for position, token in enumerate(queries, start):
            before, state = state, digest(state, token)
            self.slots[group, table[position // size], position % size] = (before, state)
            states.append(state)
        return states


def _first_seen(position: int, window: int | None) -> int:
    return 0 if window is None else max(0, position + 1 - window)
