"""OpenAI's `/v1/responses`: answers made of items, which later requests can go on from."""

import time
from collections.abc import Iterator
from http import HTTPMethod
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta
from quart import Response

from tgi.errors import ApiError, UnknownResponse, ValidationError, WrongShape
from tgi.sampling import about
from tgi.text.tool_calls import AnswerDelta

from . import refused
from .call import Call, Route, get, json_answer, post
from .native_bodies import ModelName
from .openai.answers import Reason
from .openai.requests import ChatRequest, StreamOptions
from .refused import refusing
from .store import MAX_STORED
from .translated import Json, TranslatedAnswer, answer_chat, chat_request, named_event, naming


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


@naming(max_tokens="max_output_tokens", messages="input", response_format="text.format")
async def responses(call: Call[ResponsesRequest]) -> Response:
    """Answer a conversation."""
    body = call.body
    items = _items(body.input)
    if body.previous_response_id is not None:
        try:
            before = call.service.responses.get(body.previous_response_id)
        except UnknownResponse as error:
            raise ValidationError(f"`previous_response_id`: {error}") from error
        items = [*before.items, *before.body["output"], *items]
    chat = _chat(body, items)

    def answer(*given: Any) -> ResponseAnswer:
        return ResponseAnswer(body, items, *given)

    return await answer_chat(call, chat, ResponseAnswer, answer)


_AS_IN_CHATS = (
    "top_k", "repetition_penalty", "logit_bias", "seed", "stop", "ignore_eos", "include_stop_str_in_output",
    "skip_special_tokens", "structured_outputs", "priority",
)  # fmt: skip
"""Fields that chat completions have under the same name, beside OpenAI's."""


def _items(given: Input) -> list[Json]:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


def _chat(body: ResponsesRequest, items: list[Json]) -> ChatRequest:
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


