"""The answers of `/v1/*`, key for key (tgi-behaviour 3.4 to 3.7), with what OpenAI's specification adds."""

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

Reason = Literal["stop", "length", "tool_calls"]


class UsageBody(msgspec.Struct):
    """Tokens of prompts and answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> "UsageBody":
        """With their sum."""
        return cls(prompt, completion, prompt + completion)


class TopLogprobBody(msgspec.Struct):
    """One of the most likely tokens in the place of another."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobBody(msgspec.Struct):
    """A generated token."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprobBody]


class ChatLogprobsBody(msgspec.Struct):
    """Log-probabilities of a chat answer."""

    content: list[TokenLogprobBody]
    refusal: None = None


class FunctionBody(msgspec.Struct):
    """What a tool call calls; `arguments` is JSON text."""

    description: str | None
    name: str
    arguments: str


class ToolCallBody(msgspec.Struct):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: FunctionBody


class ChatMessageBody(msgspec.Struct):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: str | UnsetType = UNSET
    """Thoughts before the content."""
    reasoning: str | UnsetType = UNSET
    """The same under its other common name."""
    tool_calls: list[ToolCallBody] | UnsetType = UNSET


class ChatChoiceBody(msgspec.Struct):
    """One of `n` answers."""

    index: int
    message: ChatMessageBody
    logprobs: ChatLogprobsBody | None
    finish_reason: Reason


class ChatBody(msgspec.Struct):
    """The answer of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoiceBody]
    usage: UsageBody


class FunctionDeltaBody(msgspec.Struct):
    """A piece of a tool call; the name comes with the first one."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDeltaBody(msgspec.Struct):
    """A piece of tool call `index`; id and type come with the first one."""

    index: int
    function: FunctionDeltaBody
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class DeltaBody(msgspec.Struct):
    """What an event adds to the message; the role comes with the first one."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDeltaBody] | UnsetType = UNSET


class ChatChunkChoiceBody(msgspec.Struct):
    """What an event adds to one of `n` answers."""

    index: int
    delta: DeltaBody
    logprobs: ChatLogprobsBody | None
    finish_reason: Reason | None


class ChatChunkBody(msgspec.Struct):
    """An event of `/v1/chat/completions`."""

    object: Literal["chat.completion.chunk"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoiceBody]
    usage: UsageBody | None


class CompletionLogprobsBody(msgspec.Struct):
    """Log-probabilities of a completion, a column each; null for the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoiceBody(msgspec.Struct):
    """One answer to one of the prompts, or what an event adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobsBody | None
    finish_reason: Reason | None


class CompletionBody(msgspec.Struct):
    """The answer of `/v1/completions`, and its events."""

    object: Literal["text_completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoiceBody]
    usage: UsageBody | UnsetType | None


class ModelBody(msgspec.Struct):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsBody(msgspec.Struct):
    """The answer of `/v1/models`."""

    object: Literal["list"]
    data: list[ModelBody]


class DetokenizeBody(msgspec.Struct):
    """The answer of `/detokenize`."""

    prompt: str
