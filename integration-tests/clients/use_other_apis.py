"""The libraries of Anthropic, Ollama, and OpenAI's Responses API: python use_other_apis.py URL."""

import json
import sys
from typing import Any

import anthropic
import ollama
import openai

URL = sys.argv[1]
QUESTION = "What is a violin?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string", "enum": ["violin", "viola"]}},
    "required": ["word"],
}
GREEDY: dict[str, Any] = {"temperature": 0}


def claude() -> Any:
    client = anthropic.Anthropic(base_url=URL, api_key="-")
    asked: dict[str, Any] = {"model": "tgi", "max_tokens": 60, "messages": MESSAGES, "extra_body": GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        usage = stream.get_final_message().usage
    tool: Any = {"name": "define", "description": "Look a word up.", "input_schema": SCHEMA}
    choice: Any = {"type": "tool", "name": "define", "disable_parallel_tool_use": True}
    with client.messages.stream(**asked, tools=[tool], tool_choice=choice) as stream:
        called = stream.get_final_message()
    result = {"type": "tool_result", "tool_use_id": called.content[0].id, "content": "a small fiddle"}
    history: list[Any] = [*MESSAGES, {"role": "assistant", "content": called.content}]
    history.append({"role": "user", "content": [result]})
    after = client.messages.create(**{**asked, "messages": history, "max_tokens": 5}, tools=[tool])
    try:
        client.messages.create(**{**asked, "max_tokens": 0})
        error = None
    except anthropic.BadRequestError as refused:
        error = refused.body["error"]["type"]  # type: ignore[index]
    return {
        "text": whole.content[0].text,
        "streamed": text,
        "tokens": [whole.usage.input_tokens, usage.output_tokens],
        "counted": client.messages.count_tokens(model="tgi", messages=MESSAGES).input_tokens,
        "stop": [whole.stop_reason, called.stop_reason, after.stop_reason],
        "call": [called.content[0].name, called.content[0].input],
        "error": error,
    }


def responses() -> Any:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="-")
    whole = client.responses.create(model="tgi", input=QUESTION, temperature=0)
    with client.responses.stream(model="tgi", input=QUESTION, temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        streamed = stream.get_final_response()
    after = client.responses.create(
        model="tgi", input="And a lute?", previous_response_id=whole.id, temperature=0, max_output_tokens=3
    )
    tool: Any = {"type": "function", "name": "define", "parameters": SCHEMA, "strict": True}
    called = client.responses.create(
        model="tgi",
        input=QUESTION,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
    )
    found = client.responses.retrieve(whole.id)
    client.responses.delete(whole.id)
    return {
        "text": whole.output_text,
        "streamed": [text, streamed.output_text],
        "kept": found.output_text,
        "tokens": [whole.usage.input_tokens, whole.usage.output_tokens] if whole.usage else None,
        "status": [whole.status, after.status],
        "calls": [[item.name, json.loads(item.arguments)] for item in called.output],  # type: ignore[union-attr]
    }


def llama() -> Any:
    client = ollama.Client(host=URL)
    options = {"temperature": 0}
    name = client.list().models[0].model or ""
    whole = client.chat(model=name, messages=MESSAGES, options=options)
    pieces = client.chat(model=name, messages=MESSAGES, options=options, stream=True)
    tool: Any = {"type": "function", "function": {"name": "define", "parameters": SCHEMA}}
    shaped = client.chat(model=name, messages=MESSAGES, options=options, format=SCHEMA)
    return {
        "text": whole.message.content,
        "streamed": "".join(piece.message.content or "" for piece in pieces),
        "generated": client.generate(model=name, prompt=QUESTION, options=options).response,
        "tokens": [whole.prompt_eval_count, whole.eval_count],
        "tools": client.chat(model=name, messages=MESSAGES, tools=[tool], options=options).done,
        "shaped": json.loads(shaped.message.content or ""),
        "abilities": client.show(name).capabilities,
    }


print(json.dumps({part.__name__: part() for part in (claude, responses, llama)}))
