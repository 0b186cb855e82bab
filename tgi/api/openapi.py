"""The OpenAPI document, made from the classes that read requests and write answers.

It is of version 3.0.3, as TGI's is: the Swagger UI that is served shows no newer one.
"""

import re

from tgi.limits import Limits

from .field_docs import Docs
from .json_schema import Schema, Schemas
from .operations import DEFINITIONS, NAMES, OPERATIONS, Operation, reference
from .service import VERSION

TAG = "Text Generation Inference"
_ERRORS = {
    400: "The body is not JSON",
    401: "No API key, or none of this server's",
    404: "There is no such model",
    408: "It took longer than `x-request-timeout`, or the body came too slowly",
    413: "The body is too large",
    415: "The body is not said to be JSON",
    422: "The request cannot be served as it is",
    424: "The generation failed",
    429: "The server is overloaded",
    500: "The generation ended early",
    503: "The server is starting or ending",
}
_TEXT = (400, 413, 415, 422)
"""Errors of bodies that could not be read, answered in plain text but on `/v1/*`."""
_RETRIED = (429, 503)
_TIMINGS = {
    "x-compute-type": ({"type": "string"}, "What computes"),
    "x-compute-characters": ({"type": "integer"}, "Characters of the prompt"),
    "x-compute-time": ({"type": "number"}, "Seconds that the request took"),
    "x-total-time": ({"type": "integer"}, "Milliseconds that the request took"),
    "x-validation-time": ({"type": "integer"}, "Milliseconds until the request was validated"),
    "x-queue-time": ({"type": "integer"}, "Milliseconds that it waited"),
    "x-inference-time": ({"type": "integer"}, "Milliseconds of generation"),
    "x-time-per-token": ({"type": "integer"}, "Milliseconds per token"),
    "x-prompt-tokens": ({"type": "integer"}, "Tokens of the prompt"),
    "x-generated-tokens": ({"type": "integer"}, "Tokens that were generated"),
}


def document(limits: Limits, vocab_size: int | None = None) -> Schema:
    """The document of a server with these limits, and a model with this many tokens."""
    schemas = Schemas(Docs(limits, vocab_size), NAMES)
    paths: Schema = {}
    for operation in OPERATIONS:
        path = paths.setdefault(operation.path, {})
        path[operation.method.lower()] = _operation(operation, schemas)
    for name, schema in DEFINITIONS.items():
        schemas.named[name] = schemas.of(schema)
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "Text Generation Inference",
            "description": "Text generation with large language models",
            "license": {"name": "Apache 2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            "version": VERSION,
        },
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.named.items())),
            "securitySchemes": {"api_key": {"type": "http", "scheme": "bearer"}},
        },
        "tags": [{"name": TAG}],
    }


def _operation(operation: Operation, schemas: Schemas) -> Schema:
    described: Schema = {
        "tags": [TAG],
        "summary": operation.summary,
        "operationId": operation.name,
        "parameters": _parameters(operation),
        "responses": {"200": _success(operation, schemas)},
    }
    for status in sorted(operation.errors):
        described["responses"][str(status)] = _error(operation, status)
    if operation.body is not None:
        content: Schema = {"schema": schemas.of(operation.body), "example": operation.example}
        described["requestBody"] = {"content": {"application/json": content}, "required": True}
    if 401 in operation.errors:  # only where the server was started with keys
        described["security"] = [{}, {"api_key": []}]
    return described


def _parameters(operation: Operation) -> list[Schema]:
    parameters: list[Schema] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", operation.path)
    ]
    parameters.append(
        _header("x-request-id", {"type": "string"}, "For logs; up to 128 printable characters are answered")
    )
    if operation.generates:
        seconds = {"type": "number", "minimum": 0, "exclusiveMinimum": True}
        parameters.append(_header("x-request-timeout", seconds, "Give up after so many seconds"))
    return parameters


def _header(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "header", "schema": schema, "description": description}


def _success(operation: Operation, schemas: Schemas) -> Schema:
    content: Schema = {}
    if operation.answer is not None:
        content["application/json"] = {"schema": schemas.of(operation.answer)}
    if operation.stream is not None:
        content["text/event-stream"] = {"schema": schemas.of(operation.stream)}
    if operation.text:
        content["text/plain"] = {"schema": {"type": "string"}}
    headers: Schema = {"x-request-id": {"schema": {"type": "string"}, "description": "For logs"}}
    if operation.generates:
        for name, (schema, description) in _TIMINGS.items():
            headers[name] = {"schema": schema, "description": description}
    answer: Schema = {"description": "The answer", "headers": headers}
    return {**answer, "content": content} if content else answer


def _error(operation: Operation, status: int) -> Schema:
    answer: Schema = {"description": _ERRORS[status]}
    openai = operation.path.startswith("/v1/")
    content: Schema = {}
    if status in _TEXT and not openai:
        content["text/plain"] = {"schema": {"type": "string"}}
    if openai or status not in (400, 401, 413, 415):
        name = "OpenAIErrorResponse" if openai else "ErrorResponse"
        if operation.name in ("health", "ping", "root_health"):
            name = "HealthResponse"
        content["application/json"] = {"schema": reference(name)}
    if status in _RETRIED:
        answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}
    return {**answer, "content": content} if content else answer
