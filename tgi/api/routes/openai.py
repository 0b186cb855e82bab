"""The routes of OpenAI's API, and `/chat_tokenize` and `/detokenize`, which speak of the same prompts."""

import functools
import time
from contextlib import ExitStack

from quart import Blueprint, Response

from tgi.api.answers import json_answer, read_body
from tgi.api.generate import Finished, generate, prompt_headers, timing_headers
from tgi.api.observe import Observer
from tgi.api.openai_answers import ChatBody, CompletionBody, DetokenizeBody, ModelBody, ModelsBody, UsageBody
from tgi.api.openai_chat import ChatPrompt, chat_choice, chat_prompt, usage_of
from tgi.api.openai_completions import (
    check_prompts,
    completion_choices,
    completion_sequences,
    prompt_texts,
)
from tgi.api.openai_parameters import chat_parameters, completion_parameters
from tgi.api.openai_schema import ChatRequest, CompletionRequest, DetokenizeRequest
from tgi.api.openai_stream import ChatEvents, CompletionEvents, Head
from tgi.api.service import FINGERPRINT, Engine, Service
from tgi.api.stream import stream_answer
from tgi.api.validate import check_known, tokenized, validate
from tgi.errors import UnknownModel


def routes(service: Service) -> Blueprint:
    """`/v1/...`, `/chat_tokenize`, `/detokenize`."""
    blueprint = Blueprint("openai", __name__)

    @blueprint.post("/v1/chat/completions")
    async def chat_completions() -> Response:
        engine = service.ready_engine()
        body = await read_body(ChatRequest, service.tokenizing)
        return await answer_chat(body, service, engine)

    @blueprint.post("/v1/completions")
    async def completions() -> Response:
        engine = service.ready_engine()
        body = await read_body(CompletionRequest, service.tokenizing)
        return await answer_completions(body, service, engine)

    @blueprint.post("/chat_tokenize")
    async def chat_tokenize() -> Response:
        engine = service.ready_engine()
        body = await read_body(ChatRequest, service.tokenizing)
        prompt = await chat_prompt(body, service, engine)
        tokenize = functools.partial(engine.tokenizer.tokenize, prompt.text, add_special_tokens=False)
        pieces = await tokenized(tokenize, len(prompt.text), service.tokenizing)
        return json_answer({"tokenize_response": pieces, "templated_text": prompt.text})

    @blueprint.post("/detokenize")
    async def detokenize() -> Response:
        engine = service.ready_engine()
        body = await read_body(DetokenizeRequest, service.tokenizing)
        check_known(body.tokens, engine)
        decode = functools.partial(engine.tokenizer.decode, body.tokens)
        return json_answer(DetokenizeBody(await tokenized(decode, len(body.tokens), service.tokenizing)))

    return blueprint


def model_routes(service: Service) -> Blueprint:
    """`/v1/models`: what is served, for anyone to see."""
    blueprint = Blueprint("models", __name__)

    def described() -> ModelBody:
        name = service.loaded_engine().model.served_name
        return ModelBody(name, "model", 0, name)

    @blueprint.get("/v1/models")
    async def models() -> Response:
        return json_answer(ModelsBody("list", [described()]))

    @blueprint.get("/v1/models/<path:name>")
    async def model(name: str) -> Response:
        body = described()
        if name != body.id:
            raise UnknownModel(name)
        return json_answer(body)

    return blueprint


async def answer_chat(body: ChatRequest, service: Service, engine: Engine) -> Response:
    """Chat, streamed or not. The permits and sequences are given back when the answer has ended."""
    observer = Observer.of_request(service)
    observer.received()
    with ExitStack() as held, observer.failures():
        parameters, extras = chat_parameters(body, engine)
        held.enter_context(service.permits(extras.count))
        prompt = await chat_prompt(body, service, engine)
        sequences = await validate(
            prompt.text, parameters, service, engine, extras=extras, grammar=prompt.grammar
        )
        observer.validated(sequences[0])
        observer.generations = len(sequences)
        headers = prompt_headers(len(prompt.text), service.options.compute_type)
        model = body.model if body.model not in (None, "tgi") else engine.model.served_name
        head = _head("chatcmpl", observer, str(model))
        if body.stream:
            receive = held.enter_context(engine.scheduler.generating_all(sequences))
            writer = ChatEvents(head, body, prompt, engine, sequences, observer)
            return await stream_answer(receive, writer, held, observer.deadline, headers)
        finished = await generate(engine.scheduler, sequences)
    headers |= _observe(finished, observer)
    return json_answer(_chat_body(head, body, prompt, engine, finished), headers=headers)


async def answer_completions(body: CompletionRequest, service: Service, engine: Engine) -> Response:
    """Completions, streamed or not. The permits and sequences are given back when the answer has ended."""
    observer = Observer.of_request(service)
    observer.received()
    with ExitStack() as held, observer.failures():
        check_prompts(body, engine)
        parameters, extras = completion_parameters(body, engine)
        held.enter_context(service.permits(extras.count * len(body.prompt)))
        sequences = await completion_sequences(body, parameters, extras, service, engine, observer)
        observer.generations = len(sequences)
        prompts = await prompt_texts(body, service, engine)
        headers = prompt_headers(sum(map(len, prompts)), service.options.compute_type)
        head = _head("cmpl", observer, engine.model.served_name)
        if body.stream:
            receive = held.enter_context(engine.scheduler.generating_all(sequences))
            writer = CompletionEvents(head, body, engine, prompts, sequences, observer)
            return await stream_answer(receive, writer, held, observer.deadline, headers)
        finished = await generate(engine.scheduler, sequences)
    headers |= _observe(finished, observer)
    del headers["x-compute-time"]  # as in TGI
    return json_answer(_completion_body(head, body, prompts, engine, finished), headers=headers)


def _head(prefix: str, observer: Observer, model: str) -> Head:
    return Head(f"{prefix}-{observer.id}", int(time.time()), model, FINGERPRINT)


def _observe(finished: list[Finished], observer: Observer) -> dict[str, str]:
    """Tell of each sequence; gives the headers of all."""
    return timing_headers([(one.sequence, observer.finished(one.sequence)) for one in finished])


def _chat_body(
    head: Head, body: ChatRequest, prompt: ChatPrompt, engine: Engine, finished: list[Finished]
) -> ChatBody:
    choices = [chat_choice(body, prompt, engine, index, one) for index, one in enumerate(finished)]
    return ChatBody(
        "chat.completion", head.id, head.created, head.model, head.fingerprint, choices, usage_of(finished)
    )


def _completion_body(
    head: Head, body: CompletionRequest, prompts: list[str], engine: Engine, finished: list[Finished]
) -> CompletionBody:
    choices = completion_choices(body, prompts, engine, finished)
    prompt = sum(len(one.sequence.prompt) for one in finished[:: len(finished) // len(prompts)])
    usage = UsageBody.of(prompt, sum(len(one.tokens) for one in finished))
    return CompletionBody(
        "text_completion", head.id, head.created, head.model, head.fingerprint, choices, usage
    )
