"""Requests and answers of `/v1` and `/chat_tokenize` (tgi-behaviour 2.3, 2.4, 3.4 to 3.7, 4.3).

Where OpenAI's API allows more than TGI does, a request is read as OpenAI means it.
"""

from collections.abc import Sequence as Items
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from tgi.api import refused
from tgi.api.native import SEED, STOP, MaxTokens, ModelName, Priority, TokenId
from tgi.api.refused import refusing
from tgi.errors import ValidationError
from tgi.sampling import U32, about
from tgi.scheduler import Sequence
from tgi.text.tokenizer import Piece

from .formats import FormatFields

Reason = Literal["stop", "length", "tool_calls", "function_call"]
MAX_CHAT_LOGPROBS = 20
"""OpenAI's maximum of `top_logprobs`; the server's own may be higher."""
MAX_COMPLETION_LOGPROBS = 5
"""OpenAI's maximum of `logprobs` in `/v1/completions`; the server's own may be higher."""

# Messages and tools of requests


class Url(msgspec.Struct):
    """The place of an image."""

    url: Annotated[str, about("An http(s) or data URL.")]


class TextChunk(msgspec.Struct, tag_field="type", tag="text"):
    """A text in a message (C31)."""

    text: str


class ImageChunk(msgspec.Struct, tag_field="type", tag="image_url"):
    """An image in a message (C31)."""

    image_url: Url


class AudioChunk(msgspec.Struct, tag_field="type", tag="input_audio"):
    """A sound in a message."""

    input_audio: Any = None


class VideoChunk(msgspec.Struct, tag_field="type", tag="video_url"):
    """A video in a message."""

    video_url: Any = None


class FileChunk(msgspec.Struct, tag_field="type", tag="file"):
    """A file in a message."""

    file: Any = None


class RefusalChunk(msgspec.Struct, tag_field="type", tag="refusal"):
    """A refusal of the assistant, which is text to the model."""

    refusal: str


MessageChunk: TypeAlias = TextChunk | ImageChunk | AudioChunk | VideoChunk | FileChunk | RefusalChunk
MessageContent: TypeAlias = str | list[MessageChunk]
_OTHER_PARTS: dict[type[msgspec.Struct], str] = {
    ImageChunk: "an image",
    AudioChunk: "audio",
    VideoChunk: "a video",
    FileChunk: "a file",
}


_NONE = ("", "null")
"""Texts of arguments that streams and models leave of a call without any."""


class FunctionCall(msgspec.Struct):
    """A function that the model called, as a later request tells of it."""

    name: str
    arguments: Annotated[Any, about("Usually the text of a JSON object; default: no arguments.")] = UNSET
    parameters: Annotated[Any, about("Another name of `arguments`.")] = UNSET
    description: str | None = None

    def __post_init__(self) -> None:
        arguments = _one_of(arguments=self.arguments, parameters=self.parameters)
        is_none = arguments in (UNSET, None) or (isinstance(arguments, str) and arguments.strip() in _NONE)
        self.arguments = {} if is_none else arguments


class ToolCall(msgspec.Struct):
    """A call in a message of the assistant."""

    function: FunctionCall
    id: str | None = None
    type: str | None = "function"

    def to_template(self) -> dict[str, Any]:
        """Return the call as chat templates expect it."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": "function", "function": function}


class Message(msgspec.Struct):
    """A message of a conversation (C30)."""

    role: str
    content: MessageContent | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: Annotated[str | None, about("Text of an answer without content.")] = None
    function_call: Annotated[FunctionCall | None, about("Older form of `tool_calls`.")] = None
    audio: Annotated[Any, about("Refused: an earlier answer that was spoken.")] = None
    reasoning_content: Annotated[Any, about("Thoughts before an earlier answer.")] = None
    reasoning: Annotated[Any, about("Another name of `reasoning_content`.")] = None
    thinking: Annotated[Any, about("Another name of `reasoning_content`.")] = None

    def __post_init__(self) -> None:
        if self.content is None and self.tool_calls is None and self.role not in ("assistant", "function"):
            raise ValueError("Object missing required field `content`")

    @property
    def other_than_text(self) -> str | None:
        """Name of the first part that is no text."""
        parts = self.content if isinstance(self.content, list) else []
        names = ("audio" if self.audio else None, *(_OTHER_PARTS.get(type(part)) for part in parts))
        return next(filter(None, names), None)

    def to_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it: a field that is not given is not there."""
        message: dict[str, Any] = {"role": "tool" if self.role == "function" else self.role}
        if isinstance(self.content, list):
            message["content"] = [
                {"type": "text", "text": part.refusal}
                if isinstance(part, RefusalChunk)
                else msgspec.to_builtins(part)
                for part in self.content
            ]
        elif self.content is not None or self.refusal is not None:
            message["content"] = self.refusal if self.content is None else self.content
        if self.tool_calls is not None:
            message["tool_calls"] = [call.to_template() for call in self.tool_calls]
        elif self.function_call is not None:
            message["tool_calls"] = [ToolCall(self.function_call).to_template()]
        for name in ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking"):
            if isinstance(text := getattr(self, name), str):
                message[name] = text
        return message


