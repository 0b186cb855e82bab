"""The error families of tgi-behaviour 2.6."""

import inspect

import pytest

from tgi import errors
from tgi.errors import ApiError, BodyError


@pytest.mark.contract("2.6")
@pytest.mark.parametrize(
    ("error", "status", "error_type", "message"),
    [
        (errors.GenerationFailed("boom"), 424, "generation", "Request failed during generation: boom"),
        (errors.Overloaded(), 429, "overloaded", "Model is overloaded"),
        (errors.ValidationError("x"), 422, "validation", "Input validation error: x"),
        (errors.IncompleteGeneration(), 500, "incomplete_generation", "Incomplete generation"),
        (
            errors.IncompleteGenerationStream(),
            500,
            "incomplete_generation_stream",
            "Incomplete generation stream",
        ),
        (errors.TemplateError("x"), 422, "template_error", "Template error: x"),
        (errors.ToolError("x"), 422, "tool_error", "Tool error: x"),
        (
            errors.SuffixNotSupported(),
            422,
            "suffix not supported",
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
        ),
        (
            errors.BatchSizeExceeded("4"),
            422,
            "batch size exceeded",
            "Number of prompts exceeds the maximum allowed batch size of 4",
        ),
        (errors.Unavailable("starting"), 503, "unavailable", "The server is starting"),
        (errors.InternalError(), 500, "internal", "Internal server error"),
    ],
)
def test_families(error: ApiError, status: int, error_type: str, message: str) -> None:
    assert error.status == status
    assert list(error.to_body().items()) == [("error", message), ("error_type", error_type)]


def test_openai_clients_find_a_message_and_those_of_tgi_an_error_type() -> None:
    assert errors.Overloaded().to_openai_body() == {
        "error": {
            "message": "Model is overloaded",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limit_exceeded",
            "http_status_code": 429,
        },
        "error_type": "overloaded",
    }


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (errors.ValidationError("x"), 400, "invalid_request_error", None),
        (errors.ContextLengthExceeded("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (errors.WrongShape("x"), 400, "invalid_request_error", None),
        (errors.Unauthorized(), 401, "invalid_request_error", "invalid_api_key"),
        (errors.UnknownModel("x"), 404, "invalid_request_error", "model_not_found"),
        (errors.Overloaded(), 429, "rate_limit_error", "rate_limit_exceeded"),
        (errors.GenerationFailed("x"), 424, "server_error", None),
        (errors.InternalError(), 500, "server_error", None),
        (errors.Unavailable("x"), 503, "server_error", None),
    ],
)
def test_statuses_types_and_codes_are_openais_on_v1(
    error: ApiError, status: int, kind: str, code: str | None
) -> None:
    assert error.status_for("/v1/completions") == status
    assert error.status_for("/invocations") == error.status
    detail = error.to_openai_body()["error"]
    assert isinstance(detail, dict)
    assert (detail["http_status_code"], detail["type"], detail["code"]) == (status, kind, code)


def test_braces_in_a_detail_are_not_touched() -> None:
    assert str(errors.ValidationError("{0} {x}")) == "Input validation error: {0} {x}"


def test_whoever_may_try_again_is_told_when() -> None:
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, ApiError) and not issubclass(kind, BodyError):
            assert ("Retry-After" in kind.headers) == (kind.status in (429, 503)), name
