"""Routes that other platforms expect: SageMaker, Vertex AI, KServe (tgi-behaviour 1.1, 3.11)."""

import itertools
from collections.abc import Callable

import attrs
from quart import Blueprint, Response

from tgi import __version__
from tgi.api.answers import json_answer, read_body
from tgi.api.generate import Finished, best_first, generate
from tgi.api.native_answers import generated_text
from tgi.api.observe import Observer
from tgi.api.openai_chat import chat_choice, chat_prompt
from tgi.api.openai_parameters import chat_parameters
from tgi.api.openai_schema import (
    ChatRequest,
    CompletionRequest,
    InferenceInput,
    InferenceRequest,
    SagemakerRequest,
    VertexGenerate,
    VertexRequest,
)
from tgi.api.schema import CompatGenerateRequest, GenerateParameters, default_parameters
from tgi.api.service import Engine, Service
from tgi.api.validate import Generation, check_best_of, validate
from tgi.errors import NoInstances, NotUtf8, OutputsMismatch
from tgi.limits import Limits
from tgi.scheduler import Sequence

from .native import answer_compat_generate
from .openai import answer_chat, answer_completions


def routes(service: Service) -> Blueprint:
    """`/invocations`, `/vertex`, and KServe's inference."""
    blueprint = Blueprint("compat", __name__)

    @blueprint.post("/invocations")
    async def invocations() -> Response:
        engine = service.ready_engine()
        body = (await read_body(SagemakerRequest, service.tokenizing)).body
        if isinstance(body, CompatGenerateRequest):
            return await answer_compat_generate(body, service, engine)
        if isinstance(body, ChatRequest):
            return await answer_chat(body, service, engine)
        assert isinstance(body, CompletionRequest)
        return await answer_completions(body, service, engine)

    @blueprint.post("/vertex")
    async def vertex() -> Response:
        engine = service.ready_engine()
        body = await read_body(VertexRequest, service.tokenizing)
        observer = Observer.of_request(service)
        observer.received()
        with observer.failures():
            if not body.instances:
                raise NoInstances
            with service.permits(sum(_count(instance, engine.limits) for instance in body.instances)):
                predictions = [
                    await _chat_prediction(instance, service, engine)
                    if isinstance(instance, ChatRequest)
                    else await _prediction(
                        instance.inputs, instance.parameters or default_parameters(), service, engine
                    )
                    for instance in body.instances
                ]
                texts = await _texts(predictions, engine, observer)
        return json_answer({"predictions": texts})

    if service.options.aip_predict_route is not None:
        blueprint.post(service.options.aip_predict_route)(vertex)

    @blueprint.post("/v2/models/<name>/versions/<version>/infer")
    async def infer(name: str, version: str) -> Response:  # noqa: ARG001 (any name will do, R1.27)
        engine = service.ready_engine()
        body = await read_body(InferenceRequest, service.tokenizing)
        observer = Observer.of_request(service)
        observer.received()
        with observer.failures():
            if len(body.inputs) != len(body.outputs):
                raise OutputsMismatch
            with service.permits(len(body.inputs) * check_best_of(body.parameters, engine.limits)):
                predictions = [
                    await _prediction(_text_of(one), body.parameters, service, engine) for one in body.inputs
                ]
                texts = await _texts(predictions, engine, observer)
        outputs = [_output(out.name, text) for out, text in zip(body.outputs, texts, strict=True)]
        return json_answer({"id": body.id, "outputs": outputs})

    return blueprint


def kserve_routes(service: Service) -> Blueprint:
    """KServe's health and metadata, for anyone to see."""
    blueprint = Blueprint("kserve", __name__)

    @blueprint.get("/v2/health/live")
    async def live() -> Response:
        return json_answer({"live": True})

    @blueprint.get("/v2/health/ready")
    async def ready() -> Response:
        service.ready_engine()
        return json_answer({"live": True, "ready": True})

    @blueprint.get("/v2")
    async def metadata() -> Response:
        return json_answer(
            {
                "name": "text-generation-inference",
                "version": __version__,
                "extensions": ["health", "models", "metrics"],
            }
        )

    @blueprint.get("/v2/models/<name>/versions/<version>")
    async def model_metadata(name: str, version: str) -> Response:
        return json_answer({"name": name, "version": version, "extensions": ["infer", "ready"]})

    @blueprint.get("/v2/models/<name>/versions/<version>/ready")
    async def model_ready(name: str, version: str) -> Response:  # noqa: ARG001 (any name will do, R1.26)
        service.ready_engine()
        return json_answer({"live": True, "ready": True})

    return blueprint


def _count(instance: VertexGenerate | ChatRequest, limits: Limits) -> int:
    """How many texts are generated for this instance. Raises ValidationError."""
    if isinstance(instance, ChatRequest):
        return 1
    return check_best_of(instance.parameters or default_parameters(), limits)


@attrs.frozen
class _Prediction:
    """One text to generate."""

    sequences: list[Sequence]
    text: Callable[[list[Finished]], str]
    """Of what has become of the sequences."""


async def _prediction(
    inputs: str, parameters: GenerateParameters, service: Service, engine: Engine
) -> _Prediction:
    """Of a prompt. Raises ValidationError."""
    sequences = await validate(inputs, parameters, service, engine)
    generation = Generation(
        inputs=inputs,
        parameters=parameters,
        sequences=sequences,
        full_text=bool(parameters.return_full_text),
    )

    def text(finished: list[Finished]) -> str:
        best = best_first(finished)[0]
        return generated_text(generation, best.sequence, best.tokens[-1], engine.tokenizer)

    return _Prediction(sequences, text)


async def _chat_prediction(body: ChatRequest, service: Service, engine: Engine) -> _Prediction:
    """Of a chat, with tool calls as they were written. Raises what `chat_prompt` does."""
    body = attrs.evolve(body, n=None)
    parameters, extras = chat_parameters(body, engine)
    prompt = await chat_prompt(body, service, engine)
    sequences = await validate(
        prompt.text, parameters, service, engine, extras=extras, grammar=prompt.grammar
    )
    plain = attrs.evolve(prompt, answer=None)
    return _Prediction(
        sequences, lambda finished: chat_choice(body, plain, engine, 0, finished[0]).message.content or ""
    )


async def _texts(predictions: list[_Prediction], engine: Engine, observer: Observer) -> list[str]:
    """Generate them all at once; in their order."""
    everything = [sequence for prediction in predictions for sequence in prediction.sequences]
    observer.generations = len(everything)
    for prediction in predictions:
        observer.validated(prediction.sequences[0])
    finished = await generate(engine.scheduler, everything)
    for one in finished:
        observer.finished(one.sequence)
    remaining = iter(finished)
    return [
        prediction.text(list(itertools.islice(remaining, len(prediction.sequences))))
        for prediction in predictions
    ]


def _text_of(given: InferenceInput) -> str:
    try:
        return bytes(given.data).decode()
    except UnicodeDecodeError as error:
        raise NotUtf8(str(error)) from error


def _output(name: str, text: str) -> dict[str, object]:
    data = list(text.encode())
    return {"name": name, "shape": [1, len(data)], "datatype": "BYTES", "data": data}
