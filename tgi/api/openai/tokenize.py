"""`/tokenize` in the forms of TGI and of vLLM."""

import functools
from typing import Annotated, Any

import msgspec
from quart import Response

from tgi.api import native, native_bodies
from tgi.api.call import BODY_ERRORS, Call, json_answer, post
from tgi.sampling import about
from tgi.text.tokenizer import Piece

from .prompts import chat_prompt
from .requests import ChatRequest

_NAMES = about("Report the tokens' names in the vocabulary.")


class TokenizePromptRequest(msgspec.Struct):
    """A prompt, as vLLM's `/tokenize` takes it."""

    prompt: Annotated[str, about("The prompt.")]
    add_special_tokens: Annotated[bool | None, about("Put the tokenizer's own tokens before; null: yes.")] = (
        None
    )
    return_token_strs: Annotated[bool | None, _NAMES] = None


class TokenizeChatRequest(ChatRequest, kw_only=True):
    """A conversation, as vLLM's `/tokenize` takes it."""

    return_token_strs: Annotated[bool | None, _NAMES] = None


class VllmTokenizeResponse(msgspec.Struct):
    """The answer of `/tokenize` in vLLM's form."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


async def tokenize(call: Call[Any]) -> Response:
    """Answer `/tokenize`, in the form of the request."""
    body: TokenizePromptRequest | TokenizeChatRequest = call.body
    if isinstance(body, native_bodies.GenerateRequest):
        return await native.tokenize(call)
    tokenizer = call.engine.tokenizer
    if isinstance(body, TokenizePromptRequest):
        text, special = body.prompt, body.add_special_tokens is not False
    else:
        text = (await call.run_in_thread_if_large(lambda: chat_prompt(body, call.engine))).text
        special = bool(body.add_special_tokens)
    encode = functools.partial(tokenizer.encode, text, add_special_tokens=special)
    ids = await call.tokenized(encode, len(text))
    names = list(map(tokenizer.name, ids)) if body.return_token_strs else None
    return json_answer(VllmTokenizeResponse(len(ids), call.engine.limits.max_total_tokens, ids, names))


ROUTES = (
    post(
        "/tokenize", "tokenize", "The tokens of a text or a conversation", tokenize,
        native_bodies.GenerateRequest, TokenizePromptRequest, TokenizeChatRequest,
        answer=(list[Piece], VllmTokenizeResponse), errors=(*BODY_ERRORS, 404), example={"inputs": "Hello"},
    ),
)  # fmt: skip
