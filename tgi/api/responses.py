"""OpenAI's `/v1/responses`: answers made of items, which later requests can go on from."""

import secrets
import time
from http import HTTPMethod
from typing import Any

import msgspec
from quart import Response, request

from tgi.errors import ApiError, UnknownResponse, ValidationError
from tgi.text.tool_calls import AnswerDelta

from .call import Call, Route, get, json_answer, post
from .openai.answers import Reason
from .response_requests import ResponseReasoning, ResponsesRequest, input_items, to_chat
from .store import ResponseStore
from .translated import Json, TranslatedAnswer, answer_chat, named_event, naming

MAX_LISTED = 100
"""Maximum number of items that are listed at once."""


@naming(
    max_tokens="max_output_tokens", messages="input", response_format="text.format",
    reasoning_effort="reasoning.effort", verbosity="text.verbosity",
)  # fmt: skip
async def responses(call: Call[ResponsesRequest]) -> Response:
    """Answer a conversation."""
    body = call.body
    items, size = _with_items_referred_to(input_items(body.input), call.service.responses), call.size
    if body.previous_response_id is not None:
        try:
            before = call.service.responses.get(body.previous_response_id)
        except UnknownResponse as error:
            raise ValidationError(f"`previous_response_id`: {error}") from error
        items, size = [*before.items, *before.body["output"], *items], size + before.size
    chat = to_chat(body, items)

    def answer(*given: Any) -> ResponseAnswer:
        return ResponseAnswer(body, items, size, *given)

    return await answer_chat(call, chat, ResponseAnswer, answer)


def _with_items_referred_to(items: list[Json], stored: ResponseStore) -> list[Json]:
    """Return items with those of earlier responses in the place of references. Raises ValidationError."""
    known = stored.output_items() if any(map(_is_reference, items)) else {}
    resolved: list[Json] = []
    for item in items:
        if _is_reference(item):
            id_ = str(item.get("id"))
            if id_ not in known:
                raise ValidationError(
                    f"`input`: no item {id_!r}: it was not stored, is too old, or is there twice"
                )
            resolved.append(known.pop(id_))
        else:
            resolved.append(item)
    return resolved


def _is_reference(item: Json) -> bool:
    return item.get("type") == "item_reference" or item.keys() == {"id"}


class ResponseAnswer(TranslatedAnswer):
    """A response, made of items: thoughts, a message, calls."""

    def __init__(self, request: ResponsesRequest, items: list[Json], size: int, *given: Any) -> None:
        """`items` are the conversation so far, which came in requests of `size` bytes."""
        super().__init__(*given)
        self._request = request
        self._items = items
        self._size = size
        self._unique = secrets.token_hex(16)
        """Part of all ids; a client may give the same id to several requests."""
        self._id = f"resp_{self._unique}"
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
            "input_tokens_details": {
                "cached_tokens": usage.prompt_tokens_details.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self._choice.thought_tokens},
            "total_tokens": usage.total_tokens,
        }
        if self._request.store is not False:
            self.call.service.responses.add(response, self._items, self._size)
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
        id_ = f"{prefix}_{self._unique}_{len(self._output)}"
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


async def items_before(call: Call[None]) -> Response:
    """Answer with the items before a response, the latest first, unless the query says `order=asc`."""
    before = call.service.responses.get(call.arguments["id"])
    items = [_listed(item, f"item_{number}") for number, item in enumerate(before.items)]
    limit, after = request.args.get("limit", "20"), request.args.get("after")
    if not limit.isdecimal() or not 1 <= int(limit) <= MAX_LISTED:
        raise ValidationError(f"`limit` must be >= 1 and <= {MAX_LISTED}")
    if request.args.get("order", "desc") != "asc":
        items.reverse()
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise ValidationError(f"`after`: the response has no item {after}")
        items = items[ids.index(after) + 1 :]
    data = items[: int(limit)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    listed = {"object": "list", "data": data, "has_more": len(items) > len(data)}
    return json_answer({"first_id": None, "last_id": None, **ends, **listed})


def _listed(item: Json, id_: str) -> Json:
    """Return an item in its long form, with an id that a client did not give."""
    made = {**item, "id": item.get("id") or id_, "type": item.get("type") or "message"}
    if isinstance(content := item.get("content"), str):
        said = item.get("role") == "assistant"
        kind: Json = {"type": "output_text", "annotations": []} if said else {"type": "input_text"}
        made["content"] = [{**kind, "text": content}]
    return {"status": "completed", **made}


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
        f"{_ONE}/input_items", "openai_response_items", "The items before a response", items_before,
        answer=Json, documented=False, errors=(404,),
    ),
    Route(
        _ONE, "openai_delete_response", "Forget a response", delete, HTTPMethod.DELETE,
        answer=Json, documented=False, errors=(404,),
    ),
)  # fmt: skip
