"""huggingface_hub's InferenceClient: python use_huggingface_hub.py URL."""

import asyncio
import json
import sys
from typing import Any

from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import ValidationError

URL = sys.argv[1]
PROMPT = "What is a violin?"
QUESTION = [{"role": "user", "content": PROMPT}]
SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": ["violin", "viola"]}},
    "required": ["word"],
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "define", "description": "Look a word up", "parameters": SCHEMA},
}
client = InferenceClient(URL)


def about() -> Any:
    client = InferenceClient(URL, provider="hf-inference")
    info = client.get_endpoint_info()
    return {"model": info["model_id"], "version": info["version"], "healthy": client.health_check()}


def generate() -> Any:
    answer = client.text_generation(
        PROMPT, max_new_tokens=60, return_full_text=False, details=True, decoder_input_details=True
    )
    return {"text": answer.generated_text, "details": answer.details}


def generate_stream() -> Any:
    return list(client.text_generation(PROMPT, max_new_tokens=60, stream=True, details=True))


def grammar() -> Any:
    return client.text_generation(
        PROMPT, max_new_tokens=60, return_full_text=False, grammar={"type": "json", "value": SCHEMA}
    )


def chat() -> Any:
    return client.chat_completion(QUESTION, temperature=0.0, max_tokens=60, logprobs=True, top_logprobs=2)


def chat_stream() -> Any:
    return list(
        client.chat_completion(
            QUESTION, temperature=0.0, max_tokens=60, stream=True, stream_options={"include_usage": True}
        )
    )


def chat_tools() -> Any:
    return client.chat_completion(
        QUESTION,
        temperature=0.0,
        tools=[TOOL],
        tool_choice="required",
        extra_body={"parallel_tool_calls": False},
    )


def chat_tools_stream() -> Any:
    choice: Any = {"type": "function", "function": {"name": "define"}}
    return list(
        client.chat_completion(QUESTION, temperature=0.0, tools=[TOOL], tool_choice=choice, stream=True)
    )


def shaped() -> Any:
    """TGI's own form, and OpenAI's."""
    formats: list[Any] = [
        {"type": "json", "value": SCHEMA},
        {"type": "json_schema", "json_schema": {"name": "word", "schema": SCHEMA, "strict": True}},
    ]
    return [
        client.chat_completion(QUESTION, temperature=0.0, response_format=form).choices[0].message.content
        for form in formats
    ]


def refused() -> Any:
    try:
        client.text_generation(PROMPT, max_new_tokens=10**6)
    except ValidationError as error:
        return str(error)
    return None


def asynchronous() -> Any:
    async def run() -> Any:
        client = AsyncInferenceClient(URL)
        text = await client.text_generation(PROMPT, max_new_tokens=60, return_full_text=False)
        pieces = [
            piece async for piece in await client.text_generation(PROMPT, max_new_tokens=60, stream=True)
        ]
        chat = await client.chat_completion(QUESTION, temperature=0.0, max_tokens=60)
        events = await client.chat_completion(QUESTION, temperature=0.0, max_tokens=60, stream=True)
        deltas = [event.choices[0].delta.content or "" async for event in events]
        return {
            "text": text,
            "text_stream": "".join(pieces),
            "chat": chat.choices[0].message.content,
            "chat_stream": "".join(deltas),
        }

    return asyncio.run(run())


CALLS = (
    about,
    generate,
    generate_stream,
    grammar,
    chat,
    chat_stream,
    chat_tools,
    chat_tools_stream,
    shaped,
    refused,
    asynchronous,
)
print(json.dumps({call.__name__: call() for call in CALLS}))
