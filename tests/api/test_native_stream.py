"""`/generate_stream` and `/` with stream: tgi-behaviour 1.5, 1.6, 3.2, 3.3."""

import json
from contextlib import ExitStack
from typing import Any

import attrs
import pytest
import trio

from tgi.api.native import NativeEvents
from tgi.api.observe import Observer
from tgi.api.stream import KEEP_ALIVE_SECONDS, EventStream, Receive, frame
from tgi.errors import ApiError, GenerationFailed
from tgi.metrics import Metrics
from tgi.sampling import SamplingParams
from tgi.scheduler import Sequence, Token
from tgi.testing.fake_executor import counting, logprob
from tgi.text.detokenizer import Detokenizer
from tgi.text.stopping import FinishReason, StoppingCriteria

from .serving import EOS, make_tokenizer, saying, serving

HELLO, WORLD = make_tokenizer().encode("Hello world", add_special_tokens=False)


@pytest.mark.contract("R1.1", "R1.3", "R1.80", "R1.81", "R3.20", "R3.21", "R3.22", "R3.23")
@pytest.mark.parametrize("path", ["/generate_stream", "/"])
async def test_the_events(path: str) -> None:
    async with serving(saying("Hello world")) as server:
        body = {
            "inputs": "what is",
            "parameters": {"details": True, "return_full_text": False},
            "stream": True,
        }
        answer = await server.ask("POST", path, body)
        assert answer.status == 200
        for index, event in enumerate(answer.events, 1):
            assert event["index"] == index
            assert list(event) == ["index", "token", "generated_text", "details"]
        assert [event["token"] for event in answer.events] == [
            {"id": HELLO, "text": "Hello", "logprob": logprob(HELLO), "special": False},
            {"id": WORLD, "text": " world", "logprob": logprob(WORLD), "special": False},
            {"id": EOS, "text": "</s>", "logprob": logprob(EOS), "special": True},
        ]
        first, second, last = answer.events
        assert first["generated_text"] is first["details"] is second["generated_text"] is None
        assert last["generated_text"] == "Hello world"
        prompt = make_tokenizer().encode("what is")
        assert last["details"] == {
            "finish_reason": "eos_token",
            "generated_tokens": 3,
            "seed": None,
            "input_length": len(prompt),
        }
        assert b"[DONE]" not in answer.body  # R1.81


@pytest.mark.contract("R3.21", "R3.23")
async def test_top_tokens_and_full_text_when_asked_for() -> None:
    async with serving(saying("Hello")) as server:
        given = {"top_n_tokens": 1, "return_full_text": True}
        answer = await server.generate(given, "x", path="/generate_stream")
        assert list(answer.events[0]) == ["index", "token", "top_tokens", "generated_text", "details"]
        assert answer.events[-1]["generated_text"] == "xHello"
        assert answer.events[-1]["details"] is None


@pytest.mark.contract("R3.24")
async def test_an_incomplete_character_waits_for_its_end() -> None:
    async with serving(saying("🎻")) as server:
        answer = await server.generate({}, path="/generate_stream")
        assert [event["token"]["text"] for event in answer.events] == ["", "", "", "🎻", "</s>"]
        assert answer.events[-1]["generated_text"] == "🎻"


@pytest.mark.contract("1.5")
async def test_the_headers_of_a_stream() -> None:
    async with serving(saying("Hello")) as server:
        headers = (await server.generate({}, "é", path="/generate_stream")).headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert headers["cache-control"] == "no-cache"
        assert headers["x-accel-buffering"] == "no"
        assert headers["x-compute-type"] == "gpu+optimized"
        assert headers["x-compute-characters"] == "1"
        assert "x-total-time" not in headers


@pytest.mark.contract("V01", "V02")
@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 0}, "`best_of` != 1 is not supported when streaming tokens"),
        ({"best_of": 2}, "`best_of` != 1 is not supported when streaming tokens"),
        (
            {"decoder_input_details": True},
            "`decoder_input_details` == true is not supported when streaming tokens",
        ),
        ({"top_k": 0}, "`top_k` must be strictly positive"),
    ],
)
@pytest.mark.parametrize("path", ["/generate_stream", "/"])
async def test_what_is_refused_before_the_first_token_has_a_true_status(
    path: str, parameters: dict[str, Any], message: str
) -> None:
    """Deviation R1.83: TGI sends an event on a 200."""
    async with serving() as server:
        body = {"inputs": "x", "parameters": parameters, "stream": True}
        answer = await server.ask("POST", path, body)
        assert answer.status == 422
        assert answer.json == {"error": f"Input validation error: {message}", "error_type": "validation"}
        assert server.service.in_flight == 0


