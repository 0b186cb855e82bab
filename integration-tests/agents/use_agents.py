"""Frameworks for agents and structured output: python use_agents.py URL prints what each got, a line each."""

import asyncio
import json
import os
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

os.environ |= {
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "OPENAI_API_KEY": "-",
}

from pydantic import BaseModel

URL = f"{sys.argv[1]}/v1"
MODEL, KEY = "tgi-demo", "-"
QUESTION = "What is a violin?"
WORDS = ("violin", "viola")


class Word(BaseModel):
    """A word to look up."""

    word: Literal["violin", "viola"]


def pydantic_ai() -> Any:
    """Text, its stream, and an object as the arguments of a tool."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=URL, api_key=KEY))
    settings: Any = {"temperature": 0}
    agent = Agent(model, model_settings=settings)

    async def streamed() -> str:
        async with agent.run_stream(QUESTION) as answer:
            return "".join([piece async for piece in answer.stream_text(delta=True)])

    shaped = Agent(model, output_type=Word, model_settings=settings)
    return {
        "text": agent.run_sync(QUESTION).output,
        "streamed": asyncio.run(streamed()),
        "word": shaped.run_sync(QUESTION).output.word,
    }


def openai_agents() -> Any:
    """Text over chat completions and over responses, and a tool that the model is made to call."""
    from agents import (
        Agent,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI

    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=URL, api_key=KEY)
    called = []

    @function_tool
    def define(word: Literal["violin", "viola"]) -> str:
        """Define a word."""
        called.append(word)
        return "A bowed instrument."

    def ask(kind: Any, **more: Any) -> str:
        settings = ModelSettings(temperature=0, tool_choice=more.pop("choice", None))
        model = kind(MODEL, client)
        agent = Agent(name="a", model=model, model_settings=settings, **more)
        return str(asyncio.run(Runner.run(agent, QUESTION)).final_output)

    stop: Any = "stop_on_first_tool"
    return {
        "text": ask(OpenAIChatCompletionsModel),
        "responses": ask(OpenAIResponsesModel),
        "told": ask(OpenAIChatCompletionsModel, tools=[define], choice="define", tool_use_behavior=stop),
        "told_responses": ask(OpenAIResponsesModel, tools=[define], choice="define", tool_use_behavior=stop),
        "called": called,
    }


def langchain_openai() -> Any:
    """Text, its stream and usage, and an object by JSON schema and by a tool."""
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, temperature=0, stream_usage=True)  # type: ignore[arg-type]
    whole: Any = model.invoke(QUESTION)
    return {
        "text": whole.content,
        "tokens": [whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]],
        "streamed": "".join(str(piece.content) for piece in model.stream(QUESTION)),
        "word": model.with_structured_output(Word, method="json_schema").invoke(QUESTION).word,
        "called": model.with_structured_output(Word, method="function_calling").invoke(QUESTION).word,
    }


def instructor() -> Any:
    """An object, by a tool and by JSON schema."""
    import instructor
    from openai import OpenAI

    found = {}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY), mode=mode)
        messages: Any = [{"role": "user", "content": QUESTION}]
        found[mode.name] = client.chat.completions.create(
            model=MODEL, response_model=Word, messages=messages, temperature=0, max_retries=0
        ).word
    return found


def outlines() -> Any:
    """Text and JSON of a schema, as from OpenAI, from TGI and from vLLM; a grammar, as from vLLM."""
    import outlines
    from huggingface_hub import InferenceClient
    from openai import OpenAI

    client = OpenAI(base_url=URL, api_key=KEY)
    models = {
        "openai": outlines.from_openai(client, MODEL),
        "vllm": outlines.from_vllm(client, MODEL),
    }
    tgi: Any = outlines.from_tgi(InferenceClient(sys.argv[1]))
    alone: Any = {"return_full_text": False, "max_new_tokens": 40}
    found = {}
    for name, model in models.items():
        found[f"{name} text"] = model(QUESTION, temperature=0)
        found[f"{name} word"] = Word.model_validate_json(model(QUESTION, Word, temperature=0)).word
    found["tgi word"] = Word.model_validate_json(tgi(QUESTION, Word, **alone)).word
    found["tgi choice"] = tgi(QUESTION, Literal["violin", "viola"], **alone)
    grammar = outlines.types.CFG('start: "violin" | "viola"')
    return {**found, "vllm grammar": models["vllm"](QUESTION, grammar, temperature=0)}


def smolagents() -> Any:
    """Text, and the call of a tool."""
    from smolagents import OpenAIModel, tool

    @tool
    def define(word: str) -> str:
        """Define a word.

        Args:
            word: The word.
        """
        return word

    model = OpenAIModel(MODEL, api_base=URL, api_key=KEY, temperature=0)
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    called = model.generate(messages, tools_to_call_from=[define], max_tokens=60)
    return {
        "text": model.generate(messages).content,
        "called": [call.function.name for call in called.tool_calls or ()],
    }


def haystack() -> Any:
    """Text, its stream, and a pipeline."""
    from haystack import Pipeline
    from haystack.components.builders import ChatPromptBuilder
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage
    from haystack.utils import Secret

    pieces: list[str] = []
    more: Any = {
        "api_key": Secret.from_token(KEY),
        "api_base_url": URL,
        "generation_kwargs": {"temperature": 0},
    }
    message = [ChatMessage.from_user(QUESTION)]
    whole = OpenAIChatGenerator(model=MODEL, **more).run(message)["replies"][0]
    OpenAIChatGenerator(model=MODEL, streaming_callback=lambda one: pieces.append(one.content), **more).run(
        message
    )
    pipeline = Pipeline()
    template = [ChatMessage.from_user("What is a {{ word }}?")]
    pipeline.add_component("prompt", ChatPromptBuilder(template, required_variables=["word"]))
    pipeline.add_component("model", OpenAIChatGenerator(model=MODEL, **more))
    pipeline.connect("prompt.prompt", "model.messages")
    return {
        "text": whole.text,
        "streamed": "".join(pieces),
        "pipeline": pipeline.run({"prompt": {"word": "violin"}})["model"]["replies"][0].text,
    }


CLIENTS: dict[str, Callable[[], Any]] = {
    "pydantic-ai-slim": pydantic_ai,
    "openai-agents": openai_agents,
    "langchain-openai": langchain_openai,
    "instructor": instructor,
    "outlines": outlines,
    "smolagents": smolagents,
    "haystack-ai": haystack,
}

if __name__ == "__main__":
    for name, use in CLIENTS.items():
        try:
            got = use()
        except Exception:
            got = {"failed": traceback.format_exc()}
        print(json.dumps({"client": name, "version": version(name), **got}), flush=True)
