"""Messages and tools of requests, in the spellings that clients send (tgi-behaviour 2.3, 4.3)."""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET

from tgi.sampling import about


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
    """A function that the model called, as a later request repeats it."""

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


ValidMessage: TypeAlias = Annotated[
    Message,
    about(
        "",
        anyOf=[
            {"required": ["content"], "properties": {"content": {"not": {"type": "null"}}}},
            {"required": ["tool_calls"], "properties": {"tool_calls": {"not": {"type": "null"}}}},
            {"properties": {"role": {"enum": ["assistant", "function"]}}},
        ],
    ),
]
"""A message, of which the document says what `Message` checks."""


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


ValidTool: TypeAlias = Annotated[Tool, about("", required=["function"])]
"""A tool, of which the document says what `Tool` checks."""


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
ToolChoice: TypeAlias = Annotated[
    str | NamedTool | None,
    about(
        "`auto`, `none`, `required`, the function to call, or some of the tools.",
        **{"not": {"type": "object", "not": {"anyOf": _NAMED_TOOL}}},
    ),
]
"""The choice among tools (T2)."""


def _one_of(**names: Any) -> Any:
    """Return the value of the one name that is given. Raises ValueError if several are."""
    given = [name for name, value in names.items() if value is not UNSET]
    if len(given) > 1:
        raise ValueError(f"Object has both `{given[0]}` and `{given[1]}`")
    return names[given[0]] if given else UNSET
