"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

import functools
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from quart import Response

from tgi.errors import ApiError, ValidationError
from tgi.sampling import about
from tgi.text.tool_calls import AnswerDelta

from . import refused
from .call import BODY_ERRORS, Call, json_answer, post
from .native_bodies import ModelName
from .openai.answers import Reason
from .openai.prompts import chat_prompt
from .openai.requests import ChatRequest
from .refused import refusing
from .translated import Json, TranslatedAnswer, answer_chat, chat_request, named_event, naming

STOP_REASONS: dict[Reason, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


_NEEDED = {"text": "text", "tool_use": "name"}
"""Field that a block must have, by type."""


class Block(msgspec.Struct):
    """A part of a message; which fields it has depends on its type."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: Any = None
    tool_use_id: str | None = None
    content: Annotated["str | list[Block] | None", about("Result of a tool: text, or a list of parts.")] = (
        None
    )
    is_error: bool | None = None

    def __post_init__(self) -> None:
        needed = _NEEDED.get(self.type)
        if needed is not None and getattr(self, needed) is None:
            raise ValueError(f"Object missing required field `{needed}`")


class AnthropicMessage(msgspec.Struct):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class AnthropicTool(msgspec.Struct):
    """A tool that the model may use."""

    name: str
    input_schema: Any = None
    description: str | None = None
    type: str | None = None


class AnthropicToolChoice(msgspec.Struct):
    """The tool that has to be used, if any."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct):
    """The amount of thinking, if any."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Meta(ge=1)] | None = None


class OutputConfig(msgspec.Struct):
    """The format of the text, and how much the model thinks."""

    format: Json | None = None
    effort: str | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """The body of `/v1/messages/count_tokens`."""

    messages: Annotated[list[AnthropicMessage], about("The conversation so far.", minItems=1)]
    model: ModelName = None
    system: Annotated[str | list[Block] | None, about("System prompt.")] = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Annotated[Json | None, about("Older name of `output_config.format`.")] = None


@refusing(refused.MESSAGES)
class MessagesRequest(CountRequest, kw_only=True):
    """The body of `/v1/messages`."""

    max_tokens: Annotated[int, Meta(ge=1), about("Maximum number of tokens.")]
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None


@naming(stop="stop_sequences", reasoning_effort="output_config.effort")
async def messages(call: Call[MessagesRequest]) -> Response:
    """Answer a conversation."""
    body = call.body
    chat = _chat(
        body,
        max_tokens=body.max_tokens,
        stream=bool(body.stream),
        stop=body.stop_sequences,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
    )
    return await answer_chat(call, chat, MessagesAnswer)


async def count_tokens(call: Call[CountRequest]) -> Response:
    """Answer with the number of tokens of a conversation."""
    engine, chat = call.engine, _chat(call.body)
    prompt = await call.run_in_thread_if_large(lambda: chat_prompt(chat, engine))
    work = functools.partial(engine.tokenizer.encode, prompt.text, add_special_tokens=False)
    ids = await call.tokenized(work, len(prompt.text))
    return json_answer({"input_tokens": len(ids)})


def _chat(body: CountRequest, **fields: Any) -> ChatRequest:
    """Return the request for chat completions. Raises ValidationError."""
    system = _text(body.system or "", "`system`")
    before = [{"role": "system", "content": system}] if system else []
    choice, thinking, output = body.tool_choice, body.thinking, body.output_config or OutputConfig()
    parallel = None
    if choice is not None and choice.disable_parallel_tool_use:
        parallel = False
    return chat_request(
        model=body.model,
        messages=before + [message for one in body.messages for message in _messages(one)],
        tools=[_tool(tool) for tool in body.tools] if body.tools else None,
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=parallel,
        enable_thinking=None if thinking is None else thinking.type != "disabled",
        max_thinking_tokens=None if thinking is None else thinking.budget_tokens,
        response_format=_format(output.format or body.output_format),
        reasoning_effort=output.effort,
        **fields,
    )


def _tool(tool: AnthropicTool) -> Json:
    if tool.input_schema is None:
        raise ValidationError(
            f"tool {tool.name}: `input_schema` is missing; tools of Anthropic's own are not offered"
        )
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _format(given: Json | None) -> Json | None:
    if given is None:
        return None
    if given.get("type") != "json_schema":
        raise ValidationError("`output_config.format` must be of type `json_schema`")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given.get("schema")}}


def _choice(choice: AnthropicToolChoice) -> Any:
    if choice.type == "tool":
        if choice.name is None:
            raise ValidationError("`tool_choice` of type `tool` needs a `name`")
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


def _text(content: str | list[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    if other := next((block.type for block in content if block.type != "text"), None):
        raise ValidationError(f"the model takes text only in {where}, and no content of type `{other}`")
    return "".join(block.text or "" for block in content)


def _messages(message: AnthropicMessage) -> Iterator[Json]:
    """Yield the messages that one of Anthropic's becomes: results of tools are messages of their own."""
    if isinstance(message.content, str):
        yield {"role": message.role, "content": message.content}
        return
    texts, calls, thoughts = [], [], []
    for block in message.content:
        if block.type == "text":
            texts.append({"type": "text", "text": block.text or ""})
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": function})
        elif block.type == "tool_result":
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "content": _text(block.content or "", "the result of a tool"),
            }
        elif block.type != "redacted_thinking":
            raise ValidationError(f"the model takes text only, and no content of type `{block.type}`")
    made: Json = {"role": message.role}
    if texts:
        made["content"] = texts[0]["text"] if len(texts) == 1 else texts
    if calls:
        made["tool_calls"] = calls
    if thoughts:
        made["reasoning_content"] = "".join(thoughts)
    if len(made) > 1:
        yield made