_MESSAGE = about(
    "",
    anyOf=[
        {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
        {"required": ["tool_calls"], "properties": {"tool_calls": {"not": {"type": "null"}}}},
        {"properties": {"role": {"enum": ["assistant", "function"]}}},
    ],
)


class FunctionDefinition(msgspec.Struct):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: Annotated[Any, about("A JSON schema; without one the function takes nothing.")] = UNSET
    arguments: Annotated[Any, about("Another name of `parameters`.")] = UNSET
    strict: Annotated[bool | None, about("Without effect: the schema is always obeyed.")] = None

    def __post_init__(self) -> None:
        parameters = _one_of(parameters=self.parameters, arguments=self.arguments)
        self.parameters = {} if parameters in (None, UNSET) else parameters
        if not self.name:
            raise ValueError("The name of a function cannot be empty")


class Tool(msgspec.Struct):
    """A tool that the model may use: a function."""

    function: Annotated[
        FunctionDefinition, about("", **{"not": {"required": ["parameters", "arguments"]}})
    ] = UNSET  # type: ignore[assignment]
    """Never UNSET, which only lets the message name a tool of another type."""
    type: str | None = "function"

    def __post_init__(self) -> None:
        if not isinstance(self.function, FunctionDefinition):
            raise ValueError(
                "Object missing required field `function`"
                if self.type in ("function", None)
                else f"Tools of the type {self.type[:40]!r} are not supported, functions are"
            )


_TOOL = about("", required=["function"])


class FunctionName(msgspec.Struct):
    """The name of a function."""

    name: str


class AllowedTools(msgspec.Struct):
    """The choice among some of the tools."""

    mode: Literal["auto", "required"]
    tools: list["NamedTool"]


class NamedTool(msgspec.Struct):
    """The choice of one function, or among the allowed tools."""

    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None
    type: Literal["function", "allowed_tools"] = "function"

    def __post_init__(self) -> None:
        if getattr(self, self.type) is None:
            raise ValueError(f"Object missing required field `{self.type}`")


_NAMED_TOOL = [{"required": ["function"]}, {"required": ["allowed_tools"]}]
ToolChoice: TypeAlias = str | NamedTool
"""`auto`, `none`, `required`, the function to call, or some of the tools (T2)."""


def _one_of(**names: Any) -> Any:
    """Return the value of the one name that is given. Raises ValueError if several are."""
    given = [name for name, value in names.items() if value is not UNSET]
    if len(given) > 1:
        raise ValueError(f"Object has both `{given[0]}` and `{given[1]}`")
    return names[given[0]] if given else UNSET


# Requests


class StreamOptions(msgspec.Struct):
    """Additions to a stream."""

    include_usage: Annotated[bool | None, about("Report numbers of tokens in an event at the end.")] = None
    continuous_usage_stats: Annotated[bool | None, about("Report numbers of tokens in every event.")] = None


_BIAS = "Numbers from -100 to 100 added to logits, by token id. A list is ignored."
_TOP = "Number of most likely tokens to report for each token."


class OpenAIRequest(FormatFields, kw_only=True):
    """Fields that the bodies of chat and completions share."""

    model: ModelName = None
    max_tokens: MaxTokens = None
    max_completion_tokens: Annotated[U32 | None, about("Newer name of `max_tokens`.")] = None
    stop: Annotated[str | list[str] | None, STOP] = None
    seed: Annotated[int | None, about(SEED)] = None
    stream: Annotated[bool | None, about("Answer with server-sent events.")] = False
    stream_options: Annotated[StreamOptions | None, about("Additions to a stream.")] = None
    n: Annotated[U32 | None, about("Number of texts.", limit="max_concurrent_requests", minimum=1)] = None
    logit_bias: Annotated[dict[str, float] | list[float] | None, about(_BIAS)] = None
    ignore_eos: Annotated[bool | None, about("Go on after the model's end tokens.")] = None
    stop_token_ids: Annotated[list[TokenId] | None, about("Tokens that end the text.")] = None
    priority: Priority = None
    allowed_token_ids: Annotated[list[TokenId] | None, about("Tokens that alone may be generated.")] = None
    bad_words: Annotated[list[str] | None, about("Texts whose last token may not follow the others.")] = None
    include_stop_str_in_output: Annotated[bool | None, about("Leave what ends the text in it.")] = None
    skip_special_tokens: Annotated[bool | None, about("Leave special tokens out; null: yes.")] = None
    add_special_tokens: Annotated[
        bool | None,
        about("Put the tokenizer's own tokens before the prompt; null: not before a conversation."),
    ] = None
    truncate_prompt_tokens: Annotated[
        int | None, about("Tokens of the prompt that count; -1: as many as fit.", minimum=-1)
    ] = None
    truncation_side: Annotated[
        Literal["left", "right"] | None, about("Side from which a prompt is truncated; null: left.")
    ] = None
    prompt_logprobs: Annotated[
        U32 | None,
        about(
            "Number of most likely tokens to report for each token of the prompt.",
            limit="max_top_n_tokens",
            at_least=MAX_CHAT_LOGPROBS,
        ),
    ] = None
    return_token_ids: Annotated[bool | None, about("Report ids of the tokens of prompt and text.")] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, about("Name tokens in `logprobs` by id: `token_id:5`.")
    ] = None

    def __post_init__(self) -> None:
        if self.max_completion_tokens is not None:
            if self.max_tokens not in (None, self.max_completion_tokens):
                raise ValueError("`max_tokens` and `max_completion_tokens` differ")
            self.max_tokens = self.max_completion_tokens
        if "" in self.stops:
            raise ValidationError("`stop` cannot have an empty text")
        if self.prompt_logprobs is not None and self.stream:
            raise ValidationError("`prompt_logprobs` is not supported when streaming tokens")
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise ValueError("Expected `seed` of 64 bits")

    @property
    def stops(self) -> list[str]:
        """Strings that end the text."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


@refusing(refused.CHAT)
class ChatRequest(OpenAIRequest, kw_only=True):
    """The body of `/v1/chat/completions` and `/chat_tokenize`."""

    messages: Annotated[list[Annotated[Message, _MESSAGE]], about("The conversation so far.", minItems=1)]
    max_completion_tokens: Annotated[U32 | None, about("Newer name of `max_tokens`.", minimum=1)] = None
    logprobs: Annotated[bool | None, about("Report the log-probability of each token.")] = None
    top_logprobs: Annotated[U32 | None, about(_TOP, limit="max_top_n_tokens", at_least=MAX_CHAT_LOGPROBS)] = (
        None
    )
    tools: Annotated[list[Annotated[Tool, _TOOL]] | None, about("Functions that the model may call.")] = None
    tool_choice: Annotated[
        ToolChoice | None,
        about(
            "`auto`, `none`, `required`, the function to call, or some of the tools.",
            **{"not": {"type": "object", "not": {"anyOf": _NAMED_TOOL}}},
        ),
    ] = None
    tool_prompt: Annotated[str | None, about("Text before tools that the chat template ignores.")] = None
    parallel_tool_calls: Annotated[bool | None, about("Whether several calls may be made; null: yes.")] = None
    functions: Annotated[
        list[FunctionDefinition] | None, about("Older form of `tools`; the answer has a `function_call`.")
    ] = None
    function_call: Annotated[
        Literal["none", "auto"] | FunctionName | None, about("Older form of `tool_choice`.")
    ] = None
    add_generation_prompt: Annotated[
        bool | None, about("End the prompt where an answer begins; null: yes, unless a message is continued.")
    ] = None
    continue_final_message: Annotated[
        bool | None, about("Continue the last message; null: yes if it is the assistant's.")
    ] = None
    echo: Annotated[bool | None, about("Put the last message before the text if it is the assistant's.")] = (
        None
    )
    return_prompt_text: Annotated[bool | None, about("Report the prompt that the messages become.")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, about("Variables for the chat template.")] = None
    documents: Annotated[list[dict[str, Any]] | None, about("Documents for the chat template.")] = None
    reasoning_effort: Annotated[str | None, about("Effort; `none` means `enable_thinking: false`.")] = None
    verbosity: Annotated[str | None, about("Verbosity, for the chat template.")] = None
    enable_thinking: Annotated[bool | None, about("Whether the model thinks before it answers.")] = None
    include_reasoning: Annotated[bool | None, about("Whether thoughts are answered; null: yes.")] = None
    max_thinking_tokens: Annotated[
        U32 | None,
        about(
            "Maximum number of tokens of thoughts. Default: no limit, or half of all tokens if a tool call "
            "is required or an answer is constrained."
        ),
    ] = None

    thinking_token_budget: Annotated[
        int | None, about("Another name of `max_thinking_tokens`; -1: no limit.", minimum=-1)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_logprobs and not self.logprobs:
            raise ValidationError("`top_logprobs` needs `logprobs`")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValidationError("`continue_final_message` and `add_generation_prompt` exclude each other")
        if self.thinking_token_budget is not None:
            if self.thinking_token_budget < -1:
                raise ValidationError("`thinking_token_budget` must be >= -1")
            if self.max_thinking_tokens is None and self.thinking_token_budget >= 0:
                self.max_thinking_tokens = self.thinking_token_budget
        self._read_functions()

    def _read_functions(self) -> None:
        """Turn the older form of tools into the newer."""
        if self.functions is None:
            if self.function_call not in (None, "none"):
                raise ValidationError("`function_call` needs `functions`")
            return
        if self.tools is not None or self.tool_choice is not None:
            raise ValidationError("`functions` and `tools` cannot be combined")
        self.tools = [Tool(function) for function in self.functions]
        self.parallel_tool_calls = False
        chosen = self.function_call
        self.tool_choice = NamedTool(chosen) if isinstance(chosen, FunctionName) else chosen

    @property
    def chosen_tools(self) -> tuple[str, list[str] | None]:
        """Mode, which is `named` if one function must be called, and the functions if not all are meant."""
        choice = "auto" if self.tool_choice is None else self.tool_choice
        if isinstance(choice, str):
            return (choice, None) if choice in ("auto", "none", "required") else ("named", [choice])
        if choice.allowed_tools is None:
            assert choice.function is not None
            return "named", [choice.function.name]
        allowed = choice.allowed_tools
        return allowed.mode, [tool.function.name for tool in allowed.tools if tool.function is not None]


Prompt: TypeAlias = str | Annotated[list[str | U32 | list[U32]], Meta(extra_json_schema={"minItems": 1})]


@refusing(refused.COMPLETIONS)
class CompletionRequest(OpenAIRequest, kw_only=True):
    """The body of `/v1/completions`."""

    max_tokens: Annotated[U32 | None, about("Maximum number of tokens; 0 is for the prompt alone.")] = None
    prompt: Annotated[Prompt, about("One prompt or several, as text or as token ids.")]
    suffix: Annotated[str | None, about("Not supported.", maxLength=0)] = None
    echo: Annotated[bool | None, about("Put the prompt before the text, also in `logprobs`.")] = None
    logprobs: Annotated[
        U32 | bool | None, about(_TOP, limit="max_top_n_tokens", at_least=MAX_COMPLETION_LOGPROBS)
    ] = None
    best_of: Annotated[
        U32 | None, about("Texts of which the best `n` count.", limit="max_concurrent_requests", minimum=1)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.logprobs, bool):
            self.logprobs = 1 if self.logprobs else None
        if isinstance(self.prompt, list):
            if not self.prompt:
                raise ValueError("Empty array detected. Do not use an empty array for the prompt.")
            if len({type(item) for item in self.prompt}) > 1:
                raise ValueError(
                    "Expected texts, token ids or lists of token ids in `prompt`, not several of these"
                )

    @property
    def is_prompt_only(self) -> bool:
        """Whether nothing but the prompt is wanted; one token is generated all the same, but not shown."""
        return self.max_tokens == 0

    @property
    def prompts(self) -> list[str | list[int]]:
        """Prompts, each a text or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return self.prompt  # type: ignore[return-value]


