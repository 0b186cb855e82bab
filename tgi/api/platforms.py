"""Routes that other platforms expect: SageMaker, Vertex AI, KServe (tgi-behaviour 1.1, 3.11)."""

import itertools
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType
from quart import Response

from tgi import __version__
from tgi.errors import NoInstances, NotUtf8, OutputsMismatch, Overloaded
from tgi.sampling import about
from tgi.scheduler import Sequence

from .bodies import decode
from .call import Call, get, json_answer, post
from .loras import lora_of_id
from .native import compat_generate, generated_text, generation_of
from .native_bodies import (
    CompatGenerateRequest,
    GenerateParameters,
    GenerateResponse,
    StreamResponse,
    USize,
    default_parameters,
)
from .openai import answers, requests
from .openai.answers import VisibleText
from .openai.chat import chat_completions
from .openai.completions import completions
from .openai.prompts import chat_sequences
from .stream import Finished, best_first
from .validate import make_sequences


class GenerateVertexInstance(msgspec.Struct):
    """A prompt for `/vertex`. TGI reads `max_new_tokens` and `seed` only (R2.75)."""

    inputs: Annotated[str, about("The prompt.")]
    parameters: Annotated[GenerateParameters | None, about("How to generate.")] = None


INSTANCES = GenerateVertexInstance, requests.ChatRequest


class VertexRequest(msgspec.Struct):
    """The body of `/vertex`."""

    instances: Annotated[
        list[Raw],
        about(
            "Prompts and conversations.",
            minItems=1,
            items={"anyOf": [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in INSTANCES]},
        ),
    ]


class VertexResponse(msgspec.Struct):
    """The answer of `/vertex`, in the order of the instances."""

    predictions: list[str]


class Input(msgspec.Struct):
    """A prompt for KServe."""

    name: str
    shape: Annotated[list[USize], about("Ignored.")]
    datatype: Annotated[str, about("Ignored.")]
    data: Annotated[list[Annotated[int, Meta(ge=0, le=255)]], about("The bytes of the text in UTF-8.")]


class Output(msgspec.Struct):
    """The name of an answer for KServe."""

    name: str


class InferenceRequest(msgspec.Struct):
    """The body of KServe's `/v2/models/{name}/versions/{version}/infer`."""

    id: str
    inputs: Annotated[list[Input], about("Prompts.")]
    outputs: Annotated[list[Output], about("As many as there are inputs.")]
    parameters: Annotated[GenerateParameters, about("How to generate.")] = msgspec.field(
        default_factory=default_parameters
    )


class InferenceOutput(msgspec.Struct):
    """A generated text; `data` are its bytes in UTF-8."""

    name: str
    shape: list[int]
    datatype: str
    data: list[int]


class InferenceResponse(msgspec.Struct):
    """The answer of KServe's inference."""

    id: str
    outputs: list[InferenceOutput]


class ServerMetadata(msgspec.Struct):
    """The name and the abilities of a server or a model, for KServe."""

    name: str
    version: str
    extensions: list[str]


class Readiness(msgspec.Struct):
    """The health of a server or a model, for KServe."""

    live: bool
    ready: bool | UnsetType = UNSET


async def invocations(call: Call[Any]) -> Response:
    """Answer a request of `/`, chat or completions, for SageMaker."""
    if isinstance(call.body, CompatGenerateRequest):
        return await compat_generate(call)
    return await (chat_completions if isinstance(call.body, requests.ChatRequest) else completions)(call)


_Prediction = tuple[list[Sequence], Callable[[list[Finished]], str]]
"""Sequences of a text to generate, and the function that makes it of them once they have finished."""


async def vertex(call: Call[VertexRequest]) -> Response:
    """Answer several prompts or conversations at once, for Vertex AI."""
    if len(call.body.instances) > call.engine.limits.max_concurrent_requests:
        with call.generating():
            raise Overloaded  # before they are read, which would keep everybody else waiting
    instances: list[GenerateVertexInstance | requests.ChatRequest] = [
        decode(bytes(raw), *INSTANCES, at=f"$.instances[{index}]")
        for index, raw in enumerate(call.body.instances)
    ]
    with call.generating():
        if not instances:
            raise NoInstances
        limits = call.engine.limits
        call.take_permits(
            sum(
                1
                if isinstance(one, requests.ChatRequest) or not one.parameters
                else one.parameters.count(limits)
                for one in instances
            )
        )
        predictions = [
            await _chat_prediction(call, instance)
            if isinstance(instance, requests.ChatRequest)
            else await _prediction(call, instance.inputs, instance.parameters or default_parameters())
            for instance in instances
        ]
        return json_answer(VertexResponse(await _texts(call, predictions)))


