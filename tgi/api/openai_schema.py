"""The bodies of the routes of OpenAI, SageMaker, Vertex AI and KServe (tgi-behaviour 2.3, 2.4, 1.1).

Where OpenAI allows what TGI refuses it is read as OpenAI means it; what is refused is refused in TGI's words.
"""

from typing import Annotated, Any, ClassVar, Literal

import attrs

from .json_body import I32, U8, U32, U64, Custom, USize, reader_of, untagged
from .json_text import Cursor, read_any
from .message_schema import CHOICE, MESSAGE, ContentPart, Message, ToolChoice, ToolDefinition
from .schema import (
    SCHEMA,
    VALUES,
    CompatGenerateRequest,
    GenerateParameters,
    Grammar,
    JsonSchema,
    default_parameters,
    read_at,
    read_tagged,
    variant,
)

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "ContentPart",
    "DetokenizeRequest",
    "InferenceRequest",
    "Message",
    "SagemakerRequest",
    "StreamOptions",
    "ToolChoice",
    "ToolDefinition",
    "VertexGenerate",
    "VertexRequest",
]


def _read_flag(cursor: Cursor) -> bool:
    """A boolean; null is false."""
    return bool(reader_of(bool | None)(cursor))


Flag = Annotated[bool, Custom(_read_flag, bool | None)]


@attrs.frozen
class StreamOptions:
    """What else to stream."""

    include_usage: Flag = False
    continuous_usage_stats: Flag = False


def _read_response_format(cursor: Cursor) -> Grammar | None:
    """TGI's grammar, one of OpenAI's spellings, or LangChain's; the type `text` asks for nothing."""
    found = read_tagged(cursor, {"text": read_any, **VALUES}, ("json_schema", "schema"))
    kind = found["type"]
    if kind == "text":
        return None
    if "value" in found:
        return Grammar(kind, found["value"])
    if kind == "json_object" and "schema" in found:
        return Grammar("json", read_at(cursor, found["schema"], "schema", VALUES["json"]))
    if kind == "json_object":
        return Grammar("json", {"type": "object"})
    if kind == "json_schema" and "json_schema" in found:
        value = read_at(cursor, found["json_schema"], "json_schema", VALUES["json_schema"])
        return Grammar(kind, value)
    return cursor.refuse("missing field `value`")


FORMAT = Custom(
    _read_response_format,
    {
        "anyOf": [
            {"type": "object", "properties": {"type": Literal["text"]}, "required": ["type"]},
            variant(["json"], SCHEMA),
            variant(["json_object"], SCHEMA, required=False),
            variant(["json_object"], SCHEMA, key="schema"),
            variant(["regex"], str),
            variant(["json_schema"], JsonSchema),
            variant(["json_schema"], JsonSchema, key="json_schema"),
        ]
    },
    "ResponseFormat",
)


def _read_stop(cursor: Cursor) -> list[str]:
    """A string stands for the list of itself."""
    if cursor.peek() == '"':
        return [cursor.string()]
    stop: list[str] = reader_of(list[str])(cursor)
    return stop


STOP = Custom(_read_stop, {"anyOf": [str, list[str]]})


def _read_bias(cursor: Cursor) -> dict[str, float] | None:
    """By token; TGI's list of numbers is read and means nothing."""
    if cursor.peek() == "[":
        reader_of(list[float])(cursor)
        return None
    bias: dict[str, float] = reader_of(dict[str, float])(cursor)
    return bias


BIAS = Custom(_read_bias, {"anyOf": [dict[str, float], list[float]]})


@attrs.frozen
class ChatRequest:
    """The body of `/v1/chat/completions` and `/chat_tokenize`."""

    messages: list[Annotated[Message, MESSAGE]]
    model: str | None = None
    max_tokens: U32 | None = attrs.field(
        default=None, metadata={"names": ("max_tokens", "max_completion_tokens")}
    )
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    top_k: I32 | None = None
    min_p: float | None = None
    stop: Annotated[list[str], STOP] | None = None
    seed: U64 | None = None
    stream: Flag = False
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: U32 | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: Annotated[ToolChoice, CHOICE] | None = None
    tool_prompt: str | None = None
    parallel_tool_calls: bool | None = None
    response_format: Annotated[Grammar | None, FORMAT] | None = None
    logit_bias: Annotated[dict[str, float] | None, BIAS] | None = None
    n: U32 | None = None
    min_tokens: U32 | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[U32] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    include_reasoning: bool | None = None
    max_thinking_tokens: U32 | None = None


