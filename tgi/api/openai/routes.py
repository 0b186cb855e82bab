"""The routes of OpenAI's API, and `/chat_tokenize` and `/detokenize`, which speak of the same prompts."""

import functools
import time
from typing import Any

from quart import Response

from tgi.api.call import BODY_ERRORS, Call, get, post
from tgi.api.generate import Finished
from tgi.api.http import json_answer
from tgi.api.service import FINGERPRINT
from tgi.api.validate import check_known, make_sequences
from tgi.errors import UnknownModel
from tgi.scheduler import Sequence

from .chat import ChatPrompt, chat_choice, chat_prompt, usage_of
from .completions import completion_choices, prompt_texts
from .parameters import chat_count, chat_generation, completion_count, completion_generation
from .stream import ChatEvents, CompletionEvents, Head
from .types import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    ChatTokenizeResponse,
    CompletionFinal,
    CompletionRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    ModelInfo,
    ModelList,
    Usage,
)


async def chat_completions(call: Call[ChatRequest]) -> Response:
    """Answer a conversation, streamed or not."""
    body, engine = call.body, call.engine
    with call.generating():
        call.take_permits(chat_count(body, engine.limits))
        prompt, sequences = await chat_sequences(call, body)
        call.observer.generations = len(sequences)
        headers = call.prompt_headers(len(prompt.text))
        model = body.model if body.model not in (None, "tgi") else engine.model.served_name
        head = _head("chatcmpl", call, str(model))
        if body.stream:
            writer = ChatEvents(head, body, prompt, engine, sequences, call.observer)
            return await call.stream(sequences, writer, headers)
        finished = await call.generate(sequences)
        headers |= call.finish(finished)
    choices = [chat_choice(body, prompt, engine, index, one) for index, one in enumerate(finished)]
    answer = ChatCompletion(
        "chat.completion", head.id, head.created, head.model, head.fingerprint, choices, usage_of(finished)
    )
    return json_answer(answer, headers=headers)


async def chat_sequences(call: Call[Any], body: ChatRequest) -> tuple[ChatPrompt, list[Sequence]]:
    """Return the prompt of a conversation and its sequences. Raises ApiError."""
    prompt = await call.run_in_thread_if_large(lambda: chat_prompt(body, call.engine))
    return prompt, await make_sequences(call, chat_generation(call, body, prompt.text, prompt.grammar))


async def completions(call: Call[CompletionRequest]) -> Response:
    """Continue prompts, streamed or not."""
    body, engine = call.body, call.engine
    with call.generating():
        count = completion_count(body, engine.limits)
        call.take_permits(count * len(body.prompts))
        sequences: list[Sequence] = []
        for prompt in body.prompts:
            sequences += await make_sequences(call, completion_generation(call, prompt, count))
        call.observer.generations = len(sequences)
        prompts = await prompt_texts(call)
        headers = call.prompt_headers(sum(map(len, prompts)))
        head = _head("cmpl", call, engine.model.served_name)
        if body.stream:
            writer = CompletionEvents(head, body, engine, prompts, sequences, call.observer)
            return await call.stream(sequences, writer, headers)
        finished = await call.generate(sequences)
        headers |= call.finish(finished)
    del headers["x-compute-time"]  # as in TGI
    return json_answer(_completion_body(head, body, prompts, call, finished), headers=headers)


def _completion_body(
    head: Head, body: CompletionRequest, prompts: list[str], call: Call[Any], finished: list[Finished]
) -> CompletionFinal:
    choices = completion_choices(body, prompts, call.engine, finished)
    prompt_tokens = sum(len(one.sequence.prompt) for one in finished[:: len(finished) // len(prompts)])
    usage = Usage.of(prompt_tokens, sum(len(one.tokens) for one in finished))
    return CompletionFinal(
        "text_completion", head.id, head.created, head.model, head.fingerprint, choices, usage
    )


def _head(prefix: str, call: Call[Any], model: str) -> Head:
    return Head(f"{prefix}-{call.exchange.id}", int(time.time()), model, FINGERPRINT)


async def chat_tokenize(call: Call[ChatRequest]) -> Response:
    """Answer with the prompt that a conversation becomes, and its tokens."""
    engine = call.engine
    prompt = await call.run_in_thread_if_large(lambda: chat_prompt(call.body, engine))
    work = functools.partial(engine.tokenizer.tokenize, prompt.text, add_special_tokens=False)
    pieces = await call.tokenized(work, len(prompt.text))
    return json_answer(ChatTokenizeResponse(pieces, prompt.text))


async def detokenize(call: Call[DetokenizeRequest]) -> Response:
    """Answer with the text of token ids."""
    tokens = call.body.tokens
    check_known(tokens, call.engine)
    decode = functools.partial(call.engine.tokenizer.decode, tokens)
    return json_answer(DetokenizeResponse(await call.tokenized(decode, len(tokens))))


def _served_model(call: Call[None]) -> ModelInfo:
    name = call.service.loaded_engine().model.served_name
    return ModelInfo(name, "model", 0, name)


async def models(call: Call[None]) -> Response:
    """Answer with the one model."""
    return json_answer(ModelList("list", [_served_model(call)]))


async def model(call: Call[None]) -> Response:
    """Answer with the model if it has this name."""
    served = _served_model(call)
    if call.arguments["model"] != served.id:
        raise UnknownModel(call.arguments["model"])
    return json_answer(served)


_MESSAGES = {"messages": [{"role": "user", "content": "What is deep learning?"}], "max_tokens": 20}
ROUTES = (
    post(
        "/v1/chat/completions", "chat_completions", "Answer a conversation, as OpenAI's API does",
        chat_completions, ChatRequest, answer=ChatCompletion, stream=ChatCompletionChunk, example=_MESSAGES,
    ),
    post(
        "/v1/completions", "completions", "Continue prompts, as OpenAI's API does", completions,
        CompletionRequest, answer=CompletionFinal, stream=CompletionFinal,
        example={"prompt": "Deep learning is", "max_tokens": 20},
    ),
    post(
        "/chat_tokenize", "get_chat_tokenize", "The prompt that a conversation becomes, and its tokens",
        chat_tokenize, ChatRequest,
        answer=ChatTokenizeResponse, errors=(*BODY_ERRORS, 404), example=_MESSAGES,
    ),
    post(
        "/detokenize", "detokenize", "The text of token ids", detokenize,
        DetokenizeRequest, answer=DetokenizeResponse, errors=BODY_ERRORS, example={"tokens": [5, 6]},
    ),
    get(
        "/v1/models", "openai_get_model_info", "The one model that is served", models,
        answer=ModelList, errors=(404, 503),
    ),
    get(
        "/v1/models/<path:model>", "openai_get_model", "The model, if it has this name", model,
        answer=ModelInfo, errors=(404, 503),
    ),
)  # fmt: skip
