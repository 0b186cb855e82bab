"""llama-index over its class for servers of OpenAI's API: python use_llama_index.py URL."""

import asyncio
import json
import sys
from typing import Any, Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

PROMPT = "What is a violin?"
GIVEN: Any = {"model": "tgi-demo", "api_base": f"{sys.argv[1]}/v1", "api_key": "-", "temperature": 0.0}
CHAT = OpenAILike(is_chat_model=True, is_function_calling_model=True, **GIVEN)
TEXT = OpenAILike(is_chat_model=False, max_tokens=60, **GIVEN)
MESSAGES = [ChatMessage(role="user", content=PROMPT)]


class Word(BaseModel):
    """A word to look up."""

    word: Literal["violin", "viola"]


def define(word: Literal["violin", "viola"]) -> str:
    """Look a word up."""
    return word


def complete() -> Any:
    return TEXT.complete(PROMPT).text


def complete_stream() -> Any:
    return "".join(piece.delta or "" for piece in TEXT.stream_complete(PROMPT))


def chat() -> Any:
    return CHAT.chat(MESSAGES).message.content


def chat_stream() -> Any:
    return "".join(piece.delta or "" for piece in CHAT.stream_chat(MESSAGES))


def asynchronous() -> Any:
    return asyncio.run(CHAT.achat(MESSAGES)).message.content


def tools() -> Any:
    answer = CHAT.chat_with_tools([FunctionTool.from_defaults(define)], PROMPT, tool_required=True)
    return [call.tool_kwargs["word"] for call in CHAT.get_tool_calls_from_response(answer)]


def structured() -> Any:
    return CHAT.as_structured_llm(Word).complete(PROMPT).raw.word


CALLS = (complete, complete_stream, chat, chat_stream, asynchronous, tools, structured)
print(json.dumps({call.__name__: call() for call in CALLS}))
