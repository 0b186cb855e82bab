"""Every error that a client can see: one class each, with its status, type and message.

An `ApiError` is sent as `{"error": ..., "error_type": ...}`: with its status if nothing has been sent yet,
else as an event of the stream. The second paragraph of its docstring says what to do about it; docs/errors.md
is made of all this. A `BodyError`, for a body that cannot be read, is sent as plain text. On
`/v1/*`, both have the shape and the statuses of OpenAI's errors.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

RETRY_AFTER = "1"
"""Value of Retry-After, in seconds, on requests refused because of load."""

OLLAMA = "/api/"
"""Beginning of the paths whose errors are Ollama's."""
OPENAI = "/v1/"
"""Beginning of the paths whose errors are OpenAI's."""
ANTHROPIC = "/v1/messages"
"""Beginning of the paths whose errors are Anthropic's."""
_ANTHROPICS_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Anthropic's types of errors by status, where they are not OpenAI's."""
_NONE: Mapping[str, str] = MappingProxyType({})
_RETRY: Mapping[str, str] = MappingProxyType({"Retry-After": RETRY_AFTER})


class ApiError(Exception):
    """Base of all errors of a request; `str()` is the message for the client."""

    status: ClassVar[int] = 500
    error_type: ClassVar[str] = "error"
    form: ClassVar[str] = "{}"
    """Format of the message; `{}` is replaced by the argument of the constructor."""
    failure: ClassVar[str] = "generation"
    """Value of the label `err` of the metric tgi_request_failure."""
    headers: Mapping[str, str] = _NONE
    code: ClassVar[str | None] = None
    """OpenAI's code of the error on `/v1/*`; None: it has none."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(self.form.format(detail))

    def to_body(self) -> dict[str, object]:
        """Return the JSON object of the answer or event on TGI's own routes."""
        return {"error": str(self), "error_type": self.error_type}

    def status_for(self, path: str) -> int:
        """Return the status of an answer at a path: OpenAI has 400 where TGI has 422."""
        return 400 if self.status == 422 and path.startswith(OPENAI) else self.status

    def to_openai_body(self) -> dict[str, Any]:
        """Return the JSON object for `/v1/*`: OpenAI's shape with TGI's two additions."""
        status = self.status_for(OPENAI)
        kind = "invalid_request_error"
        if status == 429:
            kind = "rate_limit_error"
        elif status == 424 or status >= 500:
            kind = "server_error"
        detail = {
            "message": str(self),
            "type": kind,
            "param": None,
            "code": self.code,
            "http_status_code": status,
        }
        return {"error": detail, "error_type": self.error_type}

    def to_anthropic_body(self) -> dict[str, Any]:
        """Return the JSON object for Anthropic's routes: that of `/v1/*` with its types."""
        body, status = self.to_openai_body(), self.status_for(OPENAI)
        kind = "api_error" if status == 424 or status >= 500 else "invalid_request_error"
        body["error"]["type"] = _ANTHROPICS_TYPES.get(status, kind)
        return {"type": "error", **body}


class ValidationError(ApiError):
    """The request is well-formed, but a value is outside its limits.

    Change the value that the message names; the OpenAPI document has its limits.
    """

    status, error_type, failure = 422, "validation", "validation"
    form = "Input validation error: {}"


class ContextLengthExceeded(ValidationError):
    """The prompt, or the prompt and the tokens to generate, are more than the server takes.

    Shorten the prompt or ask for fewer tokens, let `truncate` cut it, or serve with a larger
    --max-total-tokens.
    """

    code = "context_length_exceeded"


class TemplateError(ApiError):
    """The chat template fails on these messages, or is missing.

    Mend the messages as the text says, or serve with a --chat-template that takes them.
    """

    status, error_type, failure = 422, "template_error", "template"
    form = "Template error: {}"


class ToolError(ApiError):
    """The request names a tool that it does not define.

    Define the tool in `tools`, or name another in `tool_choice`.
    """

    status, error_type, failure = 422, "tool_error", "validation"
    form = "Tool error: {}"


class SuffixNotSupported(ApiError):
    """The request has a `suffix`.

    Put the suffix into the prompt, in the model's own format for filling in.
    """

    status, error_type, failure = 422, "suffix not supported", "validation"
    form = "Suffix is not supported and can be achieved by preprocessing the prompt."


class BatchSizeExceeded(ApiError):
    """The request has more prompts than `max_client_batch_size`.

    Send fewer prompts at once, or serve with a larger --max-client-batch-size.
    """

    status, error_type, failure = 422, "batch size exceeded", "validation"
    form = "Number of prompts exceeds the maximum allowed batch size of {}"


class NoInstances(ApiError):
    """The request to `/vertex` has no instance.

    Put at least one object into `instances`.
    """

    status, error_type, failure = 422, "Input validation error", "validation"
    form = "Input validation error"


class NotUtf8(ApiError):
    """The bytes of a KServe input are not UTF-8.

    Encode the text in UTF-8.
    """

    status, error_type, failure = 422, "utf8", "validation"


class OutputsMismatch(ApiError):
    """The KServe request does not have as many outputs as inputs.

    Ask for one output for each input.
    """

    status, error_type, failure = 422, "length mismatch", "validation"
    form = "Inputs and outputs length mismatch"


class UnknownPath(ApiError):
    """No route has the path.

    `/docs` lists the paths; a proxy in front may need --root-path.
    """

    status, error_type, failure = 404, "not_found", "validation"
    form = "There is no {}"


