"""Completions: from prompts to sequences, and from tokens to the answer (tgi-behaviour 2.4, 3.6)."""

import functools
from collections.abc import Sequence as Items

from tgi.errors import BatchSizeExceeded, SuffixNotSupported
from tgi.scheduler import Sequence

from .generate import Finished
from .observe import Observer
from .openai_answers import CompletionChoiceBody, CompletionLogprobsBody
from .openai_schema import CompletionRequest
from .openai_text import ChoiceText, CompletionLogprobs, joined, openai_reason
from .schema import GenerateParameters
from .service import Engine, Service
from .validate import Extras, tokenized, validate


def check_prompts(body: CompletionRequest, engine: Engine) -> None:
    """V30, V31: raises SuffixNotSupported or BatchSizeExceeded."""
    if body.suffix is not None:
        raise SuffixNotSupported
    most = engine.limits.max_client_batch_size
    if len(body.prompt) > most:
        raise BatchSizeExceeded(str(most))


async def completion_sequences(
    body: CompletionRequest,
    parameters: GenerateParameters,
    extras: Extras,
    service: Service,
    engine: Engine,
    observer: Observer,
) -> list[Sequence]:
    """The sequences of all prompts, one prompt after another. Raises ValidationError."""
    sequences: list[Sequence] = []
    for prompt in body.prompt:
        of_prompt = await validate(prompt, parameters, service, engine, extras=extras)
        observer.validated(of_prompt[0])
        sequences += of_prompt
    return sequences


async def prompt_texts(body: CompletionRequest, service: Service, engine: Engine) -> list[str]:
    """The prompts as text, those that came as ids too."""
    texts = []
    for prompt in body.prompt:
        if isinstance(prompt, str):
            texts.append(prompt)
        else:
            decode = functools.partial(engine.tokenizer.decode, prompt)
            texts.append(await tokenized(decode, len(prompt), service.tokenizing))
    return texts


def completion_choices(
    body: CompletionRequest, prompts: Items[str], engine: Engine, finished: Items[Finished]
) -> list[CompletionChoiceBody]:
    """The choices for all prompts, of which `prompts` are the texts; by index.

    Of `best_of` the `n` with the best mean log-probability.
    """
    wanted = body.n or 1
    count = len(finished) // len(prompts)
    choices: list[CompletionChoiceBody] = []
    for number, text in enumerate(prompts):
        of_prompt = finished[number * count : (number + 1) * count]
        if count > wanted:
            of_prompt = sorted(of_prompt, key=lambda one: one.mean_logprob, reverse=True)[:wanted]
        for one in of_prompt:
            choices.append(_choice(body, engine, len(choices), text, one))
    return choices


def _choice(
    body: CompletionRequest, engine: Engine, index: int, prompt: str, finished: Finished
) -> CompletionChoiceBody:
    tokens = [] if body.echo and body.max_tokens == 0 else finished.tokens
    visible = ChoiceText(engine.tokenizer, body.stop or [])
    text = "".join([visible.feed(token) for token in tokens])
    logprobs = None
    if body.logprobs is not None:
        logprobs = _logprobs(body, engine, prompt, finished, tokens=tokens)
    return CompletionChoiceBody(
        index, prompt + text if body.echo else text, logprobs, openai_reason(finished.reason)
    )


def _logprobs(
    body: CompletionRequest, engine: Engine, prompt: str, finished: Finished, tokens: Items[object]
) -> CompletionLogprobsBody:
    columns = CompletionLogprobs(engine.tokenizer, body.logprobs or 0)
    generated = finished.tokens if tokens else []
    if not body.echo:
        return columns.tokens(generated)
    return joined(columns.prompt(finished.sequence, prompt), columns.tokens(generated))
