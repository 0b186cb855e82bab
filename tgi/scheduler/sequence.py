"""A sequence: the tokens of one generation, and all that the scheduler knows of it. No device, no HTTP."""

import enum
import itertools
import time
from collections.abc import Sequence as Items
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
    min_p: float = 0.0
    """Least probability of a token as a share of that of the most likely one; 0: off."""
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    """TGI's: by the share of the tokens so far, prompt and generated, that are this one."""
    presence_penalty: float = 0.0
    """Once for each token that has been generated."""
    count_penalty: float = 0.0
    """For each time that it has been generated: what OpenAI calls the frequency penalty."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each once, with what is added to their scores."""
    min_tokens: int = 0
    """So many tokens are generated before one of `ends` may be. Without effect beside a matcher."""
    ends: tuple[int, ...] = ()
    watermark: bool = False
    top_n_tokens: int = 0
    """How many of the most likely tokens to report."""

    @property
    def needs_history(self) -> bool:
        """Whether a penalty looks at the tokens so far."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
            or self.count_penalty != 0.0
        )


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
    """Where a sequence's tokens go; a trio.MemorySendChannel, or what is like one."""

    def send_nowait(self, value: Token | ApiError) -> None:
        """Hand over an item; never waits."""

    def close(self) -> None:
        """Say that there will be no more."""


class Matcher(Protocol):
    """What the scheduler needs of a `tgi.text.grammar.Matcher`."""

    @property
    def mask(self) -> bytes:
        """Little-endian uint32 words, a bit for each token of the vocabulary; set: it may come next."""

    def advance(self, token: int) -> None:
        """Take a token and work out the next mask, in a thread. Raises GrammarError."""


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
    prompt_top: int = 0
    """How many of the most likely tokens to report for each position of the prompt; only beside
    `wants_prompt_logprobs`."""
    matcher: Matcher | None = None
    """Says which tokens may come next. It is this sequence's own, and has seen no token yet."""

    number: int = attrs.field(factory=lambda: next(_numbers))
    """Order of arrival."""
    state: State = State.WAITING
    tokens: list[int] = attrs.field(init=False)
    """Prompt and everything generated and read back so far."""
    prompt_logprobs: list[float] = attrs.field(factory=list)
    """Of prompt tokens 1, 2, ...; complete when the first token has been generated."""
    prompt_tops: list[list[tuple[int, float]]] = attrs.field(factory=list)
    """The `prompt_top` most likely tokens in the place of each of them, best first, the lower id first among
    equals. Where the prompt's own token is among them, it has the very same log-probability."""
    events: Events | None = None
    """Set while somebody listens; unlimited, the scheduler never waits for a client."""

    lane: int = -1
    blocks: list[int] = attrs.field(factory=list)
    freed: int = 0
    """How many of these, from the first on, are no longer its own: no token sees them any more."""
    computed: int = 0
    """Tokens in the KV cache once every step that was sent has been executed."""
    sampled: int = 0
    """Tokens generated once every step that was sent has been executed; some may be in flight."""
    matched: int = 0
    """Generated tokens that the matcher has seen; behind while it works on the last one."""
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
    first_token: float = 0.0
    last_token: float = 0.0
    """When the latest token was read back."""
    finished: float = 0.0
    reason: FinishReason | None = None
    """Why it has finished."""

    def __attrs_post_init__(self) -> None:
        self.tokens = list(self.prompt)
        if self.matcher is not None:
            self.stopping.min_tokens = 0  # the grammar alone says when the text may end

    @property
    def prefilling(self) -> bool:
        """Whether part of its known tokens is still to be computed by prefill."""
        return self.computed < self.prefill_end

    @property
    def decodable(self) -> bool:
        """Whether one more token can be computed after those that were sent."""
        return (
            self.computed >= self.prefill_end
            and self.sampled < self.max_new_tokens
            and (self.matcher is None or self.matched == self.sampled)
        )

    @property
    def unmasked(self) -> bool:
        """Whether its next token must wait for a mask: the last one is in flight, or with the matcher."""
        return self.matcher is not None and self.matched != self.sampled

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


@attrs.frozen
class _Numbered:
    """One sequence's part in a channel of several."""

    index: int
    channel: trio.MemorySendChannel[tuple[int, Token | ApiError]]

    def send_nowait(self, value: Token | ApiError) -> None:
        self.channel.send_nowait((self.index, value))

    def close(self) -> None:
        self.channel.close()


def open_common_events(
    sequences: Items[Sequence],
) -> trio.MemoryReceiveChannel[tuple[int, Token | ApiError]]:
    """Give the sequences one channel, which ends when all have ended; items name the index of theirs."""
    send, receive = trio.open_memory_channel[tuple[int, Token | ApiError]](float("inf"))
    with send:
        for index, sequence in enumerate(sequences):
            sequence.events = _Numbered(index, send.clone())
    return receive