_PROMPTS = untagged("PromptDeserializer", str, list[str], list[U32], list[list[U32]])


def _read_prompt(cursor: Cursor) -> list[str | list[int]]:
    """Always a list of prompts; token ids stand for a text."""
    found = _PROMPTS.read(cursor)
    if not found and isinstance(found, list):
        cursor.refuse_late("Empty array detected. Do not use an empty array for the prompt.")
    if isinstance(found, str) or isinstance(found[0], int):
        return [found]
    return list(found)


PROMPT = Custom(
    _read_prompt,
    {
        "anyOf": [
            str,
            {"type": "array", "items": str, "minItems": 1},
            {"type": "array", "items": U32, "minItems": 1},
            {"type": "array", "items": {"type": "array", "items": U32, "minItems": 1}, "minItems": 1},
        ]
    },
    "Prompt",
)


def _read_count(cursor: Cursor) -> int | None:
    """A number; true stands for 1, and false for none, as in the chat request."""
    if cursor.peek() in "tf":
        return 1 if cursor.word(cursor.peek()) else None
    count: int = reader_of(U32)(cursor)
    return count


@attrs.frozen
class CompletionRequest:
    """The body of `/v1/completions`."""

    prompt: Annotated[list[str | list[int]], PROMPT]
    model: str | None = None
    max_tokens: U32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    top_k: I32 | None = None
    min_p: float | None = None
    stop: Annotated[list[str], STOP] | None = None
    seed: U64 | None = None
    stream: Flag = False
    stream_options: StreamOptions | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int | None, Custom(_read_count, {"anyOf": [U32, bool]})] | None = None
    n: U32 | None = None
    best_of: U32 | None = None
    logit_bias: Annotated[dict[str, float] | None, BIAS] | None = None
    min_tokens: U32 | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[U32] | None = None


ANY_REQUEST = untagged("SagemakerRequest", CompatGenerateRequest, ChatRequest, CompletionRequest)


@attrs.frozen
class SagemakerRequest:
    """The body of `/invocations`: that of `/`, of chat or of completions, whichever fits first."""

    json_custom: ClassVar = Custom(
        lambda cursor: SagemakerRequest(ANY_REQUEST.read(cursor)), ANY_REQUEST.schema, ANY_REQUEST.name
    )
    body: CompatGenerateRequest | ChatRequest | CompletionRequest


@attrs.frozen
class VertexGenerate:
    """A prompt for `/vertex`; of the parameters only max_new_tokens and seed count in TGI (R2.75)."""

    json_name: ClassVar = "GenerateVertexInstance"
    inputs: str
    parameters: GenerateParameters | None = None


INSTANCE = untagged("VertexInstance", VertexGenerate, ChatRequest)


@attrs.frozen
class VertexRequest:
    """The body of `/vertex`."""

    instances: list[Annotated[VertexGenerate | ChatRequest, INSTANCE]]


@attrs.frozen
class DetokenizeRequest:
    """The body of `/detokenize`."""

    tokens: list[U32]


@attrs.frozen
class InferenceInput:
    """A prompt: `data` are the bytes of its text."""

    json_name: ClassVar = "Input"
    name: str
    shape: list[USize]
    datatype: str
    data: list[U8]


@attrs.frozen
class InferenceOutput:
    """What to call an answer."""

    json_name: ClassVar = "Output"
    name: str


@attrs.frozen
class InferenceRequest:
    """The body of KServe's `/v2/models/{name}/versions/{version}/infer`."""

    id: str
    inputs: list[InferenceInput]
    outputs: list[InferenceOutput]
    parameters: GenerateParameters = attrs.field(factory=default_parameters)
