"""A server on a simulated Gaudi, in both modes of the bridge: all kinds of requests, and nothing compiles."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tgi.config import DEMO_MODEL

pytestmark = pytest.mark.slow

CARDS = {"lazy": ("gaudi2", "1"), "compile": ("gaudi3", "0")}
MESSAGES: Any = [{"role": "user", "content": "What is the weather?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"day": {"enum": ["today", "tomorrow"]}},
            "required": ["day"],
        },
    },
}
BOUNDS = {"max_total_tokens": 512, "max_batch_size": 4, "max_batch_prefill_tokens": 128, "max_graphs": 16}


@pytest.fixture(scope="module", params=CARDS)
def gaudi(request: pytest.FixtureRequest, start: Callable[..., Any]) -> Iterator[Any]:
    card, lazy = CARDS[request.param]
    variables = {"TGI_SIMULATED_GAUDI": card, "PT_HPU_LAZY_MODE": lazy}
    server = start(environment=variables, model_id=DEMO_MODEL, device="hpu-sim", **BOUNDS).wait_ready()
    yield server
    assert "ERROR" not in server.output()
    metrics = server.get("/metrics")[1]
    compiled = dict(re.findall(r'^tgi_graph_compilations\{phase="(.*)"\} (\d+)', metrics, re.MULTILINE))
    assert [phase for phase, count in compiled.items() if count != "0"] == ["warm-up"]
    for name in ("tgi_graph_misses", "tgi_cpu_fallbacks"):
        assert server.metric(name) == 0
    server.end()


@pytest.fixture
def client(gaudi: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{gaudi.port}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def cpu(start: Callable[..., Any]) -> Iterator[Any]:
    server = start(model_id=DEMO_MODEL, **BOUNDS).wait_ready()
    yield server
    server.end()


def test_texts_are_those_of_the_cpu(gaudi: Any, cpu: Any) -> None:
    for parameters in ({}, {"do_sample": True, "seed": 5, "top_p": 0.9, "repetition_penalty": 1.2}):
        answers = [
            server.generate("A violin is", max_new_tokens=24, details=True, **parameters)
            for server in (gaudi, cpu)
        ]
        assert answers[0]["generated_text"] == answers[1]["generated_text"]
        tokens = [[token["id"] for token in answer["details"]["tokens"]] for answer in answers]
        assert tokens[0] == tokens[1]
    events = list(gaudi.stream("A violin is", max_new_tokens=24))
    assert events[-1]["generated_text"] == cpu.generate("A violin is", max_new_tokens=24)["generated_text"]


def test_a_tool_is_called(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tgi",
        messages=MESSAGES,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=100,
    )
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.type == "function"
    assert json.loads(call.function.arguments)["day"] in ("today", "tomorrow")


def test_a_grammar_is_obeyed(gaudi: Any) -> None:
    grammar = {"type": "regex", "value": "[0-9]{4}-[0-9]{2}"}
    answer = gaudi.generate("The date is ", grammar=grammar, max_new_tokens=40, do_sample=True, seed=1)
    assert re.fullmatch("[0-9]{4}-[0-9]{2}", answer["generated_text"])


def test_a_prompt_is_echoed_with_its_log_probabilities(client: openai.OpenAI, cpu: Any) -> None:
    prompt = "A violin is a small wooden instrument. " * 8
    other = openai.OpenAI(base_url=f"http://127.0.0.1:{cpu.port}/v1", api_key="none")
    asked: Any = {"model": "tgi", "prompt": prompt, "max_tokens": 4, "echo": True, "logprobs": 2}
    mine, theirs = (
        server.completions.create(**asked, temperature=0).choices[0] for server in (client, other)
    )
    assert mine.text.startswith(prompt)
    assert mine.text == theirs.text
    assert mine.logprobs
    assert theirs.logprobs
    values, expected = (found.logprobs.token_logprobs[1:] for found in (mine, theirs))
    assert len(values) > 50
    assert values == pytest.approx(expected, abs=1e-3)


def test_many_at_once(gaudi: Any) -> None:
    def ask(number: int) -> str:
        return str(gaudi.generate(f"Story {number}: once", max_new_tokens=10 + number)["generated_text"])

    alone = [ask(number) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone
