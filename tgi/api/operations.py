"""Every route as the OpenAPI document tells of it: what it takes, answers, and which errors it has.

A new route is one more line of OPERATIONS.
"""

from http import HTTPMethod
from typing import Any

import attrs

from tgi.text.tokenizer import Piece

from .native_answers import (
    AnswerBody,
    BestOfBody,
    DetailsBody,
    EventBody,
    PrefillTokenBody,
    StreamDetailsBody,
    TokenBody,
)
from .openai_answers import (
    ChatBody,
    ChatChoiceBody,
    ChatChunkBody,
    ChatChunkChoiceBody,
    ChatLogprobsBody,
    ChatMessageBody,
    CompletionBody,
    CompletionChoiceBody,
    CompletionLogprobsBody,
    DeltaBody,
    DetokenizeBody,
    FunctionBody,
    FunctionDeltaBody,
    ModelBody,
    ModelsBody,
    TokenLogprobBody,
    ToolCallBody,
    ToolCallDeltaBody,
    TopLogprobBody,
    UsageBody,
)
from .openai_schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    InferenceRequest,
    SagemakerRequest,
    VertexRequest,
)
from .schema import CompatGenerateRequest, GenerateRequest

NAMES: dict[type, str] = {
    AnswerBody: "GenerateResponse",
    BestOfBody: "BestOfSequence",
    ChatBody: "ChatCompletion",
    ChatChoiceBody: "ChatCompletionComplete",
    ChatChunkBody: "ChatCompletionChunk",
    ChatChunkChoiceBody: "ChatCompletionChoice",
    ChatLogprobsBody: "ChatCompletionLogprobs",
    ChatMessageBody: "OutputMessage",
    CompletionBody: "CompletionFinal",
    CompletionChoiceBody: "CompletionComplete",
    CompletionLogprobsBody: "CompletionLogprobs",
    DeltaBody: "ChatCompletionDelta",
    DetailsBody: "Details",
    DetokenizeBody: "DetokenizeResponse",
    EventBody: "StreamResponse",
    FunctionBody: "OutputFunction",
    FunctionDeltaBody: "Function",
    ModelBody: "ModelInfo",
    ModelsBody: "ModelList",
    Piece: "SimpleToken",
    PrefillTokenBody: "PrefillToken",
    StreamDetailsBody: "StreamDetails",
    TokenBody: "Token",
    TokenLogprobBody: "ChatCompletionLogprob",
    ToolCallBody: "OutputToolCall",
    ToolCallDeltaBody: "DeltaToolCall",
    TopLogprobBody: "ChatCompletionTopLogprob",
    UsageBody: "Usage",
}
"""What the document calls the classes of answers: TGI's names where TGI has them."""


def record(_description: str = "", **fields: Any) -> dict[str, Any]:
    """The schema of an object that has all these fields."""
    schema: dict[str, Any] = {"type": "object", "properties": fields, "required": list(fields)}
    return {"description": _description, **schema} if _description else schema


def reference(name: str) -> dict[str, str]:
    """The schema of this name."""
    return {"$ref": f"#/components/schemas/{name}"}


ERROR = record("An error on TGI's routes.", error=str, error_type=str)
OPENAI_ERROR = record(
    "An error on `/v1` routes.",
    error=record(message=str, type=str, param=str | None, code=int, http_status_code=int),
    error_type=str,
)
HEALTH = record("How far the server has come.", error=str, error_type=str, status=str)
INFO = record(
    "The model, the server and its limits.",
    model_id=str,
    model_sha=str | None,
    model_pipeline_tag=str | None,
    max_concurrent_requests=int,
    max_best_of=int,
    max_stop_sequences=int,
    max_input_tokens=int,
    max_total_tokens=int,
    validation_workers=int,
    max_client_batch_size=int,
    router=str,
    version=str,
    sha=str | None,
    docker_label=str | None,
    max_input_length=int,
    model_dtype=str,
    model_device_type=str,
)
OUTPUT = record(name=str, shape=list[int], datatype=str, data=list[int])
LIVE = {"type": "object", "properties": {"live": bool, "ready": bool}, "required": ["live"]}

DEFINITIONS: dict[str, Any] = {
    "ErrorResponse": ERROR,
    "OpenAIErrorResponse": OPENAI_ERROR,
    "HealthResponse": HEALTH,
    "Info": INFO,
    "TokenizeResponse": list[Piece],
    "ChatTokenizeResponse": record(tokenize_response=reference("TokenizeResponse"), templated_text=str),
    "VertexResponse": record(predictions=list[str]),
    "InferenceResponse": record(id=str, outputs={"type": "array", "items": OUTPUT}),
    "ServerMetadata": record(name=str, version=str, extensions=list[str]),
    "Readiness": LIVE,
    "SagemakerResponse": {"anyOf": [list[AnswerBody], ChatBody, CompletionBody]},
    "SagemakerStreamResponse": {"anyOf": [EventBody, ChatChunkBody, CompletionBody]},
    # TGI has two forms where there is one here.
    "Chunk": {"allOf": [CompletionBody]},
    "Completion": {"anyOf": [reference("Chunk"), CompletionBody]},
    "TextMessage": {
        "allOf": [ChatMessageBody],
        "type": "object",
        "properties": {"tool_call_id": {"type": "string", "nullable": True}},
    },
    "ToolCallMessage": {"allOf": [ChatMessageBody]},
    "ToolCallDelta": {"allOf": [DeltaBody]},
}
"""Answers that are no classes, and names that TGI's document has beside."""

