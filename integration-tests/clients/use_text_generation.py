"""text-generation, the client that TGI's own documentation shows: python use_text_generation.py URL.

Its `chat` cannot stream, from no server: it wants to parse the closing `[DONE]`.
"""

import asyncio
import json
import sys
from typing import Any

from text_generation import AsyncClient, Client
from text_generation.errors import ValidationError

URL = sys.argv[1]
PROMPT = "What is a violin?"
client = Client(URL, timeout=60)


def generate() -> Any:
    return client.generate(PROMPT, max_new_tokens=60, decoder_input_details=True).model_dump()


def generate_stream() -> Any:
    return [event.model_dump() for event in client.generate_stream(PROMPT, max_new_tokens=60)]


def grammar() -> Any:
    regex = {"type": "regex", "value": "[0-9]{3}-[0-9]{4}"}
    return client.generate(PROMPT, max_new_tokens=60, grammar=regex).generated_text


def sampled() -> Any:
    """Every parameter that the client knows."""
    answer = client.generate(
        PROMPT,
        do_sample=True,
        max_new_tokens=8,
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        seed=7,
        stop_sequences=["###"],
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        truncate=20,
        typical_p=0.9,
        watermark=True,
        top_n_tokens=2,
    )
    return answer.model_dump()


def best_of() -> Any:
    answer = client.generate(PROMPT, do_sample=True, max_new_tokens=8, best_of=2)
    return answer.model_dump()


def chat() -> Any:
    messages = [{"role": "user", "content": PROMPT}]
    return client.chat(messages, max_tokens=60, temperature=0.0).model_dump()


def chat_tools() -> Any:
    function = {
        "name": "define",
        "description": "Look a word up",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "enum": ["violin", "viola"]}},
            "required": ["word"],
        },
    }
    answer = client.chat(
        [{"role": "user", "content": PROMPT}],
        tools=[{"type": "function", "function": function}],
        tool_choice="define",
        max_tokens=60,
        temperature=0.0,
    )
    return answer.model_dump()


def refused() -> Any:
    try:
        client.generate(PROMPT, max_new_tokens=10**6)
    except ValidationError as error:
        return str(error)
    return None


def asynchronous() -> Any:
    async def run() -> Any:
        client = AsyncClient(URL, timeout=60)
        answer = await client.generate(PROMPT, max_new_tokens=60)
        events = [event.model_dump() async for event in client.generate_stream(PROMPT, max_new_tokens=60)]
        return {"generate": answer.model_dump(), "generate_stream": events}

    return asyncio.run(run())


CALLS = (generate, generate_stream, grammar, sampled, best_of, chat, chat_tools, refused, asynchronous)
print(json.dumps({call.__name__: call() for call in CALLS}))
