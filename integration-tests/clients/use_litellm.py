"""litellm, over two of its providers that fit: python use_litellm.py URL."""

import asyncio
import json
import os
import sys
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask the network for prices

import litellm

litellm.suppress_debug_info = True
QUESTION = [{"role": "user", "content": "What is a violin?"}]
DEFINE = {
    "type": "function",
    "function": {
        "name": "define",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "enum": ["violin", "viola"]}},
            "required": ["word"],
        },
    },
}
PROVIDERS = {
    "huggingface": {"model": "huggingface/tgi-demo", "api_base": sys.argv[1]},
    "hosted_vllm": {"model": "hosted_vllm/tgi-demo", "api_base": f"{sys.argv[1]}/v1"},
}


def ask(provider: str) -> Any:
    settings = {**PROVIDERS[provider], "api_key": "-", "max_tokens": 60, "temperature": 0}
    plain = litellm.completion(messages=QUESTION, **settings)
    chunks = litellm.completion(
        messages=QUESTION, stream=True, stream_options={"include_usage": True}, **settings
    )
    choice = {"type": "function", "function": {"name": "define"}}
    tools = litellm.completion(messages=QUESTION, tools=[DEFINE], tool_choice=choice, **settings)
    schema = DEFINE["function"]["parameters"]
    shaped = litellm.completion(
        messages=QUESTION,
        response_format={"type": "json_schema", "json_schema": {"name": "define", "schema": schema}},
        **settings,
    )
    later = asyncio.run(litellm.acompletion(messages=QUESTION, **settings))
    return {
        "plain": plain.model_dump(),
        "stream": [chunk.model_dump() for chunk in chunks],
        "tools": tools.model_dump(),
        "shaped": shaped.choices[0].message.content,
        "asynchronous": later.choices[0].message.content,
    }


def refused() -> Any:
    try:
        litellm.completion(messages=QUESTION, max_tokens=10**6, **PROVIDERS["hosted_vllm"], api_key="-")
    except litellm.BadRequestError as error:
        return {"status": error.status_code, "text": str(error)}
    return None


print(json.dumps({**{provider: ask(provider) for provider in PROVIDERS}, "refused": refused()}))
