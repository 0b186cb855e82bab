"""The messages and tools of a chat request (tgi-behaviour 4.3, 4.6), read under TGI's rules."""

from typing import Annotated, Any, ClassVar, Literal

import attrs

from tgi.errors import WrongShape

from .json_body import Custom, attempt, read_string, reader_of, untagged
from .json_text import Cursor, read_any

_ARGUMENTS = {"names": ("arguments", "parameters")}


def _or_empty(schema: Any) -> Any:
    return {} if schema is None else schema


@attrs.frozen
class Url:
    """Where an image is."""

    url: str


@attrs.frozen
class _TextPart:
    json_name: ClassVar = "TextChunk"
    type: Literal["text"]
    text: str


@attrs.frozen
class _ImagePart:
    json_name: ClassVar = "ImageChunk"
    type: Literal["image_url"]
    image_url: Url


@attrs.frozen
class ContentPart:
    """A piece of a message: a text, or the URL of an image."""

    type: str
    text: str | None = None
    url: str | None = None


_PARTS = untagged("MessageChunk", _TextPart, _ImagePart)


def _read_part(cursor: Cursor) -> ContentPart:
    """C31."""
    part = _PARTS.read(cursor)
    if isinstance(part, _TextPart):
        return ContentPart(part.type, text=part.text)
    return ContentPart(part.type, url=part.image_url.url)


PART = Custom(_read_part, _PARTS.schema, _PARTS.name)
CONTENT = untagged("MessageContent", str, list[Annotated[ContentPart, PART]])


@attrs.frozen
class FunctionCall:
    """What the model called, as a later request tells of it."""

    name: str
    arguments: Any = attrs.field(metadata=_ARGUMENTS)
    """Usually the text of a JSON object."""
    description: str | None = None


@attrs.frozen
class ToolCall:
    """A call in a message of the assistant."""

    id: str
    type: str
    function: FunctionCall

    def to_dict(self) -> dict[str, Any]:
        """As OpenAI writes it, for the chat template."""
        function = {"name": self.function.name, "arguments": self.function.arguments}
        return {"id": self.id, "type": self.type, "function": function}


@attrs.frozen
class Message:
    """A message; at least one of `content` and `tool_calls` is there (C30)."""

    role: str
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    """{"id", "type", "function": {"name", "arguments"}}"""
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """What the model thought before an earlier answer; clients have several names for it."""
    reasoning: str | None = None
    thinking: str | None = None


_BODY = {
    "content": reader_of(Annotated[Any, CONTENT]),
    "tool_calls": reader_of(list[ToolCall]),
    "tool_call_id": read_string,
    "reasoning_content": read_string,
    "reasoning": read_string,
    "thinking": read_string,
}


def _read_message(cursor: Cursor) -> Message:
    """TGI reads role and name at once, the rest when the message is complete: errors are at its end."""
    first = cursor.peek()
    if first != "{":
        cursor.mismatch(first, "struct Message")
    found: dict[str, Any] = {}
    places: dict[str, list[int]] = {}
    for key in cursor.keys():  # noqa: SIM118 (no dict)
        if key in found:
            cursor.refuse_key(f"duplicate field `{key}`")
        cursor.colon()
        cursor.path.append(f".{key}")
        if key == "role":
            found[key] = read_string(cursor)
        elif key == "name":
            found[key] = reader_of(str | None)(cursor)
        else:
            cursor.peek()
            places.setdefault(key, []).append(cursor.at)
            read_any(cursor)
        cursor.path.pop()
    if "role" not in found:
        cursor.refuse("missing field `role`")
    for key in _BODY.keys() & places.keys():
        found[key] = _read_if_it_fits(cursor, key, places[key])
    if found.get("content") is None and found.get("tool_calls") is None:
        cursor.refuse("data did not match any variant of untagged enum MessageBody")
    if calls := found.get("tool_calls"):
        found["tool_calls"] = [call.to_dict() for call in calls]
    return Message(**found)


def _read_if_it_fits(cursor: Cursor, key: str, places: list[int]) -> Any:
    """The value of a key that came once; None if it has another shape."""
    if len(places) > 1:
        return None
    try:
        return attempt(_BODY[key], cursor, places[0])
    except WrongShape:
        return None


_MESSAGE_BODY = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"content": Annotated[Any, CONTENT]},
            "required": ["content"],
        },
        {
            "type": "object",
            "properties": {
                "content": Annotated[Any, CONTENT] | None,
                "tool_calls": list[ToolCall],
            },
            "required": ["tool_calls"],
        },
    ]
}
MESSAGE = Custom(
    _read_message,
    {
        "allOf": [
            Annotated[Any, Custom(read_any, _MESSAGE_BODY, "MessageBody")],
            {
                "type": "object",
                "properties": {
                    "role": str,
                    "name": str | None,
                    "tool_call_id": str | None,
                    "reasoning_content": str | None,
                },
                "required": ["role"],
            },
        ]
    },
    "Message",
)


@attrs.frozen
class FunctionDefinition:
    """A function that the model may call."""

    name: str
    parameters: Any = attrs.field(factory=dict, metadata=_ARGUMENTS, converter=_or_empty)
    """A JSON schema; {} if none is given."""
    description: str | None = None
    strict: bool | None = None


@attrs.frozen
class ToolDefinition:
    """A tool that the model may use."""

    json_name: ClassVar = "Tool"
    type: str
    function: FunctionDefinition


@attrs.frozen
class _FunctionName:
    json_name: ClassVar = "FunctionName"
    name: str


@attrs.frozen
class _NamedTool:
    json_name: ClassVar = "NamedTool"
    function: _FunctionName
    type: Literal["function"] = "function"


@attrs.frozen
class ToolChoice:
    """Whether and which tools must be used: `auto`, `none`, `required`, or the one that is `named`."""

    mode: str
    name: str | None = None


_MODES = ("auto", "none", "required")
_CHOICES = untagged("ToolTypeDeserializer", str, _NamedTool)


def _read_choice(cursor: Cursor) -> ToolChoice:
    """T2."""
    found = _CHOICES.read(cursor)
    if isinstance(found, _NamedTool):
        return ToolChoice("named", found.function.name)
    return ToolChoice(found) if found in _MODES else ToolChoice("named", found)


CHOICE = Custom(_read_choice, _CHOICES.schema, "ToolChoice")
