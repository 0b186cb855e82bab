"""Every field of a request that TGI, OpenAI or vLLM documents: it works, is refused by name, or is harmless.

The lists of `documented_fields` are tried one by one, and docs/fields.md is made of them:
`python -m tests.api.test_fields`.
"""

import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import msgspec
import pytest

from tests.documented import ROOT
from tgi.api import refused
from tgi.api.native_bodies import GenerateParameters
from tgi.api.openai.requests import ChatRequest, CompletionRequest
from tgi.protocol import NO_LORAS, LaneParams, LoraSlots
from tgi.sampling import SamplingParams

from .documented_fields import HARMLESS, HARMLESS_ON, SOURCES
from .serving import LIMITS, Answer, Server, make_tokenizer, saying, serving
from .test_chat import chunks

PAGE = ROOT / "docs" / "fields.md"
ROUTES: dict[str, tuple[str, type, Mapping[str, refused.Refused]]] = {
    "native": ("/generate", GenerateParameters, refused.NATIVE),
    "chat": ("/v1/chat/completions", ChatRequest, refused.CHAT),
    "completions": ("/v1/completions", CompletionRequest, refused.COMPLETIONS),
}
HELLO, WORLD = make_tokenizer().encode("Hello world", add_special_tokens=False)
TEMPLATE = (
    "{{ bos_token }}{{ documents }}{{ reasoning_effort }}{{ verbosity }}{{ mood }}{{ tools }}"
    "{{ enable_thinking }}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}.{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = TEMPLATE + "<think></think><think>"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = '{"name": "f", "parameters": {}}'
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So"}


@attrs.frozen
class Example:
    """A value that changes the answer."""

    value: Any
    also: dict[str, Any] = attrs.field(factory=dict)
    """Fields of the request with and without it."""
    template: str = TEMPLATE
    says: str = "Hello world"
    loras: LoraSlots = NO_LORAS


LORAS = LoraSlots(2, 8)
SAMPLING = {
    "temperature": 0.5,
    "frequency_penalty": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.5,
    "top_k": 5,
    "top_p": 0.5,
    "min_p": 0.5,
    "typical_p": 0.5,
    "watermark": True,
}
ENDS = {
    "seed": 8,
    "stop": ["wor"],
    "min_tokens": Example(4, says="Hello"),
    "ignore_eos": True,
    "stop_token_ids": [HELLO],
}
NATIVE = {
    **SAMPLING,
    **ENDS,
    "adapter_id": Example("sql", loras=LORAS),
    "best_of": Example(2, {"seed": None, "do_sample": True}),
    "decoder_input_details": Example(True),
    "details": Example(True, {"details": False}),
    "do_sample": True,
    "grammar": {"type": "regex", "value": "[ab]{3}"},
    "max_new_tokens": 1,
    "return_full_text": True,
    "top_n_tokens": 2,
    "truncate": 2,
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
OPENAI = {
    **SAMPLING,
    **ENDS,
    "add_special_tokens": True,
    "allowed_token_ids": [40, 41],
    "bad_words": ["world"],
    "grammar": 'root ::= "a"{3,3}',
    "guided_choice": ["yes", "no"],
    "guided_grammar": 'start: "a" "b"',
    "guided_json": SCHEMA,
    "guided_regex": "[ab]{3}",
    "include_stop_str_in_output": Example(True, {"stop": ["wor"]}),
    "json_schema": {"const": "42"},
    "logit_bias": {"5": 1},
    "max_completion_tokens": Example(1, {"max_tokens": None}),
    "max_tokens": 1,
    "n": 2,
    "prompt_logprobs": 1,
    "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
    "return_token_ids": Example(True, {"return_token_ids": False}),
    "skip_special_tokens": Example(False, {"ignore_eos": True}),
    "stream": True,
    "stream_options": Example({"include_usage": True}, {"stream": True}),
    "structured_outputs": {"choice": ["yes", "no"]},
    "truncate_prompt_tokens": 3,
    "truncation_side": Example("right", {"truncate_prompt_tokens": 3}),
}
CHAT = {
    **OPENAI,
    "add_generation_prompt": False,
    "chat_template_kwargs": {"mood": "glad"},
    "continue_final_message": Example(False, {"messages": [USER, ASSISTANT]}),
    "documents": [{"title": "a"}],
    "echo": Example(True, {"messages": [USER, ASSISTANT]}),
    "enable_thinking": False,
    "function_call": Example({"name": "f"}, {"functions": [TOOL["function"]]}),
    "functions": [TOOL["function"]],
    "include_reasoning": Example(False, template=THINKING, says="Hm</think>Hello"),
    "logprobs": True,
    "max_thinking_tokens": Example(1, template=THINKING, says="Hm hm hm</think>Hello"),
    "messages": [ASSISTANT, USER],
    "model": "other",
    "parallel_tool_calls": Example(False, {"tools": [TOOL]}, says=f"{CALL}\n{CALL}"),
    "reasoning_effort": "high",
    "return_prompt_text": Example(True, {"return_prompt_text": False}),
    "return_tokens_as_token_ids": Example(True, {"logprobs": True}),
    "thinking_token_budget": Example(1, template=THINKING, says="Hm hm hm</think>Hello"),
    "tool_choice": Example("required", {"tools": [TOOL]}),
    "tool_prompt": Example("Call it.", {"tools": [TOOL]}),
    "tools": [TOOL],
    "top_logprobs": Example(2, {"logprobs": True}),
    "verbosity": "low",
}
COMPLETIONS = {
    **OPENAI,
    "add_special_tokens": False,
    "best_of": 2,
    "echo": True,
    "logprobs": 1,
    "model": Example("sql", loras=LORAS),
    "prompt": "Hello what is",
    "return_tokens_as_token_ids": Example(True, {"logprobs": 1}),
}
EXAMPLES: dict[str, dict[str, Any]] = {"native": NATIVE, "chat": CHAT, "completions": COMPLETIONS}
BASES: dict[str, dict[str, Any]] = {
    "native": {"seed": 7, "details": True, "max_new_tokens": 100},
    "chat": {
        "messages": [USER], "seed": 7, "temperature": 1.0, "max_tokens": 100, "return_token_ids": True,
        "return_prompt_text": True,
    },
    "completions": {"prompt": "what is", "seed": 7, "max_tokens": 100, "return_token_ids": True},
}  # fmt: skip
ROOM = attrs.evolve(LIMITS, max_input_tokens=2000, max_total_tokens=2500, max_stop_sequences=4)
Kind = str


def harmless(kind: Kind) -> dict[str, str]:
    return HARMLESS | HARMLESS_ON[kind]


def works(kind: Kind) -> set[str]:
    _, body, refused_ones = ROUTES[kind]
    return {field.encode_name for field in msgspec.structs.fields(body)} - {
        *refused_ones,
        *harmless(kind),
        "suffix",
    }


class Trial:
    """Asks a server, and sees answers and what the ranks are told."""

    def __init__(self, kind: Kind, server: Server, seen: list[SamplingParams]) -> None:
        self._kind, self._server, self._seen = kind, server, seen

    async def ask(self, **fields: Any) -> Answer:
        self._seen.clear()
        body = BASES[self._kind] | fields
        if self._kind == "native":
            body = {"inputs": "what is", "parameters": body}
        return await self._server.ask("POST", ROUTES[self._kind][0], body)

    async def observe(self, **fields: Any) -> object:
        """What a client and a rank see of a request that is answered."""
        answer = await self.ask(**fields)
        assert answer.status == 200, answer.body
        is_stream = answer.headers["content-type"].startswith("text/event-stream")
        bodies = chunks(answer) if is_stream else [answer.json]
        told = re.sub(r'"(id|created|cached_tokens)": ("[^"]*"|\d+)', "", json.dumps(bodies))
        return told, answer.headers.get("x-prompt-tokens"), self._seen[:1]


@asynccontextmanager
async def trying(
    kind: Kind, says: str = "Hello world", template: str = TEMPLATE, loras: LoraSlots = NO_LORAS
) -> AsyncIterator[Trial]:
    seen: list[SamplingParams] = []
    say = saying(says)

    def script(params: LaneParams, draw: int) -> int:
        seen.append(params.sampling)
        return say(params, draw)

    async with serving(script, limits=ROOM, template=template, loras=loras) as server:
        yield Trial(kind, server, seen)


@pytest.mark.parametrize("kind", ROUTES)
def test_every_documented_field_is_known(kind: Kind) -> None:
    known = (
        works(kind),
        set(ROUTES[kind][2]) | ({"suffix"} if kind == "completions" else set()),
        harmless(kind),
    )
    documented = frozenset[str]().union(*SOURCES[kind].values())
    for name in documented:
        assert sum(name in one for one in known) == 1, name


@pytest.mark.parametrize(
    ("kind", "name"),
    # `priority` changes when the answer comes: see test_tenants.py
    [(kind, name) for kind in ROUTES for name in sorted(works(kind) - {"priority"})],
)
async def test_a_field_that_works_changes_the_answer(kind: Kind, name: str) -> None:
    example = EXAMPLES[kind][name]
    if not isinstance(example, Example):
        example = Example(example)
    async with trying(kind, example.says, example.template, example.loras) as trial:
        without = await trial.observe(**example.also)
        assert without == await trial.observe(**example.also) or example.also.get("seed", 7) is None
        assert await trial.observe(**{**example.also, name: example.value}) != without


@pytest.mark.parametrize("kind", ROUTES)
async def test_a_field_that_is_refused_is_named(kind: Kind) -> None:
    async with trying(kind) as trial:
        plain = await trial.observe()
        for name, field in ROUTES[kind][2].items():
            for value in (True, 2, "x", {"a": "b"}):
                if value not in field.neutral:
                    answer = await trial.ask(**{name: value})
                    assert answer.status == (422 if kind == "native" else 400), (name, value)
                    text = f"Input validation error: `{name}` is not supported: {field.advice}"
                    error = answer.json["error"]
                    assert (error if kind == "native" else error["message"]) == text
            for value in (None, *field.neutral):
                assert await trial.observe(**{name: value}) == plain, (name, value)


@pytest.mark.parametrize("kind", ROUTES)
async def test_a_field_that_is_harmless_changes_nothing(kind: Kind) -> None:
    async with trying(kind) as trial:
        plain = await trial.observe()
        for name in harmless(kind):
            for value in (None, True, 5, "x", {"a": "b"}, ["c"]):
                assert await trial.observe(**{name: value}) == plain, (name, value)


@pytest.mark.parametrize("kind", ["chat", "completions"])
async def test_fields_that_need_others_are_refused_alone(kind: Kind) -> None:
    async with trying(kind) as trial:
        for fields, text in [
            ({"stream_options": {"include_usage": True}}, "`stream_options` needs `stream`"),
            ({"stream_options": {}}, "`stream_options` needs `stream`"),
            ({"stream": False, "stream_options": {"continuous_usage_stats": True}}, "`stream_options` needs"),
            ({"prompt_logprobs": 0, "stream": True}, "`prompt_logprobs` is not supported when streaming"),
        ]:
            answer = await trial.ask(**fields)
            assert answer.status == 400
            assert text in answer.json["error"]["message"]
        assert (await trial.ask(stream_options=None)).status == 200


def table(kind: Kind) -> list[str]:
    rows = ["| field | documented by | here |", "| --- | --- | --- |"]
    working, refused_ones, harmless_ones = works(kind), ROUTES[kind][2], harmless(kind)
    documented = SOURCES[kind]
    for name in sorted(frozenset[str]().union(*documented.values(), working, refused_ones)):
        sources = ", ".join(source for source in documented if name in documented[source])
        if name in working:
            here = "works"
        elif name in refused_ones:
            here = f"refused: {refused_ones[name].advice}"
        elif name == "suffix":
            here = "refused: put it into the prompt"
        else:
            here = f"cannot change the answer: {harmless_ones[name]}"
        rows.append(f"| `{name}` | {sources or 'other servers'} | {here} |")
    return rows


def page() -> str:
    text = PAGE.read_text("utf-8")
    for kind in ROUTES:
        begin, end = f"<!-- {kind} -->\n", f"<!-- end of {kind} -->\n"
        before, _, rest = text.partition(begin)
        text = before + begin + "\n".join(table(kind)) + "\n" + end + rest.partition(end)[2]
    return text


def test_the_page_is_made_from_the_fields() -> None:
    assert PAGE.read_text("utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