BODY_ERRORS = (400, 401, 408, 413, 415, 422, 503)
GENERATION_ERRORS = (*BODY_ERRORS, 424, 429, 500)


@attrs.frozen(kw_only=True)
class Operation:
    """A method of a path."""

    path: str
    name: str
    """TGI's operationId, where TGI has the route."""
    summary: str
    method: HTTPMethod = HTTPMethod.GET
    body: Any = None
    """The class that is read."""
    answer: Any = None
    """The JSON that is answered: an annotation or a schema; None: an empty body."""
    text: bool = False
    """It is text that is answered."""
    stream: Any = None
    """An event that is answered."""
    errors: tuple[int, ...] = ()
    example: Any = None
    """A body that is accepted."""

    @property
    def generates(self) -> bool:
        """Whether it is for tokens, so that a deadline and timing headers make sense."""
        return self.errors == GENERATION_ERRORS


def _get(path: str, name: str, summary: str, **more: Any) -> Operation:
    return Operation(path=path, name=name, summary=summary, **more)


def _post(path: str, name: str, summary: str, **more: Any) -> Operation:
    errors = more.pop("errors", GENERATION_ERRORS)
    return Operation(path=path, name=name, summary=summary, method=HTTPMethod.POST, errors=errors, **more)


_INPUTS = {"inputs": "What is deep learning?", "parameters": {"max_new_tokens": 20}}
_MESSAGES = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 20}
_PROMPT = {"prompt": "Deep learning is", "max_tokens": 20}
_MODEL = "/v2/models/{name}/versions/{version}"

OPERATIONS = (
    _post(
        "/", "compat_generate", "Generate text: in one piece, or streamed if `stream` is true",
        body=CompatGenerateRequest, answer=list[AnswerBody], stream=EventBody, example=_INPUTS,
    ),
    _post(
        "/generate", "generate", "Generate text",
        body=GenerateRequest, answer=AnswerBody, example=_INPUTS,
    ),
    _post(
        "/generate_stream", "generate_stream", "Generate text, streamed as server-sent events",
        body=GenerateRequest, stream=EventBody, example=_INPUTS,
    ),
    _post(
        "/v1/chat/completions", "chat_completions", "Answer a conversation, as OpenAI's API does",
        body=ChatRequest, answer=ChatBody, stream=ChatChunkBody, example=_MESSAGES,
    ),
    _post(
        "/v1/completions", "completions", "Continue prompts, as OpenAI's API does",
        body=CompletionRequest, answer=CompletionBody, stream=CompletionBody, example=_PROMPT,
    ),
    _post(
        "/invocations", "sagemaker_compatibility", "The requests of `/`, chat or completions, for SageMaker",
        body=SagemakerRequest, answer=reference("SagemakerResponse"),
        stream=reference("SagemakerStreamResponse"), example=_INPUTS,
    ),
    _post(
        "/vertex", "vertex_compatibility", "Several prompts or conversations at once, for Vertex AI",
        body=VertexRequest, answer=reference("VertexResponse"), example={"instances": [_INPUTS]},
    ),
    _post(
        f"{_MODEL}/infer", "kserve_infer", "Several prompts at once, for KServe",
        body=InferenceRequest, answer=reference("InferenceResponse"),
        example={
            "id": "1",
            "inputs": [{"name": "a", "shape": [5], "datatype": "BYTES", "data": list(b"Hello")}],
            "outputs": [{"name": "a"}],
            "parameters": {"max_new_tokens": 20},
        },
    ),
    _post(
        "/tokenize", "tokenize", "The tokens of a text",
        body=GenerateRequest, answer=reference("TokenizeResponse"), errors=(*BODY_ERRORS, 404),
        example={"inputs": "Hello"},
    ),
    _post(
        "/chat_tokenize", "get_chat_tokenize", "The prompt that a conversation becomes, and its tokens",
        body=ChatRequest, answer=reference("ChatTokenizeResponse"), errors=(*BODY_ERRORS, 404),
        example=_MESSAGES,
    ),
    _post(
        "/detokenize", "detokenize", "The text of token ids",
        body=DetokenizeRequest, answer=DetokenizeBody, errors=BODY_ERRORS, example={"tokens": [5, 6]},
    ),
    _get("/", "root_health", "Whether the server is ready", errors=(503,)),
    _get("/health", "health", "Whether the server is ready", errors=(503,)),
    _get("/ping", "ping", "Whether the server is ready, for SageMaker", errors=(503,)),
    _get("/info", "get_model_info", "The model and the limits", answer=reference("Info"), errors=(503,)),
    _get("/metrics", "metrics", "Metrics for Prometheus", text=True),
    _get(
        "/v1/models", "openai_get_model_info", "The one model that is served",
        answer=ModelsBody, errors=(404, 503),
    ),
    _get(
        "/v1/models/{model}", "openai_get_model", "The model, if it has this name",
        answer=ModelBody, errors=(404, 503),
    ),
    _get("/v2", "kserve_metadata", "The server, for KServe", answer=reference("ServerMetadata")),
    _get("/v2/health/live", "kserve_live", "Whether there is a server", answer=reference("Readiness")),
    _get(
        "/v2/health/ready", "kserve_ready", "Whether it is ready",
        answer=reference("Readiness"), errors=(503,),
    ),
    _get(_MODEL, "kserve_model_metadata", "The model, for KServe", answer=reference("ServerMetadata")),
    _get(
        f"{_MODEL}/ready", "kserve_model_ready", "Whether the model is ready",
        answer=reference("Readiness"), errors=(503,),
    ),
    _get("/api-doc/openapi.json", "openapi", "This document", answer=dict),
)  # fmt: skip