class WrongTask(ApiError):
    """The route is for models of another kind than the one that is served.

    Use the route that the message names, or serve a model of that kind.
    """

    status, error_type, failure = 404, "not_found", "validation"


class UnknownModel(ApiError):
    """The model of `/v1/models/{id}` is not served.

    Use a name that `/v1/models` lists, or give the model another with --served-model-name.
    """

    status, error_type, failure = 404, "model_not_found", "validation"
    code = "model_not_found"
    form = "The model {} does not exist"


class LoraNotFound(ApiError):
    """The files of a LoRA adapter are not found.

    Check the path or the name on the Hub, and that the server can read it.
    """

    status, error_type, failure = 404, "not_found", "validation"


class UnknownResponse(ApiError):
    """The response is not, or no longer, remembered.

    Send the whole conversation as `input`.
    """

    status, error_type, failure = 404, "response_not_found", "validation"
    code = "response_not_found"
    form = "Response with id {} not found: it was not stored, or is too old"


class Overloaded(ApiError):
    """More requests came at once than `max_concurrent_requests`.

    Try again after `Retry-After` seconds; serve with a larger --max-concurrent-requests, or more replicas.
    """

    status, error_type, failure = 429, "overloaded", "overloaded"
    form = "Model is overloaded"
    code = "rate_limit_exceeded"
    headers = _RETRY


class RateLimited(ApiError):
    """The request's tenant is at one of its limits.

    Try again after `Retry-After` seconds; the operator sets the limits with --tenants.
    """

    status, error_type, failure = 429, "overloaded", "overloaded"
    form = "Rate limit reached: {}"
    code = "rate_limit_exceeded"
    headers = _RETRY

    def __init__(self, detail: str = "", headers: Mapping[str, str] = _RETRY) -> None:
        super().__init__(detail)
        self.headers = headers


class Shed(ApiError):
    """The request would be answered too late, or has waited for too long.

    Try again after `Retry-After` seconds, or with a longer `x-request-timeout`; add replicas.
    """

    status, error_type, failure = 503, "overloaded", "overloaded"
    form = "Model is overloaded: {}"
    headers = _RETRY


class GenerationFailed(ApiError):
    """The engine failed during generation.

    Try again; if it comes back, the log of the server has the cause.
    """

    status, error_type = 424, "generation"
    form = "Request failed during generation: {}"


class IncompleteGeneration(ApiError):
    """The tokens of an answer ended before the generation was finished.

    Try again; the log of the server has the cause.
    """

    status, error_type, failure = 500, "incomplete_generation", "incomplete"
    form = "Incomplete generation"


class IncompleteGenerationStream(ApiError):
    """The tokens of a stream ended before the generation was finished.

    Try again; the log of the server has the cause.
    """

    status, error_type, failure = 500, "incomplete_generation_stream", "incomplete"
    form = "Incomplete generation stream"


class DeadlineExceeded(ApiError):
    """The deadline of `x-request-timeout` has passed.

    Ask for fewer tokens, or set a longer `x-request-timeout`.
    """

    status, error_type, failure = 408, "deadline_exceeded", "deadline"
    form = "The request took longer than its x-request-timeout"
    headers = MappingProxyType({"x-should-retry": "false"})


class Unauthorized(ApiError):
    """The API key is missing or wrong; answered with an empty body on TGI's own routes (R1.52).

    Send `Authorization: Bearer KEY` or `X-Api-Key: KEY` with a key that the server was given by --api-key.
    """

    status, error_type, failure = 401, "unauthorized", "validation"
    form = "Missing or wrong API key"
    code = "invalid_api_key"


class Forbidden(ApiError):
    """The operator has not allowed what the request asks for.

    Start the server with the option that the message names.
    """

    status, error_type, failure = 403, "forbidden", "validation"


class Unavailable(ApiError):
    """The server is starting or shutting down.

    Try again after `Retry-After` seconds; `/health` has the progress of a start.
    """

    status, error_type, failure = 503, "unavailable", "unavailable"
    form = "The server is {}"
    headers = _RETRY


class InternalError(ApiError):
    """The server has a defect; the log has the details.

    Report it with the lines of the log that have the request's id, and the output of `tgi env`.
    """

    status, error_type = 500, "internal"
    form = "Internal server error"


class BodyError(ApiError):
    """The body cannot be read; answered as plain text."""

    status, error_type, failure = 400, "body", "validation"


class MalformedBody(BodyError):
    """The body is not JSON.

    Send JSON; the message has the place of the first mistake.
    """

    form = "Failed to parse the request body as JSON: {}"


class WrongShape(BodyError):
    """The body is JSON of the wrong shape; the detail names the place.

    Give the field that the message names a value of the type that it names.
    """

    status = 422
    form = "Failed to deserialize the JSON body into the target type: {}"


class UnsupportedMediaType(BodyError):
    """The content type of the body is not JSON.

    Send the header `Content-Type: application/json`.
    """

    status = 415
    form = "Expected request with `Content-Type: application/json`"


class EncodedBody(BodyError):
    """The body is compressed.

    Send it as it is, without the header `Content-Encoding`.
    """

    status = 415
    form = "Expected a body that is not compressed, without `Content-Encoding: {}`"


class BodyTooLarge(BodyError):
    """The body is longer than `payload_limit`.

    Send less, or serve with a larger --payload-limit.
    """

    status = 413
    form = "Failed to buffer the request body: length limit exceeded"
