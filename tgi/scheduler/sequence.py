"""A sequence: the tokens of one generation, and all that the scheduler knows of it. No device, no HTTP."""

import enum
import itertools
import time
from typing import Protocol

import attrs
import trio

from tgi.errors import ApiError
from tgi.text.detokenizer import Detokenizer
from tgi.text.stopping import FinishReason, StoppingCriteria

_numbers = itertools.count()


@attrs.frozen(kw_only=True)
class SamplingParams:
    """How tokens are drawn; neutral values by default (tgi-behaviour section 5)."""

    sample: bool = False
    """False: take the most likely token."""
    seed: int = 0
    """uint64"""
    temperature: float = 1.0
    top_k: int = 0
    """0: off."""
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    watermark: bool = False
    top_n_tokens: int = 0
    """How many of the most likely tokens to report."""

    @property
    def needs_history(self) -> bool:
        """Whether a penalty looks at the tokens so far."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0


class State(enum.Enum):
    """Of a sequence. A preempted one is waiting again, its blocks freed."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


@attrs.define(eq=False)
class Token:
    """One generated token, as it is handed to the client's stream."""

    id: int
    text: str
    """What it adds to the text; "" while a character is incomplete."""
    logprob: float
    top: list[tuple[int, float]]
    """The most likely tokens with their log-probabilities, best first; ties may exceed what was asked for."""
    finish: FinishReason | None
    """Set on the last token."""


class Events(Protocol):
    """Where a sequence's tokens go; a trio.MemorySendChannel."""

    def send_nowait(self, value: Token | ApiError) -> None:
        """Hand over an item; never waits."""

    def close(self) -> None:
        """Say that there will be no more."""


@attrs.define(eq=False, kw_only=True, repr=False)
class Sequence:
    """One generation. The API makes it; afterwards only the scheduler writes to it."""

    prompt: list[int]
    """Token ids, truncated, special tokens included; not empty."""
    max_new_tokens: int
    """prompt + max_new_tokens <= max_total_tokens"""
    sampling: SamplingParams
    stopping: StoppingCriteria
    detokenizer: Detokenizer
    wants_prompt_logprobs: bool = False

    number: int = attrs.field(factory=lambda: next(_numbers))
    """Order of arrival."""
    state: State = State.WAITING
    tokens: list[int] = attrs.field(init=False)
    """Prompt and everything generated and read back so far."""
    prompt_logprobs: list[float] = attrs.field(factory=list)
    """Of prompt tokens 1, 2, ...; complete when the first token has been generated."""
    events: Events | None = None
    """Set while somebody listens; unlimited, the scheduler never waits for a client."""

    lane: int = -1
    blocks: list[int] = attrs.field(factory=list)
    computed: int = 0
    """Tokens in the KV cache once every step that was sent has been executed."""
    sampled: int = 0
    """Tokens generated once every step that was sent has been executed; some may be in flight."""
    prefill_end: int = 0
    """Tokens to compute by prefill since it was last admitted: all that were known then."""
    sent: int = 0
    """Blocks that the ranks have been told of."""
    registered: int = 0
    """Blocks offered to the prefix cache,"""
    serial: int = 0
    """and the serial number of the last of them."""
    epoch: int = 0
    """Grows when it is preempted: results of steps sent before that are void."""

    arrived: float = attrs.field(factory=time.monotonic)
    """Set anew by the API when validation began."""
    queued: float = 0.0
    """When `Scheduler.generating` was entered."""
    started: float = 0.0
    """When its first step was sent; 0 while it waits for the first time."""
    finished: float = 0.0

    def __attrs_post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def prefilling(self) -> bool:
        """Whether part of its known tokens is still to be computed by prefill."""
        return self.computed < self.prefill_end

    @property
    def decodable(self) -> bool:
        """Whether one more token can be computed after those that were sent."""
        return self.computed >= self.prefill_end and self.sampled < self.max_new_tokens

    @property
    def generated(self) -> int:
        """Tokens generated and read back."""
        return len(self.tokens) - len(self.prompt)

    def __repr__(self) -> str:
        return (
            f"<Sequence {self.number} {self.state.value} {len(self.prompt)}+{self.generated}"
            f"/{self.max_new_tokens} lane {self.lane} blocks {len(self.blocks)}>"
        )


def open_events(sequence: Sequence) -> trio.MemoryReceiveChannel[Token | ApiError]:
    """Give the sequence a channel and return its receiving end."""
    sequence.events, receive = trio.open_memory_channel[Token | ApiError](float("inf"))
    return receive
