"""A sequence: the tokens of one generation and its state in the scheduler."""

import enum
import itertools
import math
import time
from collections.abc import Sequence as Items
from typing import Protocol

import attrs
import msgspec
import trio

from tgi.errors import ApiError
from tgi.sampling import SamplingParams
from tgi.text.detokenizer import Detokenizer
from tgi.text.stopping import FinishReason, StoppingCriteria

from .guessing import Guesser
from .loras import Lora

_numbers = itertools.count()
ROOT = 0
"""Serial number before the first block of a sequence without an adapter."""


class State(enum.Enum):
    """State of a sequence. One that lost its blocks is WAITING again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


class Token(msgspec.Struct, eq=False, gc=False):
    """A generated token, as the client's stream gets it."""

    id: int
    text: str
    """Text that this token completes; "" while a character is incomplete."""
    logprob: float
    top: list[tuple[int, float]]
    """Most likely tokens with log-probabilities, best first. Ties with the last wanted one are included."""
    finish: FinishReason | None
    """Set on the last token."""


class Events(Protocol):
    """Receiver of a sequence's tokens, such as a trio.MemorySendChannel without a bound."""

    def send_nowait(self, value: Token | ApiError) -> None:
        """Hand over an item without waiting."""

    def close(self) -> None:
        """End the stream."""


class Matcher(Protocol):
    """Part of `tgi.text.grammar.Matcher` that the scheduler uses."""

    @property
    def mask(self) -> bytes:
        """Little-endian uint32 words with a bit for each token of the vocabulary: set if it may come next."""

    def advance(self, token: int) -> None:
        """Take a token and compute the next mask; runs in a thread. Raises GrammarError."""


@attrs.define(eq=False)
class BlockTable:
    """A running sequence's KV blocks in one layer group. Only `BlockAllocator` and `plan` write to it."""

    blocks: list[int] = attrs.field(factory=list)
    """Block ids in the order of the sequence's tokens; 0 where a cached prefix left out blocks that the
    window does not reach."""
    freed: int = 0
    """Number of leading blocks that no longer belong to the sequence: no later token attends to them."""
    sent: int = 0
    """Number of leading blocks that the ranks know."""
    serial: int = 0
    """Serial number of the last block that was offered to the prefix cache."""


