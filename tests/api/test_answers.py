"""Answers made of several generations, and answers after failures (tgi-behaviour 3)."""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import numpy as np
import pytest
import trio

from tgi.api.stream import Finished, best_first
from tgi.errors import ApiError, GenerationFailed
from tgi.protocol import LaneParams
from tgi.scheduler import Sequence, Token

from .serving import EOS, Server, make_tokenizer, saying, serving
from .test_chat import chunks

USER = {"role": "user", "content": "Hello"}
GENERATING: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"inputs": "x"}),
    ("/", {"inputs": "x"}),
    ("/v1/chat/completions", {"messages": [USER]}),
    ("/v1/completions", {"prompt": ["x", "y"]}),
    ("/invocations", {"prompt": "x"}),
    ("/vertex", {"instances": [{"inputs": "x"}]}),
]


@pytest.mark.contract("3")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_created_is_now_in_whole_seconds(path: str) -> None:
    async with serving(saying("Hello")) as server:
        body = {"messages": [USER], "prompt": "x"}
        begin = int(time.time())
        answer = await server.ask("POST", path, body)
        streamed = chunks(await server.ask("POST", path, {**body, "stream": True}))
        for created in (answer.json["created"], *(event["created"] for event in streamed)):
            assert isinstance(created, int)
            assert begin <= created <= time.time()


@pytest.mark.contract("3")
async def test_numbers_are_those_of_float32_and_null_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = itertools.chain([-2.5839844, -math.inf], itertools.repeat(math.nan))
    async with serving(saying("Hello world")) as server:
        execute = server.executor.execute

        def execute_oddly(step: Any) -> Any:
            result = execute(step)
            data = np.array([next(values)], np.float32).tobytes() if result.logprobs else b""
            return type(result)(number=result.number, tokens=result.tokens, logprobs=data)

        monkeypatch.setattr(server.executor, "execute", execute_oddly)
        body = (await server.generate({"details": True})).body
        assert [part.partition(b",")[0] for part in body.split(b'"logprob":')[1:]] == [
            b"-2.5839844", b"null", b"null",
        ]  # fmt: skip


def finished(*logprobs: float) -> Finished:
    tokens = [Token(5, "x", value, [], None) for value in logprobs]
    return Finished(attrs.NOTHING, tokens)  # type: ignore[arg-type]


@pytest.mark.contract("R3.10")
@pytest.mark.parametrize(
    ("of", "best"),
    [
        ([(-3.0, -1.0), (-1.5,)], 1),
        ([(-2.0,), (-1.0, -3.0)], 0),  # equal
        ([(math.nan,), (-1.0,)], 0),
        ([(-1.0,), (math.nan,)], 0),
    ],
)
def test_among_equals_and_without_numbers_the_earliest_is_best(of: list[Any], best: int) -> None:
    candidates = [finished(*logprobs) for logprobs in of]
    assert best_first(candidates)[0] is candidates[best]


@pytest.mark.contract("R3.11")
async def test_all_of_best_of_begin_with_the_prompt() -> None:
    async with serving(saying("Hello")) as server:
        given = {"best_of": 2, "do_sample": True, "details": True, "return_full_text": True}
        body = (await server.generate(given, "what is")).json
        (other,) = body["details"]["best_of_sequences"]
        assert body["generated_text"] == other["generated_text"] == "what isHello"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_choices_are_in_the_order_of_their_index_not_of_their_end(path: str) -> None:
    """The choice with seed s says 44 - s tokens: the first one ends last."""

    def script(params: LaneParams, draw: int) -> int:
        return 70 if draw < 44 - params.sampling.seed else EOS

    async with serving(script, step_seconds=0.001) as server:
        body = {"messages": [USER], "prompt": "x", "n": 3, "seed": 40}
        choices = (await server.ask("POST", path, body)).json["choices"]
        texts = [choice.get("text") or choice["message"]["content"] for choice in choices]
        letter = make_tokenizer().decode([70])
        assert [(choice["index"], text) for choice, text in zip(choices, texts, strict=True)] == [
            (0, 4 * letter), (1, 3 * letter), (2, 2 * letter),
        ]  # fmt: skip
        events = chunks(await server.ask("POST", path, {**body, "stream": True}))
        ends = [choice["index"] for e in events for choice in e["choices"] if choice["finish_reason"]]
        assert ends == [2, 1, 0]


