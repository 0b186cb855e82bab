"""The body of `/v1/responses`, and the request for chat completions that it becomes."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from tgi.errors import ValidationError, WrongShape
from tgi.sampling import about

from . import refused
from .native_bodies import ModelName
from .openai.requests import ChatRequest, StreamOptions
from .refused import refusing
from .store import MAX_STORED
from .translated import Json, chat_request


class ResponseTool(msgspec.Struct):
    """A tool that the model may use."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: Any = None
    strict: bool | None = None


class ResponseToolChoice(msgspec.Struct, omit_defaults=True):
    """The choice of one function, or among some."""

    type: str
    name: str | None = None
    mode: str | None = None
    tools: list[ResponseTool] | None = None


_TEXTS = "input_text", "output_text", "text"
"""Types of parts that are texts of messages."""


class Part(msgspec.Struct):
    """A part of an item's content; which fields it has depends on its type."""

    type: str
    text: str | None = None
    refusal: str | None = None

    def __post_init__(self) -> None:
        if self.said is None and self.type in (*_TEXTS, "refusal"):
            raise ValueError(
                f"Object missing required field `{'refusal' if self.type == 'refusal' else 'text'}`"
            )

    @property
    def said(self) -> str | None:
        """Text of the part."""
        return self.refusal if self.type == "refusal" else self.text


_NEEDED = {"message": "role", "function_call": "name", "function_call_output": "output", "reasoning": None}
"""Field that an item must have, by type."""


class Item(msgspec.Struct):
    """An item of a conversation; which fields it has depends on its type."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    summary: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str = "{}"
    output: str | list[Part] | None = None

    def __post_init__(self) -> None:
        if self.type not in _NEEDED:
            raise ValidationError(f"items of type `{self.type}` are not supported in `input`")
        needed = _NEEDED[self.type]
        if needed == "role" and self.role not in ("assistant", None):
            needed = "content"
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"Object missing required field `{needed}`")


class ResponseText(msgspec.Struct):
    """The format of the text."""

    format: Json | None = None
    verbosity: str | None = None


class ResponseReasoning(msgspec.Struct):
    """The amount of thinking."""

    effort: str | None = None
    summary: Annotated[str | None, about("Without effect: thoughts are answered whole.")] = None


Input: TypeAlias = str | list[Json]
LOGPROBS = "message.output_text.logprobs"


@refusing(refused.RESPONSES)
class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/responses`."""

    input: Annotated[Input, about("A message of the user, or the items of a conversation.")]
    model: ModelName = None
    instructions: Annotated[str | None, about("System prompt of this request.")] = None
    previous_response_id: Annotated[str | None, about("Response after which the conversation goes on.")] = (
        None
    )
    store: Annotated[bool | None, about(f"Remember the response among the last {MAX_STORED}; null: yes.")] = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | ResponseToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: ResponseText | None = None
    reasoning: ResponseReasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    include: Annotated[list[str] | None, about(f"Without effect; `{LOGPROBS}` is refused.")] = None
    # vLLM's
    top_k: int | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: Json | None = None
    priority: int | None = None

    def __post_init__(self) -> None:
        if LOGPROBS in (self.include or ()):
            raise ValidationError(f"`include` with `{LOGPROBS}` is not supported: use /v1/chat/completions")
        for number, tool in enumerate(self.tools or []):
            if tool.type != "function":
                raise ValidationError(
                    f"`tools` may be functions only, not `{tool.type}`: nothing else runs here"
                )
            if tool.name is None:
                raise ValidationError(f"`tools[{number}]` needs a `name`")


_AS_IN_CHATS = (
    "top_k", "repetition_penalty", "logit_bias", "seed", "stop", "ignore_eos", "include_stop_str_in_output",
    "skip_special_tokens", "structured_outputs", "priority",
)  # fmt: skip
"""Fields that chat completions have under the same name, beside OpenAI's."""


