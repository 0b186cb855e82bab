"""All routes, and the OpenAPI document that is made of them.

The document is of version 3.0.3, as TGI's is: the Swagger UI that is served shows no newer one.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import msgspec
from quart import Response

from tgi.errors import OPENAI
from tgi.limits import Limits
from tgi.text.tokenizer import Piece

from . import anthropic, embeddings, info, loras, native, native_bodies, ollama, platforms, responses
from .call import VERSION, Call, Route, get, json_answer
from .openai import answers, chat, completions, formats, messages, requests, tokenize

Schema = dict[str, Any]
TAG = "Text Generation Inference"
REFERENCE = "#/components/schemas/{name}"
_ERRORS = {
    400: "The body is not JSON, or on `/v1` the request cannot be served as it is",
    401: "No API key, or none of this server's",
    403: "The server's options do not allow it",
    404: "No such model",
    408: "The request took longer than `x-request-timeout`, or the body came too slowly",
    413: "The body is too large",
    415: "The body is not said to be JSON",
    422: "The request cannot be served as it is",
    424: "The generation failed",
    429: "The server is overloaded",
    500: "The generation ended early",
    503: "The server is starting or ending",
}
_TEXT_ERRORS = (400, 413, 415, 422)
"""Statuses of bodies that cannot be read, which are answered in plain text except on `/v1`."""
_RETRIED_ERRORS = (429, 503)
_TIMINGS = {
    "x-compute-type": ({"type": "string"}, "Kind of the hardware"),
    "x-compute-characters": ({"type": "integer"}, "Characters of the prompt"),
    "x-compute-time": ({"type": "number"}, "Seconds that the request took"),
    "x-total-time": ({"type": "integer"}, "Milliseconds that the request took"),
    "x-validation-time": ({"type": "integer"}, "Milliseconds until the request was validated"),
    "x-queue-time": ({"type": "integer"}, "Milliseconds in the queue"),
    "x-inference-time": ({"type": "integer"}, "Milliseconds of generation"),
    "x-time-per-token": ({"type": "integer"}, "Milliseconds per token"),
    "x-prompt-tokens": ({"type": "integer"}, "Tokens of the prompt"),
    "x-generated-tokens": ({"type": "integer"}, "Generated tokens"),
}


class ErrorResponse(msgspec.Struct):
    """An error on TGI's routes."""

    error: str
    error_type: str


class OpenAIError(msgspec.Struct):
    """Details of an error on `/v1`."""

    message: str
    type: str
    param: str | None
    code: str | None
    http_status_code: int


class OpenAIErrorResponse(msgspec.Struct):
    """An error on `/v1`."""

    error: OpenAIError
    error_type: str


async def openapi(call: Call[None]) -> Response:
    """Answer with the OpenAPI document."""
    engine = call.service.engine
    if engine is None:
        return json_answer(document(call.service.limits))
    return json_answer(document(engine.limits, engine.model.vocab_size))


ROUTES: tuple[Route, ...] = (
    *native.ROUTES,
    *loras.ROUTES,
    *chat.ROUTES,
    *completions.ROUTES,
    *tokenize.ROUTES,
    *responses.ROUTES,
    *embeddings.ROUTES,
    *anthropic.ROUTES,
    *ollama.ROUTES,
    *platforms.ROUTES,
    *info.ROUTES,
    get("/api-doc/openapi.json", "openapi", "This document", openapi, answer=dict[str, Any]),
)

