"""TGI's own generation routes."""

import functools
from contextlib import ExitStack

from quart import Blueprint, Response

from tgi.api.answers import json_answer, read_body
from tgi.api.generate import best_first, generate, prompt_headers, timing_headers
from tgi.api.native_answers import NativeEvents, answer
from tgi.api.observe import Observer
from tgi.api.schema import CompatGenerateRequest, GenerateParameters, GenerateRequest
from tgi.api.service import Engine, Service
from tgi.api.stream import stream_answer
from tgi.api.validate import Generation, check_best_of, check_streamable, tokenized, validate


def routes(service: Service) -> Blueprint:
    """`/generate`, `/generate_stream`, POST `/` and `/tokenize`."""
    blueprint = Blueprint("native", __name__)

    @blueprint.post("/generate")
    async def generate_route() -> Response:
        engine = service.ready_engine()
        body = await read_body(GenerateRequest, service.tokenizing)
        full_text = bool(body.parameters.return_full_text)
        return await _generate(service, engine, body.inputs, body.parameters, full_text, in_list=False)

    @blueprint.post("/generate_stream")
    async def generate_stream() -> Response:
        engine = service.ready_engine()
        body = await read_body(GenerateRequest, service.tokenizing)
        full_text = bool(body.parameters.return_full_text)
        return await _stream(service, engine, body.inputs, body.parameters, full_text)

    @blueprint.post("/")
    async def compat_generate() -> Response:
        engine = service.ready_engine()
        body = await read_body(CompatGenerateRequest, service.tokenizing)
        return await answer_compat_generate(body, service, engine)

    @blueprint.post("/tokenize")
    async def tokenize_route() -> Response:
        engine = service.ready_engine()
        body = await read_body(GenerateRequest, service.tokenizing)
        tokenize = functools.partial(engine.tokenizer.tokenize, body.inputs)
        return json_answer(await tokenized(tokenize, len(body.inputs), service.tokenizing))

    return blueprint


async def answer_compat_generate(body: CompatGenerateRequest, service: Service, engine: Engine) -> Response:
    """TGI's route for its clients: a list of one answer, or a stream."""
    full_text = body.parameters.return_full_text
    if full_text is None:  # R2.70
        full_text = engine.model.pipeline_tag in (None, "text-generation")
    if body.stream:
        return await _stream(service, engine, body.inputs, body.parameters, full_text)
    return await _generate(service, engine, body.inputs, body.parameters, full_text, in_list=True)


async def _validated(
    service: Service,
    engine: Engine,
    observer: Observer,
    inputs: str,
    parameters: GenerateParameters,
    full_text: bool,
) -> Generation:
    sequences = await validate(inputs, parameters, service, engine)
    observer.validated(sequences[0])
    return Generation(inputs=inputs, parameters=parameters, sequences=sequences, full_text=full_text)


async def _generate(
    service: Service,
    engine: Engine,
    inputs: str,
    parameters: GenerateParameters,
    full_text: bool,
    *,
    in_list: bool,
) -> Response:
    observer = Observer.of_request(service)
    observer.received()
    with ExitStack() as held, observer.failures():
        held.enter_context(service.permits(check_best_of(parameters, engine.limits)))
        generation = await _validated(service, engine, observer, inputs, parameters, full_text)
        finished = best_first(await generate(engine.scheduler, generation.sequences))
    sequence = finished[0].sequence
    timings = observer.finished(sequence)
    body = answer(generation, finished, engine.tokenizer)
    headers = prompt_headers(len(inputs), service.options.compute_type)
    headers |= timing_headers([(sequence, timings)])
    return json_answer([body] if in_list else body, headers=headers)


async def _stream(
    service: Service, engine: Engine, inputs: str, parameters: GenerateParameters, full_text: bool
) -> Response:
    """The permit and the sequence are given back with the last event, or when the request ends otherwise."""
    observer = Observer.of_request(service)
    observer.received()
    with ExitStack() as held, observer.failures():
        check_streamable(parameters)
        held.enter_context(service.permits(1))
        generation = await _validated(service, engine, observer, inputs, parameters, full_text)
        receive = held.enter_context(engine.scheduler.generating_all(generation.sequences))
        writer = NativeEvents(generation, engine.tokenizer, observer)
        headers = prompt_headers(len(inputs), service.options.compute_type)
        return await stream_answer(receive, writer, held, observer.deadline, headers)