# Answers


class PromptTokensDetails(msgspec.Struct):
    """Tokens of prompts by their origin."""

    cached_tokens: Annotated[int, about("Number of tokens that the prefix cache had.")]


class Usage(msgspec.Struct):
    """Numbers of tokens of prompts and answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, prompts: Items[Sequence], completion: int) -> "Usage":
        """Return the usage of prompts, given by a sequence each, and of generated tokens."""
        tokens = sum(len(sequence.prompt) for sequence in prompts)
        cached = sum(sequence.cached for sequence in prompts)
        return cls(tokens, completion, tokens + completion, PromptTokensDetails(cached))


class PromptLogprob(msgspec.Struct):
    """A token in the place of one of the prompt."""

    logprob: float | None
    rank: Annotated[int | None, about("Place among the most likely tokens; null if it is not one of them.")]
    decoded_token: str


PromptLogprobs: TypeAlias = list[dict[str, PromptLogprob] | None]
"""Tokens of a prompt and the most likely ones in their places, by id; null for the first one."""


class ChatCompletionTopLogprob(msgspec.Struct):
    """One of the most likely tokens in the place of a generated one."""

    token: str
    logprob: float | None
    bytes: list[int]


class ChatCompletionLogprob(ChatCompletionTopLogprob):
    """A generated token."""

    top_logprobs: list[ChatCompletionTopLogprob]


class ChatCompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a chat answer."""

    content: list[ChatCompletionLogprob]
    refusal: None = None