_ALIASES: dict[str, Any] = {
    "GrammarType": native_bodies.Grammar,
    "MessageContent": messages.MessageContent,
    "MessageChunk": messages.MessageChunk,
    "Prompt": requests.Prompt,
    "ResponseFormat": formats.ResponseFormat,
    "ToolChoice": messages.ToolChoice,
    "TokenizeResponse": list[Piece],
    "SagemakerRequest": (
        native_bodies.CompatGenerateRequest,
        requests.ChatRequest,
        requests.CompletionRequest,
    ),
    "SagemakerResponse": (
        list[native_bodies.GenerateResponse],
        answers.ChatCompletion,
        answers.CompletionFinal,
    ),
    "SagemakerStreamResponse": (
        native_bodies.StreamResponse,
        answers.ChatCompletionChunk,
        answers.CompletionFinal,
    ),
    "Chunk": answers.CompletionFinal,
    "Completion": answers.CompletionFinal,
    "ToolCallMessage": answers.OutputMessage,
    "ToolCallDelta": answers.ChatCompletionDelta,
}
"""Names in TGI's document of types that have no class or another one here."""
_PARTS: dict[str, Schema] = {
    "MessageBody": {
        "type": "object",
        "properties": {
            "content": {"$ref": REFERENCE.format(name="MessageContent")},
            "tool_calls": {"type": "array", "items": {"$ref": REFERENCE.format(name="ToolCall")}},
        },
    },
    "TextMessage": {
        "allOf": [{"$ref": REFERENCE.format(name="OutputMessage")}],
        "type": "object",
        "properties": {"tool_call_id": {"type": "string", "nullable": True}},
    },
}
"""Classes of TGI's document that are parts of others here."""


_RENAMED = {"TokenBody": "Token", "Piece": "SimpleToken"}
"""Classes with another name in TGI's document."""