class ResponseAnswer(TranslatedAnswer):
    """A response, made of items: thoughts, a message, calls."""

    def __init__(self, request: ResponsesRequest, items: list[Json], *given: Any) -> None:
        super().__init__(*given)
        self._request = request
        self._items = items
        self._id = f"resp_{self.call.exchange.id}"
        self._created = int(time.time())
        self._output: list[Json] = []
        self._number = 0
        """Number of the next event."""

    def body(self, deltas: list[AnswerDelta], reason: Reason) -> Json:  # noqa: D102
        for delta in deltas:
            self.add(delta)
        self._leave(complete=reason != "length")
        return self._ended(reason)

    def begin(self) -> bytes:  # noqa: D102
        response = self._response("in_progress")
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def add(self, delta: AnswerDelta) -> bytes:  # noqa: D102
        data = b""
        if delta.thoughts:
            data += self._enter("reasoning", {"summary": [], "content": []})
            data += self._write("reasoning_text", delta.thoughts)
        if delta.content:
            data += self._enter("message", {"role": "assistant", "content": []})
            data += self._write("output_text", delta.content)
        for call in delta.calls:
            if call.id is not None:
                data += self._leave()
                data += self._enter("function_call", {"call_id": call.id, "name": call.name, "arguments": ""})
            if call.arguments:
                self._output[-1]["arguments"] += call.arguments
                data += self._of_item("response.function_call_arguments.delta", delta=call.arguments)
        return data

    def end(self, reason: Reason) -> bytes:  # noqa: D102
        data = self._leave(complete=reason != "length")
        name = "response.incomplete" if reason == "length" else "response.completed"
        return data + self._event(name, response=self._ended(reason))

    def error(self, error: ApiError) -> bytes:  # noqa: D102
        response = self._response("failed")
        response["error"] = {"code": error.code or "server_error", "message": str(error)}
        return self._event("response.failed", response=response)

    def _ended(self, reason: Reason) -> Json:
        response = self._response("incomplete" if reason == "length" else "completed")
        if reason == "length":
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        usage = self.usage
        response["usage"] = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.thought_tokens},
            "total_tokens": usage.total_tokens,
        }
        if self._request.store is not False:
            self.call.service.responses.add(response, self._items)
        return response

    def _response(self, status: str) -> Json:
        given = self._request
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": given.instructions,
            "max_output_tokens": given.max_output_tokens,
            "metadata": given.metadata or {},
            "model": self.model,
            "output": [dict(item) for item in self._output],
            "parallel_tool_calls": given.parallel_tool_calls is not False,
            "previous_response_id": given.previous_response_id,
            "reasoning": msgspec.to_builtins(given.reasoning or ResponseReasoning()),
            "store": given.store is not False,
            "temperature": 1.0 if given.temperature is None else given.temperature,
            "text": {"format": (given.text and given.text.format) or {"type": "text"}},
            "tool_choice": msgspec.to_builtins(given.tool_choice or "auto"),
            "tools": [msgspec.to_builtins(tool) for tool in given.tools or []],
            "top_p": 1.0 if given.top_p is None else given.top_p,
            "truncation": given.truncation or "disabled",
            "usage": None,
            "user": given.user,
        }

    # Items

    def _enter(self, kind: str, item: Json) -> bytes:
        """Begin an item unless one of its kind is open."""
        if self._open == kind:
            return b""
        data = self._leave()
        prefix = {"reasoning": "rs", "message": "msg", "function_call": "fc"}[kind]
        id_ = f"{prefix}_{self.call.exchange.id}_{len(self._output)}"
        self._output.append({"id": id_, "type": kind, "status": "in_progress", **item})
        return data + self._event(
            "response.output_item.added", output_index=len(self._output) - 1, item=dict(self._output[-1])
        )

    @property
    def _open(self) -> str:
        last = self._output[-1] if self._output else {}
        return str(last["type"]) if last.get("status") == "in_progress" else ""

    def _write(self, kind: str, text: str) -> bytes:
        """Add to the text of the open item."""
        item, data = self._output[-1], b""
        more: Json = {"logprobs": []} if kind == "output_text" else {}
        if not item["content"]:
            part = {"type": kind, "text": "", **({"annotations": []} if more else {})}
            item["content"] = [part]
            data += self._of_item("response.content_part.added", content_index=0, part=dict(part))
        item["content"][0]["text"] += text
        return data + self._of_item(f"response.{kind}.delta", content_index=0, delta=text, **more)

    def _leave(self, *, complete: bool = True) -> bytes:
        """End the open item, if any."""
        if not self._open:
            return b""
        item = self._output[-1]
        item["status"] = "completed" if complete else "incomplete"
        data = b""
        if item["type"] == "function_call":
            data += self._of_item(
                "response.function_call_arguments.done", arguments=item["arguments"], name=item["name"]
            )
        else:
            part = item["content"][0]
            more: Json = {"logprobs": []} if part["type"] == "output_text" else {}
            done = {"content_index": 0, "text": part["text"], **more}
            data += self._of_item(f"response.{part['type']}.done", **done)
            data += self._of_item("response.content_part.done", content_index=0, part=dict(part))
        return data + self._event(
            "response.output_item.done", output_index=len(self._output) - 1, item=dict(item)
        )

    def _of_item(self, name: str, /, **body: Any) -> bytes:
        item = {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}
        return self._event(name, **item, **body)

    def _event(self, name: str, /, **body: Any) -> bytes:
        self._number += 1
        return named_event(name, {"type": name, "sequence_number": self._number - 1, **body})


async def stored(call: Call[None]) -> Response:
    """Answer with a response that is remembered."""
    return json_answer(call.service.responses.get(call.arguments["id"]).body)


async def input_items(call: Call[None]) -> Response:
    """Answer with the items before a response."""
    items = call.service.responses.get(call.arguments["id"]).items
    ids = [item.get("id") for item in items]
    listed = {"object": "list", "data": items, "has_more": False}
    return json_answer({**listed, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None})


async def delete(call: Call[None]) -> Response:
    """Forget a response."""
    call.service.responses.remove(call.arguments["id"])
    return json_answer({"id": call.arguments["id"], "object": "response", "deleted": True})


_ONE = "/v1/responses/<id>"
ROUTES = (
    post(
        "/v1/responses", "openai_responses", "Answer a conversation, as OpenAI's newer API does", responses,
        ResponsesRequest, answer=dict[str, Any], stream=dict[str, Any],
        example={"input": "What is deep learning?", "max_output_tokens": 20},
    ),
    get(
        _ONE, "openai_response", "A response that is remembered", stored,
        answer=Json, documented=False, errors=(404,),
    ),
    get(
        f"{_ONE}/input_items", "openai_response_items", "The items before a response", input_items,
        answer=Json, documented=False, errors=(404,),
    ),
    Route(
        _ONE, "openai_delete_response", "Forget a response", delete, HTTPMethod.DELETE,
        answer=Json, documented=False, errors=(404,),
    ),
)  # fmt: skip