class OutputFunction(msgspec.Struct):
    """The function of a tool call; `arguments` is JSON text."""

    description: str | None
    name: str
    arguments: str


class OutputToolCall(msgspec.Struct):
    """A tool call."""

    id: str
    type: Literal["function"]
    function: OutputFunction


class OutputMessage(msgspec.Struct):
    """The message of the model."""

    role: Literal["assistant"]
    content: str | None
    reasoning_content: Annotated[str | UnsetType, about("Thoughts before the content.")] = UNSET
    reasoning: Annotated[str | UnsetType, about("Another name of `reasoning_content`.")] = UNSET
    tool_calls: list[OutputToolCall] | UnsetType = UNSET
    function_call: Annotated["Function | UnsetType", about("Answer to the older `functions`.")] = UNSET


class ChatCompletionComplete(msgspec.Struct):
    """One of `n` answers."""

    index: int
    message: OutputMessage
    logprobs: ChatCompletionLogprobs | None
    finish_reason: Reason
    token_ids: list[int] | UnsetType = UNSET


class _Head(msgspec.Struct, tag_field="object"):
    """The fields that every answer and event begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(_Head, tag="chat.completion"):
    """The answer of `/v1/chat/completions`."""

    choices: list[ChatCompletionComplete]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class Function(msgspec.Struct):
    """A piece of a tool call; the first one has the name."""

    arguments: str
    name: str | UnsetType = UNSET


class DeltaToolCall(msgspec.Struct):
    """A piece of tool call `index`; the first one has id and type."""

    index: int
    function: Function
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatCompletionDelta(msgspec.Struct):
    """The addition of an event to the message; the first one has the role."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[DeltaToolCall] | UnsetType = UNSET
    function_call: Function | UnsetType = UNSET


class ChatCompletionChoice(msgspec.Struct):
    """The addition of an event to one of `n` answers."""

    index: int
    delta: ChatCompletionDelta
    logprobs: ChatCompletionLogprobs | None
    finish_reason: Reason | None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(_Head, tag="chat.completion.chunk"):
    """An event of `/v1/chat/completions`."""

    choices: list[ChatCompletionChoice]
    usage: Usage | None
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_text: str | UnsetType = UNSET


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a completion, in columns; null for the first token of a prompt."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float | None] | None]
    text_offset: list[int]


class CompletionComplete(msgspec.Struct):
    """One answer to a prompt, or the addition of an event to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Reason | None
    token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionFinal(_Head, tag="text_completion"):
    """The answer of `/v1/completions`, and its events."""

    choices: list[CompletionComplete]
    usage: Usage | UnsetType | None = UNSET


class ChatTokenizeResponse(msgspec.Struct):
    """The answer of `/chat_tokenize`."""

    tokenize_response: list[Piece]
    templated_text: str