def document(limits: Limits, vocab_size: int | None = None) -> Schema:
    """Return the document of a server with these limits and a model with this many tokens."""
    routes = [route for route in ROUTES if route.documented]
    kinds = [ErrorResponse, OpenAIErrorResponse, info.HealthResponse, *platforms.INSTANCES]
    for route in routes:
        kinds += [kind for kinds_ in (route.body, route.answer, route.stream) for kind in _kinds(kinds_)]
    kinds += [kind for alias in _ALIASES.values() for kind in _kinds(alias)]
    made, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    schemas = dict(zip(map(repr, kinds), made, strict=True))
    for name, alias in _ALIASES.items():
        components[name] = _union([schemas[repr(kind)] for kind in _kinds(alias)])
    components |= _PARTS
    for name, other in _RENAMED.items():
        components[other] = components.pop(name)
    paths: Schema = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(route, schemas)
    whole = {
        "openapi": "3.0.3",
        "info": {
            "title": "Text Generation Inference",
            "description": "Text generation with large language models",
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "version": VERSION,
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {
                "api_key": {"type": "http", "scheme": "bearer"},
                "x_api_key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
        "tags": [{"name": TAG}],
    }
    maxima = attrs.asdict(limits) | ({} if vocab_size is None else {"last_token": vocab_size - 1})
    converted: Schema = _to_openapi_3_0(whole, maxima)
    return converted


def _kinds(kinds: Any) -> Iterator[Any]:
    """Yield the types that a route names: none, one, or a tuple."""
    yield from kinds if isinstance(kinds, tuple) else () if kinds is None else (kinds,)


def _union(schemas: list[Schema]) -> Schema:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _operation(route: Route, schemas: dict[str, Schema]) -> Schema:
    described: Schema = {
        "tags": [TAG],
        "summary": route.summary,
        "operationId": route.name,
        "parameters": _parameters(route),
        "responses": {"200": _success(route, schemas)},
    }
    for status in sorted(set(route.errors) - ({422} if route.path.startswith(OPENAI) else set())):
        described["responses"][str(status)] = _error(route, status)
    if route.body:
        content = {"schema": _schema(route.body, schemas), "example": route.example}
        described["requestBody"] = {"content": {"application/json": content}, "required": True}
        # Keys are needed only where the server was started with some.
        described["security"] = [{}, {"api_key": []}, {"x_api_key": []}]
    return described


def _schema(kinds: Any, schemas: dict[str, Schema]) -> Schema:
    return _union([schemas[repr(kind)] for kind in _kinds(kinds)])


def _parameters(route: Route) -> list[Schema]:
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", route.template)
    ]
    parameters.append(
        _header("x-request-id", {"type": "string"}, "For logs; up to 128 printable characters are answered")
    )
    if route.generates:
        seconds = {"type": "number", "exclusiveMinimum": 0}
        parameters.append(_header("x-request-timeout", seconds, "Give up after this many seconds"))
    return parameters


def _header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _success(route: Route, schemas: dict[str, Schema]) -> Schema:
    content: Schema = {}
    if route.answer is not None:
        content["application/json"] = {"schema": _schema(route.answer, schemas)}
    if route.stream is not None:
        content["text/event-stream"] = {"schema": _schema(route.stream, schemas)}
    if route.text:
        content["text/plain"] = {"schema": {"type": "string"}}
    headers: Schema = {"x-request-id": {"schema": {"type": "string"}, "description": "For logs"}}
    if route.generates:
        for name, (schema, description) in _TIMINGS.items():
            headers[name] = {"schema": schema, "description": description}
    answer: Schema = {"description": "The answer", "headers": headers}
    return {**answer, "content": content} if content else answer


def _error(route: Route, status: int) -> Schema:
    answer: Schema = {"description": _ERRORS[status]}
    is_openai = route.path.startswith(OPENAI)
    content: Schema = {}
    if status in _TEXT_ERRORS and not is_openai:
        content["text/plain"] = {"schema": {"type": "string"}}
    if is_openai or status not in (400, 401, 413, 415):
        kind: type = OpenAIErrorResponse if is_openai else ErrorResponse
        kind = info.HealthResponse if route.handler is info.health else kind
        content["application/json"] = {"schema": {"$ref": REFERENCE.format(name=kind.__name__)}}
    if status in _RETRIED_ERRORS:
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    return {**answer, "content": content} if content else answer


def _to_openapi_3_0(value: Any, limits: Mapping[str, int]) -> Any:
    """Convert JSON Schema 2020-12, as msgspec and `about` make it, to the dialect of OpenAPI 3.0."""
    if isinstance(value, list):
        return [_to_openapi_3_0(item, limits) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {key: _to_openapi_3_0(item, limits) for key, item in value.items()}
    accepted, limit = schema.pop("x-accepted", {}), schema.pop("x-limit", None)
    if isinstance(description := schema.get("description"), str):
        schema["description"] = CONTRACT_IDS.sub("", description)
    if isinstance(schema.get("$ref"), str):
        name = schema.pop("$ref").rpartition("/")[2]
        reference = {"$ref": REFERENCE.format(name=_RENAMED.get(name, name))}
        return {"allOf": [reference], **schema, **accepted} if schema or accepted else reference
    options = schema.get("anyOf", [])
    if _NULL in options and len(options) == 2 and "type" in options[0]:
        schema = {**schema, **options[0], "nullable": True}
        del schema["anyOf"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    schema.update(accepted)
    if limit is not None and limit["name"] in limits:
        for option in schema.get("anyOf", [schema]):
            if keyword := _MAXIMUM.get(option["type"]):
                option[keyword] = max(limits[limit["name"]], limit["at_least"])
    if not schema.get("required", True):
        del schema["required"]
    for bound in ("Minimum", "Maximum"):
        if not isinstance(schema.get(f"exclusive{bound}", True), bool):
            schema[bound.lower()] = schema[f"exclusive{bound}"]
            schema[f"exclusive{bound}"] = True
    if schema.get("type") == "null":
        return {**schema, **_NULL}
    if "enum" in schema and "type" not in schema:
        schema["type"] = "string"
    return schema


CONTRACT_IDS = re.compile(r" \((?:tgi-behaviour|[A-Z]+\d)[^)]*\)")
"""References in docstrings that mean nothing to readers of the document."""
_NULL: Schema = {"type": "string", "nullable": True, "enum": [None]}
_MAXIMUM = {"integer": "maximum", "array": "maxItems"}
"""Keywords for the maximum of a type."""