@attrs.define(eq=False, kw_only=True, repr=False)
class Sequence:
    """One generation. The API makes it; afterwards only the scheduler writes to it."""

    prompt: list[int]
    """Token ids after truncation, with special tokens; not empty."""
    max_new_tokens: int
    """Bound on generated tokens; prompt and new tokens together are at most max_total_tokens."""
    sampling: SamplingParams
    stopping: StoppingCriteria
    detokenizer: Detokenizer
    prompt_top: int | None = None
    """Number of most likely tokens to report for each token of the prompt, beside its own log-probability;
    None: not even that."""
    matcher: Matcher | None = None
    """Grammar that the text obeys. It belongs to this sequence alone and has seen no token yet."""
    lora: Lora | None = None
    """LoRA adapter that it is generated with."""
    events: Events | None = None
    """Receiver of the tokens while a client listens; never blocks the scheduler."""
    tenant: str = ""
    """Client that shares the server fairly with others; "": order of arrival decides alone."""
    weight: float = 1.0
    """Weight of the tenant's share, above 0."""
    priority: int = 0
    """Lower comes first: among all sequences without a tenant, or among those of a tenant."""

    # Written by `Schedule`, `plan` and `commit`:
    number: int = attrs.field(factory=lambda: next(_numbers))
    """Order of arrival."""
    virtual_start: float = 0.0
    """Time in a fair queue at which it should start; 0 without a tenant. Lower comes first."""
    admitted: bool = False
    """Whether it has run."""
    expires: float = math.inf
    """Time on trio's clock at which it has waited for too long to begin."""
    state: State = State.WAITING
    tokens: list[int] = attrs.field(init=False)
    """Prompt and all generated tokens that were read back."""
    prompt_logprobs: list[float] = attrs.field(factory=list)
    """Log-probabilities of prompt tokens 1, 2, …; complete when the first token has been generated."""
    prompt_tops: list[list[tuple[int, float]]] = attrs.field(factory=list)
    """The `prompt_top` most likely tokens at each of these positions, best first, lower ids first among
    equals. The prompt's own token has exactly its value of `prompt_logprobs` here."""
    reason: FinishReason | None = None
    """Reason for the end, once it has finished."""
    lane: int = -1
    """Slot of the ranks' per-row state; -1 unless running."""
    tables: list[BlockTable] = attrs.field(factory=list)
    """One table per layer group; empty unless running."""
    settled: int = 0
    """Tokens up to which its tables suffice and none of their blocks becomes free."""
    unsent: bool = False
    """Whether its tables have blocks that the ranks do not know."""
    registered: int = 0
    """Number of leading blocks that were offered to the prefix cache."""
    computed: int = 0
    """Tokens in the KV cache once every step that was sent has been executed."""
    cached: int = 0
    """Tokens of the prompt that the prefix cache had at the first admission, or before it, at routing."""
    sampled: int = 0
    """Tokens generated once every step that was sent has been executed; some may be in flight."""
    last_step: int = 0
    """Number of the last step that it had a row in; in a pipeline only."""
    prefill_end: int = 0
    """Tokens to prefill since the last admission: all that were known then."""
    guesser: Guesser | None = None
    """Guesses its next tokens, if the server speculates and nothing speaks against it."""
    guessing: bool = False
    """Whether a step in flight has guessed tokens, so that the next one waits for the result."""
    right_guesses: int = 0
    """Number of generated tokens that were guessed."""
    epoch: int = 0
    """Number of times that it lost its blocks. Results of steps from an earlier epoch are void."""
    special: bool = False
    """Value of `needs_columns` at its last admission, until which that may change."""
    least_sampler: int = 0
    """`Step.least_sampler` of its steps."""
    losses: int = 0
    """Number of times in a row that the ranks were lost while they computed it."""
    cleared_at: int = 0
    """Generated tokens from which it is no longer suspected of the loss."""

    # Written by the matching threads' callback:
    matched: int = 0
    """Generated tokens that the matcher has seen; one behind while it works on the last token."""

    # Times by time.monotonic(); 0 before the event.
    arrived: float = attrs.field(factory=time.monotonic)
    """Start of validation; set by the API."""
    queued: float = 0.0
    """Entry into `Scheduler.generating`."""
    started: float = 0.0
    """First step sent; set by `StepObserver`."""
    first_token: float = 0.0
    """First token read back; set by `StepObserver`."""
    last_token: float = 0.0
    """Latest token read back; set by `StepObserver`."""
    finished: float = 0.0
    """Last token committed; set by `commit`."""

    def __attrs_post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def root(self) -> int:
        """Serial number before its first block in the prefix cache: one for each adapter, below 0."""
        return ROOT if self.lora is None else -self.lora.number

    def place(self) -> tuple[float, int, int]:
        """Return what orders sequences: virtual start, priority, arrival."""
        return self.virtual_start, self.priority, self.number

    def precedes(self, other: "Sequence") -> bool:
        """Return whether it comes before another for a better reason than its arrival."""
        return self.place()[:2] < other.place()[:2]

    def progress(self) -> float:
        """Return the virtual time that it has reached, while it runs."""
        return self.virtual_start + self.computed / self.weight

    @property
    def needs_columns(self) -> bool:
        """Whether a step with it has columns that most steps do without."""
        unlike = self.matcher, self.lora, self.prompt_top
        return unlike != (None, None, None) or bool(self.sampling.top_n_tokens or self.least_sampler)

    def mark_sent(self) -> None:
        """Note that the ranks know its tables."""
        self.unsent = False
        for table in self.tables:
            table.sent = len(table.blocks)

    @property
    def prefilling(self) -> bool:
        """Whether some of its known tokens are still to be prefilled."""
        return self.computed < self.prefill_end

    @property
    def owed(self) -> int:
        """Number of its known tokens that are still to be computed; while it waits, of those not cached."""
        if self.state is State.WAITING:
            return len(self.tokens) - self.cached
        return max(self.prefill_end - self.computed, 0) if self.state is State.RUNNING else 0

    @property
    def decodable(self) -> bool:
        """Whether a decode row can follow the steps that were sent."""
        return (
            self.computed >= self.prefill_end
            and self.sampled < self.max_new_tokens
            and not self.guessing
            and (self.matcher is None or self.matched == self.sampled)
        )

    @property
    def guessable(self) -> bool:
        """Whether several tokens may be sampled in one step: none depends on the choice of the one before."""
        return self.matcher is None and not self.sampling.needs_history

    def guess(self) -> list[int]:
        """Return tokens that may follow the last one, if that is known and more than one may come."""
        if self.guesser is None or self.sampled != self.generated:
            return []
        return self.guesser.guess(self.tokens)[: max(self.max_new_tokens - self.generated - 1, 0)]

    def repeats(self) -> bool:
        """Return whether the known tokens suggest any that follow."""
        return self.guesser is not None and bool(self.guesser.guess(self.tokens))

    @property
    def unmasked(self) -> bool:
        """Whether its next token waits for a mask, as the last token is in flight or with the matcher."""
        return self.matcher is not None and self.matched != self.sampled

    @property
    def generated(self) -> int:
        """Number of tokens generated and read back."""
        return len(self.tokens) - len(self.prompt)

    def __repr__(self) -> str:
        blocks = [len(table.blocks) for table in self.tables]
        return (
            f"<Sequence {self.number} {self.state.value} {len(self.prompt)}+{self.generated}"
            f"/{self.max_new_tokens} lane {self.lane} blocks {blocks}>"
        )


@attrs.frozen
class _Numbered:
    """Sender of one sequence into a channel that several share."""

    index: int
    channel: trio.MemorySendChannel[tuple[int, Token | ApiError]]

    def send_nowait(self, value: Token | ApiError) -> None:
        self.channel.send_nowait((self.index, value))

    def close(self) -> None:
        self.channel.close()


def open_events(sequences: Items[Sequence]) -> trio.MemoryReceiveChannel[tuple[int, Token | ApiError]]:
    """Give the sequences one channel and return its receiving end.

    Items come with the index of their sequence. The channel ends when all sequences have ended.
    """
    send, receive = trio.open_memory_channel[tuple[int, Token | ApiError]](float("inf"))
    with send:
        for index, sequence in enumerate(sequences):
            sequence.events = _Numbered(index, send.clone())
    return receive
