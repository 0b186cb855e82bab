"""Ollama's routes: `/api/chat`, `/api/generate`, `/api/tags`, `/api/show`, `/api/ps`, `/api/version`."""

import abc
import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar

import msgspec
from quart import Response

from tgi import __version__
from tgi.errors import ApiError, UnknownModel, ValidationError
from tgi.sampling import about
from tgi.text.tool_calls import AnswerDelta

from . import refused
from .call import BODY_ERRORS, Call, get, json_answer, post
from .native_bodies import ModelName
from .openai.answers import Reason
from .openai.requests import ChatRequest
from .refused import refusing
from .stream import one_line
from .translated import Json, TranslatedAnswer, answer_chat, chat_request, naming

_NAMES = {
    "max_tokens": "num_predict", "repetition_penalty": "repeat_penalty", "response_format": "format",
    "reasoning_effort": "think",
}  # fmt: skip
"""Names of fields here, by their names in chat completions."""


@refusing(refused.OLLAMA_OPTIONS)
class OllamaOptions(msgspec.Struct):
    """Settings of a generation; Ollama's other options are about loading, and have no effect."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    seed: int | None = None
    num_predict: Annotated[int | None, about("Maximum number of tokens; 0 and less: as many as fit.")] = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    def fields(self) -> Json:
        """Return the fields of a request for chat completions."""
        limit = self.num_predict if self.num_predict is not None and self.num_predict > 0 else None
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "typical_p": self.typical_p,
            "seed": self.seed,
            "max_tokens": limit,
            "stop": self.stop,
            "repetition_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }


class OllamaRequest(msgspec.Struct, kw_only=True):
    """Fields that the bodies of `/api/chat` and `/api/generate` share."""

    model: ModelName = None
    stream: Annotated[bool | None, about("Answer with a JSON object a line; null: yes.")] = None
    format: Annotated[Any, about("`json`, or a JSON schema.")] = None
    options: OllamaOptions | None = None
    think: Annotated[
        bool | str | None, about("Whether the model thinks before it answers, or its effort.")
    ] = None
    keep_alive: Annotated[Any, about("Without effect: the model stays loaded.")] = None

    def chat(self, messages: list[Json], **more: Any) -> ChatRequest:
        """Return the request for chat completions. Raises WrongShape."""
        response_format: Json | None = None
        if self.format == "json":
            response_format = {"type": "json_object"}
        elif self.format:
            response_format = {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": self.format},
            }
        return chat_request(
            model=self.model,
            messages=messages,
            stream=self.stream is not False,
            response_format=response_format,
            enable_thinking=None if self.think is None else bool(self.think),
            reasoning_effort=self.think if isinstance(self.think, str) else None,
            **(self.options or OllamaOptions()).fields(),
            **more,
        )


class OllamaFunction(msgspec.Struct):
    """The function of a call."""

    name: str
    arguments: Any = None


class OllamaCall(msgspec.Struct):
    """A call of a function."""

    function: OllamaFunction
    id: str | None = None


class OllamaMessage(msgspec.Struct):
    """A message of a conversation."""

    role: str
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[OllamaCall] | None = None
    tool_call_id: str | None = None
    tool_name: str | None = None
    images: list[str] | None = None


@refusing(refused.OLLAMA)
class OllamaChatRequest(OllamaRequest, kw_only=True):
    """The body of `/api/chat`."""

    messages: list[OllamaMessage]
    tools: list[Json] | None = None


@refusing(refused.OLLAMA_GENERATE)
class OllamaGenerateRequest(OllamaRequest, kw_only=True):
    """The body of `/api/generate`."""

    prompt: str = ""
    system: str | None = None


@naming(**_NAMES)
async def chat(call: Call[OllamaChatRequest]) -> Response:
    """Answer a conversation."""
    body = call.body
    if not body.messages:  # Ollama loads the model then
        return json_answer({**_head(call, body), "message": _EMPTY, "done": True, "done_reason": "load"})
    given = body.chat([_message(message) for message in body.messages], tools=body.tools or None)
    return await answer_chat(call, given, ChatLines)


@naming(**_NAMES, messages="prompt")
async def generate(call: Call[OllamaGenerateRequest]) -> Response:
    """Answer one message."""
    body = call.body
    if not body.prompt:
        return json_answer({**_head(call, body), "response": "", "done": True, "done_reason": "load"})
    system = [{"role": "system", "content": body.system}] if body.system else []
    given = body.chat([*system, {"role": "user", "content": body.prompt}])
    return await answer_chat(call, given, GenerateLines)


_EMPTY = {"role": "assistant", "content": ""}


def _head(call: Call[Any], body: OllamaRequest) -> Json:
    return {"model": body.model or call.engine.model.served_name, "created_at": _now()}


def _message(message: OllamaMessage) -> Json:
    if message.images:
        raise ValidationError("the model takes text only, and no `images`")
    made: Json = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        made["reasoning_content"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": msgspec.to_builtins(call.function)}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.tool_name:
        made["name"] = message.tool_name
    return made


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class Lines(TranslatedAnswer):
    """An answer as a JSON object a line; calls come whole."""

    media_type: ClassVar[str] = "application/x-ndjson"
    keep_alive: ClassVar[bytes] = b""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._calls: list[tuple[str, str, str]] = []
        """Id, name and arguments of each call so far."""

    @abc.abstractmethod
    def said(self, content: str, thoughts: str, calls: list[Json]) -> Json:
        """Return the fields that carry a piece of the answer."""

    def begin(self) -> bytes:  # noqa: D102
        return b""

    def add(self, delta: AnswerDelta) -> bytes:  # noqa: D102
        self._take_calls(delta)
        if not (delta.content or delta.thoughts):
            return b""
        return self._line(**self.said(delta.content, delta.thoughts, []), done=False)

    def end(self, reason: Reason) -> bytes:  # noqa: D102
        calls = self._line(**self.said("", "", self._made_calls()), done=False) if self._calls else b""
        return calls + self._line(**self.said("", "", []), **self._ending(reason))

    def error(self, error: ApiError) -> bytes:  # noqa: D102
        return _encoded({"error": str(error)})

    def body(self, deltas: list[AnswerDelta], reason: Reason) -> Json:  # noqa: D102
        for delta in deltas:
            self._take_calls(delta)
        content, thoughts = (
            "".join(getattr(delta, name) for delta in deltas) for name in ("content", "thoughts")
        )
        return {**self._head(), **self.said(content, thoughts, self._made_calls()), **self._ending(reason)}

    def _take_calls(self, delta: AnswerDelta) -> None:
        for call in delta.calls:
            if call.id is not None:
                self._calls.append((call.id, call.name or "", ""))
            id_, name, arguments = self._calls[-1]
            self._calls[-1] = id_, name, arguments + call.arguments

    def _made_calls(self) -> list[Json]:
        made = []
        for index, (id_, name, arguments) in enumerate(self._calls):
            try:
                function = {"index": index, "name": name, "arguments": json.loads(arguments)}
            except ValueError:  # the answer was cut
                continue
            made.append({"id": id_, "function": function})
        return made

    def _head(self) -> Json:
        return {"model": self.model, "created_at": _now()}

    def _line(self, **body: Any) -> bytes:
        return _encoded({**self._head(), **body})

    def _ending(self, reason: Reason) -> Json:
        sequence, usage = self.sequence, self.usage
        first = sequence.first_token or sequence.arrived
        last = max(sequence.last_token, first)
        return {
            "done": True,
            "done_reason": "length" if reason == "length" else "stop",
            "total_duration": _nanoseconds(time.monotonic() - sequence.arrived),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(first - (sequence.started or first)),
            "eval_count": usage.completion_tokens,
            "eval_duration": _nanoseconds(last - first),
        }


class ChatLines(Lines):
    """The answer of `/api/chat`."""

    def said(self, content: str, thoughts: str, calls: list[Json]) -> Json:  # noqa: D102
        message: Json = {"role": "assistant", "content": content}
        if thoughts:
            message["thinking"] = thoughts
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class GenerateLines(Lines):
    """The answer of `/api/generate`."""

    def said(self, content: str, thoughts: str, calls: list[Json]) -> Json:  # noqa: ARG002, D102
        return {"response": content, **({"thinking": thoughts} if thoughts else {})}


def _encoded(body: Json) -> bytes:
    return one_line(body) + b"\n"


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


class ShowRequest(msgspec.Struct):
    """The body of `/api/show`."""

    model: str | None = None
    name: Annotated[str | None, about("Older name of `model`.")] = None


async def tags(call: Call[None]) -> Response:
    """List the one model."""
    return json_answer({"models": [_model(call)]})


async def show(call: Call[ShowRequest]) -> Response:
    """Describe the model. Raises UnknownModel."""
    name, engine = call.body.model or call.body.name, call.engine
    served = engine.model.served_name
    if name not in (None, served, f"{served}:latest"):
        raise UnknownModel(str(name))
    template = engine.templates.source(False) or ""
    capabilities = ["completion", *(["tools"] if engine.templates.knows_tools() else [])]
    facts = {"general.architecture": "", "general.context_length": engine.limits.max_total_tokens}
    return json_answer(
        {
            "modelfile": "",
            "parameters": "",
            "template": template,
            "details": _details(call),
            "model_info": facts,
            "capabilities": capabilities,
        }
    )


async def version(_call: Call[None]) -> Response:
    """Answer with the server's version."""
    return json_answer({"version": __version__})