def input_items(given: Input) -> list[Json]:
    """Return the items of an input; a text is a message of the user."""
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def to_chat(body: ResponsesRequest, items: list[Json]) -> ChatRequest:
    """Return the request for chat completions. Raises ValidationError."""
    system = [{"role": "system", "content": body.instructions}] if body.instructions else []
    effort = None if body.reasoning is None else body.reasoning.effort
    return chat_request(
        model=body.model,
        messages=system + list(_messages(items)),
        stream=bool(body.stream),
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=_choice(body.tool_choice),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_format(body.text),
        verbosity=None if body.text is None else body.text.verbosity,
        reasoning_effort=effort,
        truncate_prompt_tokens=-1 if body.truncation == "auto" else None,
        **{name: getattr(body, name) for name in _AS_IN_CHATS},
    )


def _tool(tool: ResponseTool) -> Json:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {
        "type": "function",
        "function": {name: value for name, value in function.items() if value is not None},
    }


def _choice(choice: str | ResponseToolChoice | None) -> Any:
    if not isinstance(choice, ResponseToolChoice):
        return choice
    if choice.type == "function":
        if choice.name is None:
            raise ValidationError("`tool_choice` of type `function` needs a `name`")
        return {"type": "function", "function": {"name": choice.name}}
    if choice.type == "allowed_tools":
        tools = [{"type": "function", "function": {"name": tool.name}} for tool in choice.tools or []]
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.mode or "auto", "tools": tools}}
    raise ValidationError(f"`tool_choice` of type `{choice.type}` is not supported")


def _format(text: ResponseText | None) -> Json | None:
    if text is None or text.format is None:
        return None
    kind = text.format.get("type")
    if kind == "json_schema":
        if text.format.get("schema") is None:
            raise ValidationError("`text.format` of type `json_schema` needs a `schema`")
        schema = {name: text.format.get(name) for name in ("name", "schema", "strict") if name in text.format}
        return {"type": "json_schema", "json_schema": schema}
    return text.format


def _messages(given: list[Json]) -> Iterator[Json]:
    """Yield the messages that items become: calls and thoughts belong to the assistant's next message."""
    open_: Json = {}
    for item in _read(given):
        kind = _PARTS.get(item.type, "content")
        is_assistants = item.type in ("function_call", "reasoning") or item.role == "assistant"
        if open_ and not (is_assistants and _may_follow(kind, open_)):
            yield {"role": "assistant", **open_}
            open_ = {}
        if kind == "tool_calls":
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            open_.setdefault(kind, []).append(call)
        elif kind == "reasoning_content":
            open_[kind] = open_.get(kind, "") + _thoughts(item)
        elif is_assistants:
            open_[kind] = _content(item.content)
        elif item.type == "message":
            yield {"role": item.role, "content": _content(item.content)}
        else:
            yield {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
    if open_:
        yield {"role": "assistant", **open_}


_PARTS = {"function_call": "tool_calls", "reasoning": "reasoning_content"}
"""Part of an assistant's message that an item becomes; others become its content."""


def _may_follow(kind: str, open_: Json) -> bool:
    """Return whether an assistant's message goes on with this part."""
    if kind == "reasoning_content":
        return open_.keys() == {kind}
    return kind == "tool_calls" or kind not in open_


def _thoughts(item: Item) -> str:
    parts = item.content or item.summary or []
    return parts if isinstance(parts, str) else "".join(part.text or "" for part in parts)


def _read(given: list[Json]) -> list[Item]:
    """Return the items of a conversation. Raises ValidationError and WrongShape."""
    try:
        return msgspec.convert([{**one, "type": one.get("type") or "message"} for one in given], list[Item])
    except msgspec.ValidationError as error:
        raise WrongShape(str(error).replace("`$", "`$.input")) from error


def _content(content: str | list[Part] | None) -> Any:
    """Return the content of a message as chat completions have it."""
    if not isinstance(content, list):
        return content
    parts: list[Json] = []
    for part in content:
        if part.said is None or part.type not in (*_TEXTS, "refusal"):
            raise ValidationError(f"content of type `{part.type}` is not supported in `input`")
        parts.append({"type": "text", "text": part.said})
    return parts[0]["text"] if len(parts) == 1 else parts
