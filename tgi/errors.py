"""Every error that a client can cause or get to see: one class each, with its status, type and message.

Knows no HTTP framework. An `ApiError` leaves the server as `{"error": ..., "error_type": ...}`, with its own
status while nothing has been sent yet, as one event of a stream otherwise (tgi-behaviour 2.6). A
`BodyError` is about a request that could not even be read; it leaves as plain text (R1.34 to R1.36).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

RETRY_AFTER = "1"
"""Seconds after which to try again what was refused for the load of the moment."""

_NONE: Mapping[str, str] = MappingProxyType({})
_RETRY: Mapping[str, str] = MappingProxyType({"Retry-After": RETRY_AFTER})


class ApiError(Exception):
    """What goes wrong with a request; `str()` is the message for the client."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "error"
    form: ClassVar[str] = "{}"
    """The message: `{}` stands for what the constructor is given."""
    failure: ClassVar[str] = "generation"
    """Label `err` of the metric tgi_request_failure."""
    headers: ClassVar[Mapping[str, str]] = _NONE

    def __init__(self, detail: str = "") -> None:
        super().__init__(self.form.format(detail))

    def to_body(self) -> dict[str, object]:
        """The JSON object of the answer or of the event, on TGI's own routes."""
        return {"error": str(self), "error_type": self.error_type}

    def to_openai_body(self) -> dict[str, object]:
        """The same on `/v1/*`: OpenAI's shape, TGI's `http_status_code` in it and `error_type` beside it."""
        detail = {
            "message": str(self),
            "type": self.error_type,
            "param": None,
            "code": self.status,
            "http_status_code": self.status,
        }
        return {"error": detail, "error_type": self.error_type}


class ValidationError(ApiError):
    """The request is understood but asks for what is not possible."""

    status, error_type, failure = 422, "validation", "validation"
    form = "Input validation error: {}"


class TemplateError(ApiError):
    """The chat template cannot make a prompt of these messages, or there is none."""

    status, error_type, failure = 422, "template_error", "template"
    form = "Template error: {}"


class ToolError(ApiError):
    """The request asks for a tool that it does not describe."""

    status, error_type, failure = 422, "tool_error", "validation"
    form = "Tool error: {}"


class SuffixNotSupported(ApiError):
    """A completion that must fit between two texts."""

    status, error_type, failure = 422, "suffix not supported", "validation"
    form = "Suffix is not supported and can be achieved by preprocessing the prompt."


class BatchSizeExceeded(ApiError):
    """More prompts in one request than `max_client_batch_size`."""

    status, error_type, failure = 422, "batch size exceeded", "validation"
    form = "Number of prompts exceeds the maximum allowed batch size of {}"


class NoInstances(ApiError):
    """A request to `/vertex` without any instance."""

    status, error_type, failure = 422, "Input validation error", "validation"
    form = "Input validation error"


class NotUtf8(ApiError):
    """The bytes of a KServe input are no text."""

    status, error_type, failure = 422, "utf8", "validation"


class OutputsMismatch(ApiError):
    """A KServe request names more or fewer outputs than inputs."""

    status, error_type, failure = 422, "length mismatch", "validation"
    form = "Inputs and outputs length mismatch"


class UnknownModel(ApiError):
    """`/v1/models/{id}` of a model that is not served."""

    status, error_type, failure = 404, "model_not_found", "validation"
    form = "The model {} does not exist"


class Overloaded(ApiError):
    """More requests at once than `max_concurrent_requests`."""

    status, error_type, failure = 429, "overloaded", "overloaded"
    form = "Model is overloaded"
    headers = _RETRY


class GenerationFailed(ApiError):
    """The engine failed while it generated; the detail is its own text."""

    status, error_type = 424, "generation"
    form = "Request failed during generation: {}"


class IncompleteGeneration(ApiError):
    """The tokens ended before the generation was finished, and there is no stream to say so in."""

    status, error_type, failure = 500, "incomplete_generation", "incomplete"
    form = "Incomplete generation"


class IncompleteGenerationStream(ApiError):
    """The tokens of a stream ended before the generation was finished."""

    status, error_type, failure = 500, "incomplete_generation_stream", "incomplete"
    form = "Incomplete generation stream"


class DeadlineExceeded(ApiError):
    """The client's own limit, `x-request-timeout`, has passed."""

    status, error_type, failure = 408, "deadline_exceeded", "deadline"
    form = "The request took longer than its x-request-timeout"
    headers = MappingProxyType({"x-should-retry": "false"})


class Unauthorized(ApiError):
    """No API key, or none of this server's; an empty body on TGI's own routes (R1.52)."""

    status, error_type, failure = 401, "unauthorized", "validation"
    form = "Missing or wrong API key"


class Unavailable(ApiError):
    """The server is starting or ending; the detail says which."""

    status, error_type, failure = 503, "unavailable", "unavailable"
    form = "The server is {}"
    headers = _RETRY


class InternalError(ApiError):
    """A defect of the server; the log has the details."""

    status, error_type = 500, "internal"
    form = "Internal server error"


class BodyError(ApiError):
    """The body of a request cannot be read; answered in plain text."""

    status, error_type, failure = 400, "body", "validation"


class MalformedBody(BodyError):
    """It is not JSON."""

    form = "Failed to parse the request body as JSON: {}"


class WrongShape(BodyError):
    """It is JSON of another shape than the route wants; the detail names the place."""

    status = 422
    form = "Failed to deserialize the JSON body into the target type: {}"


class UnsupportedMediaType(BodyError):
    """Its content type is not JSON."""

    status = 415
    form = "Expected request with `Content-Type: application/json`"


class BodyTooLarge(BodyError):
    """It is longer than `payload_limit`."""

    status = 413
    form = "Failed to buffer the request body: length limit exceeded"