def _model(call: Call[None]) -> Json:
    model = call.service.loaded().model
    return {
        "name": model.served_name,
        "model": model.served_name,
        "modified_at": "1970-01-01T00:00:00Z",
        "size": 0,
        "digest": model.sha or "",
        "details": _details(call),
    }


def _details(call: Call[Any]) -> Json:
    dtype = call.service.loaded().model.dtype
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": "",
        "families": [],
        "parameter_size": "",
        "quantization_level": dtype,
    }


_EXAMPLE = {"model": "tgi", "messages": [{"role": "user", "content": "What is deep learning?"}]}
ROUTES = (
    post(
        "/api/chat", "ollama_chat", "Answer a conversation, as Ollama does", chat, OllamaChatRequest,
        answer=Json, documented=False, example=_EXAMPLE,
    ),
    post(
        "/api/generate", "ollama_generate", "Answer one message, as Ollama does", generate,
        OllamaGenerateRequest, answer=Json, documented=False,
        example={"model": "tgi", "prompt": "What is deep learning?"},
    ),
    post(
        "/api/show", "ollama_show", "The model, for Ollama's clients", show, ShowRequest,
        answer=Json, documented=False, errors=(*BODY_ERRORS, 404), example={"model": "tgi"},
    ),
    get(
        "/api/tags", "ollama_tags", "The one model, for Ollama's clients", tags,
        answer=Json, documented=False,
    ),
    get("/api/ps", "ollama_ps", "The model that is loaded", tags, answer=Json, documented=False),
    get("/api/version", "ollama_version", "The server's version", version, answer=Json, documented=False),
)  # fmt: skip