class MessagesAnswer(TranslatedAnswer):
    """A message of the model, made of blocks."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._blocks = 0
        """Number of blocks that have begun."""
        self._open = ""
        """Type of the block that is open; "": none is."""

    def body(self, deltas: list[AnswerDelta], reason: Reason) -> Json:  # noqa: D102
        content: list[Json] = []
        if thoughts := "".join(delta.thoughts for delta in deltas):
            content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
        if text := "".join(delta.content for delta in deltas):
            content.append({"type": "text", "text": text})
        arguments: list[str] = []
        for call in (call for delta in deltas for call in delta.calls):
            if call.id is not None:
                content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})
                arguments.append("")
            arguments[-1] += call.arguments
        for block, text in zip(content[len(content) - len(arguments) :], arguments, strict=True):
            block["input"] = _arguments(text)
        return {**self._head(), "content": content, **self._ending(reason), "usage": self._usage()}

    def begin(self) -> bytes:  # noqa: D102
        message = {**self._head(), "content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**message, "usage": self._usage()})

    def add(self, delta: AnswerDelta) -> bytes:  # noqa: D102
        data = b""
        if delta.thoughts:
            data += self._enter("thinking", {"thinking": "", "signature": ""})
            data += self._delta("thinking_delta", thinking=delta.thoughts)
        if delta.content:
            data += self._enter("text", {"text": ""})
            data += self._delta("text_delta", text=delta.content)
        for call in delta.calls:
            if call.id is not None:
                data += self._leave()
                data += self._enter("tool_use", {"id": call.id, "name": call.name, "input": {}})
            if call.arguments:
                data += self._delta("input_json_delta", partial_json=call.arguments)
        return data

    def end(self, reason: Reason) -> bytes:  # noqa: D102
        changes = _event("message_delta", delta=self._ending(reason), usage=self._usage())
        return self._leave() + changes + _event("message_stop")

    def error(self, error: ApiError) -> bytes:  # noqa: D102
        return named_event("error", error.to_anthropic_body())

    def _head(self) -> Json:
        id_ = f"msg_{self.call.exchange.id}"
        return {"id": id_, "type": "message", "role": "assistant", "model": self.model}

    def _usage(self) -> Json:
        usage = self.usage
        cached = usage.prompt_tokens_details.cached_tokens
        return {
            "input_tokens": usage.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.completion_tokens,
        }

    def _ending(self, reason: Reason) -> Json:
        stop = self.sequence.stopping.stopped_by
        if reason == "stop" and stop is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        return {"stop_reason": STOP_REASONS[reason], "stop_sequence": None}

    def _enter(self, kind: str, block: Json) -> bytes:
        """Open a block of a type unless one is open."""
        if self._open == kind:
            return b""
        data = self._leave()
        self._open, self._blocks = kind, self._blocks + 1
        return data + _event(
            "content_block_start", index=self._blocks - 1, content_block={"type": kind, **block}
        )

    def _leave(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._blocks - 1)

    def _delta(self, kind: str, **more: str) -> bytes:
        return _event("content_block_delta", index=self._blocks - 1, delta={"type": kind, **more})


def _event(name: str, **body: Any) -> bytes:
    return named_event(name, {"type": name, **body})


def _arguments(text: str) -> Any:
    """Return the arguments of a call, which are incomplete if the answer was cut."""
    try:
        return json.loads(text)
    except ValueError:
        return {}


_EXAMPLE = {"max_tokens": 20, "messages": [{"role": "user", "content": "What is deep learning?"}]}
ROUTES = (
    post(
        "/v1/messages", "anthropic_messages", "Answer a conversation, as Anthropic's API does", messages,
        MessagesRequest, answer=dict[str, Any], stream=dict[str, Any], example=_EXAMPLE,
    ),
    post(
        "/v1/messages/count_tokens", "anthropic_count_tokens", "Number of tokens of a conversation",
        count_tokens, CountRequest, answer=dict[str, int], errors=BODY_ERRORS, example=_EXAMPLE,
    ),
)  # fmt: skip
