"""langchain-huggingface, with the server as an endpoint of its own: python use_langchain.py URL."""

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

PROMPT = "What is a violin?"
WORDS = ["violin", "viola"]
llm = HuggingFaceEndpoint(
    endpoint_url=sys.argv[1], max_new_tokens=60, temperature=None, top_p=None, typical_p=None
)
chat = ChatHuggingFace(llm=llm, temperature=0.0, max_tokens=60)
DEFINE = {
    "title": "define",
    "description": "Look a word up.",
    "type": "object",
    "properties": {"word": {"type": "string", "enum": WORDS}},
    "required": ["word"],
}


def complete() -> Any:
    return llm.invoke(PROMPT)


def complete_stop() -> Any:
    return llm.invoke(PROMPT, stop=[" is"])


def complete_stream() -> Any:
    return list(llm.stream(PROMPT))


def chat_invoke() -> Any:
    return chat.invoke(PROMPT).model_dump()


def chat_stream() -> Any:
    return [chunk.model_dump() for chunk in chat.stream(PROMPT, stream_usage=True)]


def chat_tools() -> Any:
    return chat.bind_tools([DEFINE], tool_choice="define").invoke(PROMPT).model_dump()


def chat_tool_result() -> Any:
    call = {"name": "define", "args": {"word": "violin"}, "id": "call00001", "type": "tool_call"}
    history = [
        HumanMessage(PROMPT),
        AIMessage("", tool_calls=[call]),
        ToolMessage("a small fiddle", tool_call_id=call["id"]),
    ]
    return chat.bind_tools([DEFINE]).invoke(history).model_dump()


def structured() -> Any:
    return {
        method: chat.with_structured_output(DEFINE, method=method).invoke(PROMPT)
        for method in ("function_calling", "json_schema")
    }


def asynchronous() -> Any:
    async def run() -> Any:
        return {
            "complete": await llm.ainvoke(PROMPT),
            "chat": (await chat.ainvoke(PROMPT)).content,
            "chat_stream": "".join([str(chunk.content) async for chunk in chat.astream(PROMPT)]),
        }

    return asyncio.run(run())


CALLS = (
    complete,
    complete_stop,
    complete_stream,
    chat_invoke,
    chat_stream,
    chat_tools,
    chat_tool_result,
    structured,
    asynchronous,
)
print(json.dumps({call.__name__: call() for call in CALLS}))
