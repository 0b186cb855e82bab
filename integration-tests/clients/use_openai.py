"""OpenAI's own client: python use_openai.py URL."""

import asyncio
import json
import sys
from typing import Any, Literal

import openai
import pydantic

BASE = f"{sys.argv[1]}/v1"
MODEL = "tgi-demo"
PROMPT = "What is a violin?"
TOKENS = [0, 283, 265, 263, 1721, 264, 36]
"""The same for the demo model."""
QUESTION: Any = [{"role": "user", "content": PROMPT}]
client = openai.OpenAI(base_url=BASE, api_key="-", max_retries=0)


class Instrument(pydantic.BaseModel):
    """What answers are parsed into."""

    name: Literal["violin", "viola"]
    strings: int = pydantic.Field(ge=1, le=9)
    bowed: bool


class Define(pydantic.BaseModel):
    """Look a word up."""

    word: Literal["violin", "viola"]
    languages: list[Literal["en", "fr"]] = pydantic.Field(min_length=1, max_length=2)


TOOLS = [openai.pydantic_function_tool(Define, name="define")]


def models() -> Any:
    return [model.id for model in client.models.list()] + [client.models.retrieve(MODEL).id]


def chat() -> Any:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        max_completion_tokens=100,
        logprobs=True,
        top_logprobs=2,
        user="nobody",
    )
    return answer.model_dump()


def chat_stream() -> Any:
    events = client.chat.completions.create(
        model=MODEL, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    return [event.model_dump() for event in events]


def chat_stop() -> Any:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, stop=" is")
    return answer.choices[0].model_dump()


def chat_choices() -> Any:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, n=3, seed=1, max_tokens=20)
    return [choice.model_dump() for choice in answer.choices]


def tools() -> Any:
    """A forced call, its result handed back, and the answer to that."""
    asked = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
    ).choices[0]
    call = asked.message.tool_calls[0]
    history = [
        *QUESTION,
        asked.message,
        {"role": "tool", "tool_call_id": call.id, "content": "a small fiddle"},
    ]
    told = client.chat.completions.create(
        model=MODEL, messages=history, temperature=0, tools=TOOLS, tool_choice="none", max_tokens=60
    ).choices[0]
    return {"asked": asked.model_dump(), "told": told.model_dump()}


def tools_stream() -> Any:
    """Of the named function; the client puts the pieces together, and parses them."""
    with client.chat.completions.stream(
        model=MODEL,
        messages=QUESTION,
        temperature=0,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "define"}},
    ) as stream:
        kinds = [event.type for event in stream]
        choice = stream.get_final_completion().choices[0]
    function = choice.message.tool_calls[0].function
    return {
        "kinds": kinds,
        "finish_reason": choice.finish_reason,
        "name": function.name,
        "parsed": function.parsed_arguments.model_dump(),
    }


def parse() -> Any:
    answer = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, temperature=0, response_format=Instrument
    )
    return answer.choices[0].message.parsed.model_dump()


def parse_stream() -> Any:
    with client.chat.completions.stream(
        model=MODEL, messages=QUESTION, temperature=0, response_format=Instrument
    ) as stream:
        return stream.get_final_completion().choices[0].message.parsed.model_dump()


def completions() -> Any:
    """Of one text, of two, of tokens, and of two rows of tokens."""
    prompts: Any = (PROMPT, [PROMPT, PROMPT], TOKENS, [TOKENS, TOKENS])
    return [
        client.completions.create(model=MODEL, prompt=prompt, temperature=0, max_tokens=12).model_dump()
        for prompt in prompts
    ]


def completions_scored() -> Any:
    """The log-probabilities of the prompt."""
    answer = client.completions.create(
        model=MODEL, prompt=PROMPT, temperature=0, max_tokens=1, echo=True, logprobs=1
    )
    return answer.choices[0].model_dump()


def completions_stream() -> Any:
    events = client.completions.create(
        model=MODEL, prompt=[PROMPT, "What is a viola?"], temperature=0, max_tokens=12, stream=True
    )
    texts = ["", ""]
    for event in events:
        for choice in event.choices:
            texts[choice.index] += choice.text
    return texts


def refused() -> Any:
    found = []
    for change in ({"max_tokens": 10**6}, {"top_p": 2.0}, {"temperature": -1.0}):
        try:
            client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, **change})
        except openai.APIStatusError as error:
            found.append({"class": type(error).__name__, "message": error.message, "body": error.body})
    try:
        client.models.retrieve("unknown")
    except openai.NotFoundError as error:
        found.append({"class": type(error).__name__, "message": error.message, "body": error.body})
    return found


def asynchronous() -> Any:
    async def run() -> Any:
        async with openai.AsyncOpenAI(base_url=BASE, api_key="-") as client:
            answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0)
            events = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, temperature=0, stream=True
            )
            pieces = [event.choices[0].delta.content or "" async for event in events]
        return [answer.choices[0].message.content, "".join(pieces)]

    return asyncio.run(run())


CALLS = (
    models,
    chat,
    chat_stream,
    chat_stop,
    chat_choices,
    tools,
    tools_stream,
    parse,
    parse_stream,
    completions,
    completions_scored,
    completions_stream,
    refused,
    asynchronous,
)
print(json.dumps({call.__name__: call() for call in CALLS}))