@pytest.mark.parametrize("path", ["/vertex", "/v2/models/m/versions/1/infer"])
async def test_texts_are_in_the_order_of_the_inputs(path: str) -> None:
    """The longer a prompt, the sooner its text ends; TGI's KServe route answers in the order of the ends."""

    def script(params: LaneParams, draw: int) -> int:
        return 70 if draw < 6 - params.prompt_length else EOS

    async with serving(script, step_seconds=0.001) as server:
        prompts = ["a", "abc"]
        assert [len(make_tokenizer().encode(prompt)) for prompt in prompts] == [2, 4]
        data = [{"name": p, "shape": [1], "datatype": "BYTES", "data": list(p.encode())} for p in prompts]
        body = {
            "instances": [{"inputs": prompt} for prompt in prompts],
            "id": "1",
            "inputs": data,
            "outputs": [{"name": prompt} for prompt in prompts],
        }
        answer = (await server.ask("POST", path, body)).json
        letter = make_tokenizer().decode([70])
        if path == "/vertex":
            assert answer == {"predictions": [4 * letter, 2 * letter]}
        else:
            found = [(out["name"], bytes(out["data"]).decode()) for out in answer["outputs"]]
            assert found == [("a", 4 * letter), ("abc", 2 * letter)]


@pytest.mark.contract("3.7")
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_when_one_of_several_fails_the_others_go_on(path: str) -> None:
    say = saying("Hello world")
    async with serving(say) as server:
        assert server.service.engine is not None
        scheduler = server.service.engine.scheduler.replicas[0].scheduler

        def script(params: LaneParams, draw: int) -> int:
            if draw == 2 and len(scheduler._schedule.running) == 2:
                scheduler._fail(scheduler._schedule.running[0], GenerationFailed("boom"))
            return say(params, draw)

        server.executor.script = script
        body = {"messages": [USER], "prompt": "x", "n": 2, "stream": True}
        events = chunks(await server.ask("POST", path, body))
        (error,) = [event["error"] for event in events if "error" in event]
        assert error["message"] == "Request failed during generation: boom"
        assert error["http_status_code"] == 424
        last = events[-1]["choices"][0]
        assert (last["index"], last["finish_reason"]) == (1, "stop")


def end_early(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of the next requests end before they are complete."""

    @contextmanager
    def nothing(_sequences: list[Sequence], _deadline: float) -> Iterator[Any]:
        send, receive = trio.open_memory_channel[tuple[int, Token | ApiError]](0)
        send.close()
        yield receive

    assert server.service.engine is not None
    monkeypatch.setattr(server.service.engine.scheduler, "generating", nothing)


@pytest.mark.contract("2.6")
@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_tokens_that_end_early_are_an_incomplete_generation(
    path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as server:
        end_early(server, monkeypatch)
        answer = await server.ask("POST", path, body)
        assert (answer.status, answer.json["error_type"]) == (500, "incomplete_generation")
        assert b'"Incomplete generation"' in answer.body
        assert 'tgi_request_failure{err="incomplete"} 1' in await server.metrics()


@pytest.mark.contract("2.6")
@pytest.mark.parametrize(("path", "body"), GENERATING)
async def test_a_generation_that_fails_is_424(path: str, body: dict[str, Any]) -> None:
    async with serving(step_seconds=60) as server, trio.open_nursery() as nursery:

        async def fail() -> None:
            assert server.service.engine is not None
            scheduler = server.service.engine.scheduler
            while not scheduler.statistics().running:
                await trio.sleep(0.001)
            scheduler.fail_all(GenerationFailed("boom"))

        nursery.start_soon(fail)
        answer = await server.ask("POST", path, body)
        assert (answer.status, answer.json["error_type"]) == (424, "generation")
        assert b'"Request failed during generation: boom"' in answer.body
