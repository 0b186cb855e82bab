"""Routes that other platforms expect: SageMaker, Vertex AI, KServe (tgi-behaviour 1.1, 3.11)."""

import attrs
from quart import Blueprint, Response

from tgi import __version__
from tgi.api.answers import json_answer, read_body
from tgi.api.generate import Finished, best_first, generate
from tgi.api.native_answers import generated_text
from tgi.api.observe import Observer, Timings
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
from tgi.api.schema import CompatGenerateRequest, GenerateParameters
from tgi.api.service import Engine, Service
from tgi.api.validate import Generation, check_best_of, validate
from tgi.errors import NoInstances, NotUtf8, OutputsMismatch

from .native import answer_compat_generate
from .openai import answer_chat, answer_completions


def routes(service: Service) -> Blueprint:
    """`/invocations`, `/vertex`, and KServe's inference."""
    blueprint = Blueprint("compat", __name__)

    @blueprint.post("/invocations")
    async def invocations() -> Response:
        engine = service.ready_engine()
        body = (await read_body(SagemakerRequest)).body
        if isinstance(body, CompatGenerateRequest):
            return await answer_compat_generate(body, service, engine)
        if isinstance(body, ChatRequest):
            return await answer_chat(body, service, engine)
        assert isinstance(body, CompletionRequest)
        return await answer_completions(body, service, engine)

    @blueprint.post("/vertex")
    async def vertex() -> Response:
        engine = service.ready_engine()
        body = await read_body(VertexRequest)
        observer = Observer.of_request(service)
        observer.received()
        with observer.failures():
            if not body.instances:
                raise NoInstances
            observer.generations = len(body.instances)
            with service.permits(len(body.instances)):
                texts = await _predict(body, service, engine, observer)
        return json_answer({"predictions": texts})

    if service.options.aip_predict_route is not None:
        blueprint.post(service.options.aip_predict_route)(vertex)

    @blueprint.post("/v2/models/<name>/versions/<version>/infer")
    async def infer(name: str, version: str) -> Response:  # noqa: ARG001 (any name will do, R1.27)
        engine = service.ready_engine()
        body = await read_body(InferenceRequest)
        observer = Observer.of_request(service)
        observer.received()
        with observer.failures():
            if len(body.inputs) != len(body.outputs):
                raise OutputsMismatch
            parameters = body.parameters
            observer.generations = len(body.inputs)
            with service.permits(len(body.inputs) * check_best_of(parameters, engine.limits)):
                prompts = [(_text_of(one), parameters) for one in body.inputs]
                texts = await _texts(prompts, service, engine, observer)
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


async def _predict(
    body: VertexRequest, service: Service, engine: Engine, observer: Observer
) -> list[str]:
    """The texts of all instances, in their order. Chat instances answer with the text as it was written."""
    texts: dict[int, str] = {}
    prompts: list[tuple[str, GenerateParameters]] = []
    places: list[int] = []
    for place, instance in enumerate(body.instances):
        if isinstance(instance, VertexGenerate):
            prompts.append((instance.inputs, instance.parameters or GenerateParameters(do_sample=True)))
            places.append(place)
        else:
            texts[place] = await _chat_text(instance, service, engine, observer)
    for place, text in zip(places, await _texts(prompts, service, engine, observer), strict=True):
        texts[place] = text
    return [text for _, text in sorted(texts.items())]


async def _chat_text(body: ChatRequest, service: Service, engine: Engine, observer: Observer) -> str:
    body = attrs.evolve(body, n=None)
    parameters, extras = chat_parameters(body, engine)
    prompt = await chat_prompt(body, service, engine)
    sequences = await validate(
        prompt.text, parameters, service, engine, extras=extras, grammar=prompt.grammar
    )
    observer.validated(sequences[0])
    (finished,) = await generate(engine.scheduler, sequences, observer)
    observer.finished(finished.sequence, Timings.of(finished.sequence))
    plain = attrs.evolve(prompt, format=None)
    return chat_choice(body, plain, engine, 0, finished).message.content or ""


async def _texts(
    prompts: list[tuple[str, GenerateParameters]], service: Service, engine: Engine, observer: Observer
) -> list[str]:
    """Generate for all prompts at once."""
    generations = []
    for inputs, parameters in prompts:
        sequences = await validate(inputs, parameters, service, engine)
        observer.validated(sequences[0])
        full_text = bool(parameters.return_full_text)
        generations.append(
            Generation(inputs=inputs, parameters=parameters, sequences=sequences, full_text=full_text)
        )
    everything = [sequence for generation in generations for sequence in generation.sequences]
    finished = await generate(engine.scheduler, everything, observer)
    texts = []
    for generation in generations:
        mine, finished = finished[: len(generation.sequences)], finished[len(generation.sequences) :]
        texts.append(_best_text(generation, mine, engine, observer))
    return texts


def _best_text(generation: Generation, finished: list[Finished], engine: Engine, observer: Observer) -> str:
    best = best_first(finished)[0]
    observer.finished(best.sequence, Timings.of(best.sequence))
    return generated_text(generation, best.sequence, best.tokens[-1], engine.tokenizer)


def _text_of(given: InferenceInput) -> str:
    try:
        return bytes(given.data).decode()
    except UnicodeDecodeError as error:
        raise NotUtf8(str(error)) from error


def _output(name: str, text: str) -> dict[str, object]:
    data = list(text.encode())
    return {"name": name, "shape": [1, len(data)], "datatype": "BYTES", "data": data}