async def infer(call: Call[InferenceRequest]) -> Response:
    """Answer several prompts at once, for KServe; any model's name will do (R1.27)."""
    body = call.body
    with call.generating():
        if len(body.inputs) != len(body.outputs):
            raise OutputsMismatch
        call.take_permits(len(body.inputs) * body.parameters.count(call.engine.limits))
        predictions = [await _prediction(call, _text_of(given), body.parameters) for given in body.inputs]
        texts = await _texts(call, predictions)
    encoded = [list(text.encode()) for text in texts]
    outputs = [
        InferenceOutput(output.name, [1, len(data)], "BYTES", data)
        for output, data in zip(body.outputs, encoded, strict=True)
    ]
    return json_answer(InferenceResponse(body.id, outputs))


async def _prediction(call: Call[Any], inputs: str, parameters: GenerateParameters) -> _Prediction:
    """Return the prediction of a prompt. Raises ValidationError."""
    prefix = inputs if parameters.return_full_text else ""
    special = call.engine.tokenizer.special_ids
    named = parameters.adapter_id
    lora = lora_of_id(call.engine, named) if named else None
    sequences = await make_sequences(call, generation_of(inputs, parameters, lora))
    return sequences, lambda finished: prefix + generated_text(best_first(finished)[0], special)


async def _chat_prediction(call: Call[Any], body: requests.ChatRequest) -> _Prediction:
    """Return the prediction of a conversation, with tool calls as they were written. Raises ApiError."""
    body.n = None
    _, sequences = await chat_sequences(call, body)
    text = VisibleText(call.engine.tokenizer, body)
    return sequences, lambda finished: "".join(map(text.feed, finished[0].tokens))


async def _texts(call: Call[Any], predictions: list[_Prediction]) -> list[str]:
    """Generate all predictions at once, and return their texts in order."""
    sequences = [sequence for given, _ in predictions for sequence in given]
    call.observer.generations = len(sequences)
    finished = await call.generate(sequences)
    for one in finished:
        call.observer.finished(one.sequence)
    remaining = iter(finished)
    return [text(list(itertools.islice(remaining, len(given)))) for given, text in predictions]


def _text_of(given: Input) -> str:
    try:
        return bytes(given.data).decode()
    except UnicodeDecodeError as error:
        raise NotUtf8(str(error)) from error


async def live(_call: Call[None]) -> Response:
    """Answer that the server lives."""
    return json_answer(Readiness(live=True))


async def ready(call: Call[None]) -> Response:
    """Answer that the server is ready, for any model's name (R1.26). Raises Unavailable."""
    call.service.check_health()
    return json_answer(Readiness(live=True, ready=True))


async def metadata(_call: Call[None]) -> Response:
    """Answer with the metadata of the server, for KServe."""
    body = ServerMetadata("text-generation-inference", __version__, ["health", "models", "metrics"])
    return json_answer(body)


async def model_metadata(call: Call[None]) -> Response:
    """Answer with the metadata of a model of any name, for KServe."""
    return json_answer(ServerMetadata(call.arguments["name"], call.arguments["version"], ["infer", "ready"]))


_MODEL = "/v2/models/<name>/versions/<version>"
_INPUTS = {"inputs": "What is deep learning?", "parameters": {"max_new_tokens": 20}}
ROUTES = (
    post(
        "/vertex", "vertex_compatibility", "Several prompts or conversations at once, for Vertex AI", vertex,
        VertexRequest, answer=VertexResponse, example={"instances": [_INPUTS]},
    ),
    post(
        "/invocations", "sagemaker_compatibility", "The requests of `/`, chat or completions, for SageMaker",
        invocations, CompatGenerateRequest, requests.ChatRequest, requests.CompletionRequest,
        answer=(list[GenerateResponse], answers.ChatCompletion, answers.CompletionFinal),
        stream=(StreamResponse, answers.ChatCompletionChunk, answers.CompletionFinal),
        example=_INPUTS,
    ),
    post(
        f"{_MODEL}/infer", "kserve_infer", "Several prompts at once, for KServe", infer,
        InferenceRequest, answer=InferenceResponse,
        example={
            "id": "1",
            "inputs": [{"name": "a", "shape": [5], "datatype": "BYTES", "data": list(b"Hello")}],
            "outputs": [{"name": "a"}],
            "parameters": {"max_new_tokens": 20},
        },
    ),
    get("/v2", "kserve_metadata", "The server, for KServe", metadata, answer=ServerMetadata),
    get("/v2/health/live", "kserve_live", "Whether the server lives", live, answer=Readiness),
    get("/v2/health/ready", "kserve_ready", "Whether it is ready", ready, answer=Readiness, errors=(503,)),
    get(_MODEL, "kserve_model_metadata", "The model, for KServe", model_metadata, answer=ServerMetadata),
    get(
        f"{_MODEL}/ready", "kserve_model_ready", "Whether the model is ready", ready,
        answer=Readiness, errors=(503,),
    ),
)  # fmt: skip
