"""Completions: from prompts to sequences, and from tokens to the answer (tgi-behaviour 2.4, 3.6)."""

import functools
from collections.abc import Sequence as Items

from tgi.api.call import Call
from tgi.api.generate import Finished
from tgi.api.service import Engine

from .text import ChoiceText, LogprobColumns, joined, openai_reason
from .types import CompletionComplete, CompletionLogprobs, CompletionRequest


async def prompt_texts(call: Call[CompletionRequest]) -> list[str]:
    """Return the prompts as text, also those that came as ids."""
    texts = []
    for prompt in call.body.prompts:
        if isinstance(prompt, str):
            texts.append(prompt)
        else:
            decode = functools.partial(call.engine.tokenizer.decode, prompt)
            texts.append(await call.tokenized(decode, len(prompt)))
    return texts


def completion_choices(
    body: CompletionRequest, prompts: Items[str], engine: Engine, finished: Items[Finished]
) -> list[CompletionComplete]:
    """The choices for all prompts, of which `prompts` are the texts; by index.

    Of `best_of` the `n` with the best mean log-probability.
    """
    wanted = body.n or 1
    count = len(finished) // len(prompts)
    choices: list[CompletionComplete] = []
    for number, text in enumerate(prompts):
        of_prompt = finished[number * count : (number + 1) * count]
        if count > wanted:
            of_prompt = sorted(of_prompt, key=lambda one: one.mean_logprob, reverse=True)[:wanted]
        for one in of_prompt:
            choices.append(_choice(body, engine, len(choices), text, one))
    return choices


def _choice(
    body: CompletionRequest, engine: Engine, index: int, prompt: str, finished: Finished
) -> CompletionComplete:
    tokens = [] if body.echo and body.max_tokens == 0 else finished.tokens
    visible = ChoiceText(engine.tokenizer, body.stops)
    text = "".join([visible.feed(token) for token in tokens])
    logprobs = None
    if body.logprobs is not None:
        logprobs = _logprobs(body, engine, prompt, finished, tokens=tokens)
    return CompletionComplete(
        index, prompt + text if body.echo else text, logprobs, openai_reason(finished.reason)
    )


def _logprobs(
    body: CompletionRequest, engine: Engine, prompt: str, finished: Finished, tokens: Items[object]
) -> CompletionLogprobs:
    columns = LogprobColumns(engine.tokenizer, body.logprobs or 0)
    generated = finished.tokens if tokens else []
    if not body.echo:
        return columns.tokens(generated)
    return joined(columns.prompt(finished.sequence, prompt), columns.tokens(generated))