@pytest.mark.contract("R1.83", "3.3")
async def test_a_failure_in_the_middle_is_the_last_event() -> None:
    async with serving(counting(200), step_seconds=0.05) as server, trio.open_nursery() as nursery:
        answers = []

        async def ask() -> None:
            answers.append(await server.generate({"max_new_tokens": 60}, path="/generate_stream"))

        nursery.start_soon(ask)
        while server.executor.steps < 3:
            await trio.sleep(0.01)
        assert server.service.engine is not None
        server.service.engine.scheduler.fail_all(GenerationFailed("the engine is lost"))
        while not answers:
            await trio.sleep(0.01)
        *_, before, last = answers[0].events
        assert before["token"]
        assert last == {
            "error": "Request failed during generation: the engine is lost", "error_type": "generation",
        }  # fmt: skip
    assert 'tgi_request_failure{err="generation"} 1' in server.service.metrics.render().decode()


async def test_a_failure_before_the_first_token_has_a_true_status() -> None:
    async with serving(counting(200), step_seconds=0.5) as server, trio.open_nursery() as nursery:

        async def fail() -> None:
            while not server.service.in_flight:
                await trio.sleep(0.01)
            assert server.service.engine is not None
            server.service.engine.scheduler.fail_all(GenerationFailed("the engine is lost"))

        for path in ("/generate_stream", "/generate"):
            nursery.start_soon(fail)
            answer = await server.generate({}, path=path)
            assert answer.status == 424
            assert answer.json["error_type"] == "generation"


def stream_of(receive: Receive, held: ExitStack) -> EventStream:
    tokenizer = make_tokenizer()
    sequence = Sequence(
        prompt=[0],
        max_new_tokens=9,
        sampling=SamplingParams(),
        stopping=StoppingCriteria(9, frozenset([EOS])),
        detokenizer=Detokenizer(tokenizer, [0]),
    )
    return EventStream(receive, NativeEvents(sequence, tokenizer, Observer(Metrics())), held)


@attrs.define
class Wire:
    """Writes to a stream, and when they came."""

    writes: list[tuple[float, bytes]] = attrs.field(factory=list)

    async def read(self, stream: EventStream) -> None:
        begin = trio.current_time()
        await stream.start()
        async with stream as body:
            async for data in body:
                self.writes.append((trio.current_time() - begin, data))


def token(number: int, finish: FinishReason | None = None) -> Token:
    return Token(number, "x", -1.0, [], finish)


async def writes_of(items: list[tuple[float, Token | ApiError]]) -> list[tuple[float, bytes]]:
    """Return the writes of a stream whose items come after these pauses, and which then ends."""
    wire = Wire()
    send, receive = trio.open_memory_channel[tuple[int, Token | ApiError]](100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wire.read, stream_of(receive, ExitStack()))
        for pause, item in items:
            if pause:
                await trio.sleep(pause)
            send.send_nowait((0, item))
        send.close()
    return wire.writes


@pytest.mark.autojump
@pytest.mark.contract("R1.82")
async def test_a_comment_keeps_the_stream_alive_after_15_seconds_without_an_event() -> None:
    assert KEEP_ALIVE_SECONDS == 15
    writes = await writes_of([(1, token(5)), (40, token(6)), (10, token(7, FinishReason.LENGTH))])
    assert [(at, data) for at, data in writes if not data.startswith(b"data: ")] == [
        (16, b":\n\n"), (31, b":\n\n"),
    ]  # fmt: skip
    assert [at for at, data in writes if data.startswith(b"data: ")] == [1, 41, 51]


@pytest.mark.autojump
async def test_headers_do_not_wait_for_a_slow_first_token_for_ever() -> None:
    writes = await writes_of([(100, token(5, FinishReason.LENGTH))])
    assert writes[0] == (15, b":\n\n")


@pytest.mark.autojump
async def test_all_events_that_are_ready_are_one_write() -> None:
    writes = await writes_of(
        [(0, token(5)), (0, token(6)), (0, token(7)), (1, token(8, FinishReason.LENGTH))]
    )
    assert [data.count(b"data: ") for _, data in writes] == [3, 1]


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85"])
def test_characters_at_which_clients_end_lines_are_escaped(character: str) -> None:
    data = frame({"text": f"é{character}"})
    assert character.encode() not in data
    assert json.loads(data.removeprefix(b"data: ")) == {"text": f"é{character}"}
    assert len(data.decode().splitlines()) == 2


@pytest.mark.autojump
@pytest.mark.contract("2.6", "3.3")
async def test_a_stream_whose_tokens_end_early_says_so() -> None:
    writes = await writes_of([(0, token(5)), (1, token(6))])
    assert writes[-1][1].endswith(
        b'data: {"error":"Incomplete generation stream","error_type":"incomplete_generation_stream"}\n\n'
    )


async def test_the_permit_is_given_back_before_the_last_event_is_sent() -> None:
    """Otherwise a client that sends its next request at once could be refused."""
    send, receive = trio.open_memory_channel[tuple[int, Token | ApiError]](100)
    held, given_back = ExitStack(), trio.Event()
    held.callback(given_back.set)
    stream = stream_of(receive, held)
    send.send_nowait((0, token(5)))
    assert await anext(stream)
    assert not given_back.is_set()
    send.send_nowait((0, token(6, FinishReason.LENGTH)))
    assert await anext(stream)
    assert given_back.is_set()
