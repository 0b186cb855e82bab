"""Request ids, deadlines, and what metrics and log tell of each request (sections 7 and 10.2)."""

import json
import logging
import re
from typing import Any

import attrs
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tgi.api import grammars
from tgi.api.observe import duration_text
from tgi.errors import GenerationFailed
from tgi.testing.fake_executor import counting

from .serving import LIMITS, Server, saying, serving

USER = {"role": "user", "content": "Prompt-of-mine"}
BODIES: dict[str, dict[str, Any]] = {
    "/generate": {"inputs": "Prompt-of-mine", "parameters": {"max_new_tokens": 2}},
    "/generate_stream": {"inputs": "Prompt-of-mine", "parameters": {"max_new_tokens": 2}},
    "/": {"inputs": "Prompt-of-mine", "parameters": {"max_new_tokens": 2}},
    "/v1/chat/completions": {"messages": [USER], "max_tokens": 2},
    "/v1/completions": {"prompt": "Prompt-of-mine", "max_tokens": 2},
    "/invocations": {"prompt": "Prompt-of-mine", "max_tokens": 2, "stream": True},
    "/vertex": {"instances": [{"inputs": "Prompt-of-mine", "parameters": {"max_new_tokens": 2}}]},
}
NAMES = [
    "generate", "generate_stream", "compat_generate", "chat_completions", "completions",
    "sagemaker_compatibility", "vertex_compatibility",
]  # fmt: skip
"""Names of the requests in `BODIES` (tgi-behaviour O5)."""


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Has all that the server logs."""
    caplog.set_level(logging.DEBUG, "tgi")
    return caplog


def spans(logged: pytest.LogCaptureFixture, message: str = "Success") -> list[dict[str, Any]]:
    return [record.span for record in logged.records if record.getMessage() == message]  # type: ignore[attr-defined]


def posted(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return head.encode() + b"\r\n\r\n" + data


def sample(server: Server, name: str) -> float:
    """The sum over all labels."""
    text = server.service.metrics.render().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


async def test_a_request_has_the_id_that_its_client_gives_it() -> None:
    async with serving() as server:
        for path, body in BODIES.items():
            answer = await server.ask("POST", path, body, {"X-Request-Id": "mine/1 ~"})
            assert (answer.status, answer.headers["x-request-id"]) == (200, "mine/1 ~"), path
        for path, status in [("/health", 200), ("/nope", 404), ("/generate", 405)]:
            answer = await server.ask("GET", path, None, {"X-Request-Id": "a" * 128})
            assert (answer.status, answer.headers["x-request-id"]) == (status, "a" * 128)
        answer = await server.ask("POST", "/generate", b"{", {"X-Request-Id": "b"})
        assert (answer.status, answer.headers["x-request-id"]) == (400, "b")


async def test_an_id_is_made_for_a_request_that_has_none_that_can_be_used() -> None:
    async with serving() as server:
        made = set()
        for given in ({}, {"X-Request-Id": ""}, {"X-Request-Id": "a" * 129}, {"X-Request-Id": "a\tb"}):
            answer = await server.ask("GET", "/health", None, given)
            assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
            made.add(answer.headers["x-request-id"])
        assert len(made) == 4


@pytest.mark.parametrize("given", ["", "x", "0", "-1", "nan", "1 s"])
async def test_a_timeout_that_is_none_is_refused_by_name(given: str) -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/generate", BODIES["/generate"], {"X-Request-Timeout": given})
        assert answer.status == 422
        assert "x-request-timeout" in answer.json["error"]
        answer = await server.ask(
            "POST", "/v1/completions", BODIES["/v1/completions"], {"X-Request-Timeout": given}
        )
        assert answer.status == 400
        assert "x-request-timeout" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    "path", [path for path in BODIES if path not in ("/generate_stream", "/invocations")]
)
async def test_a_request_ends_at_its_own_deadline(path: str) -> None:
    """The row is free afterwards. The model would take a minute for its first token."""
    async with serving(step_seconds=60) as server:
        answer = await server.ask("POST", path, BODIES[path], {"X-Request-Timeout": "0.05"})
        assert answer.status == 408
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json["error_type"] == "deadline_exceeded"
        assert server.service.engine is not None
        assert server.service.engine.scheduler.statistics().running == 0
        assert server.service.in_flight == 0
        assert sample(server, "tgi_request_failure") == 1
        assert 'tgi_request_failure{err="deadline"} 1' in await server.metrics()


@pytest.mark.seconds(20)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_a_deadline_counts_while_a_grammar_is_tried(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that would try it never answers."""
    monkeypatch.setattr(grammars, "COMMAND", ("-c", "import time; time.sleep(60)"))
    async with serving() as server:
        body = {"inputs": "x", "parameters": {"grammar": {"type": "regex", "value": "a"}}}
        answer = await server.ask("POST", path, body, {"X-Request-Timeout": "0.05"})
        assert (answer.status, answer.json["error_type"]) == (408, "deadline_exceeded")
        assert server.service.in_flight == 0
        assert 'tgi_request_failure{err="deadline"} 1' in await server.metrics()


async def test_a_stream_ends_at_its_deadline_with_an_event() -> None:
    async with serving(counting(200), step_seconds=0.1) as server:
        body = {"inputs": "x", "parameters": {"max_new_tokens": 60}}
        answer = await server.ask("POST", "/generate_stream", body, {"X-Request-Timeout": "0.5"})
        assert answer.status == 200
        *tokens, last = answer.events
        assert 0 < len(tokens) < 60
        assert last["error_type"] == "deadline_exceeded"


async def test_one_line_for_each_finished_request_and_none_of_its_text(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with serving(saying("Answer-to-it")) as server:
        for number, (path, body) in enumerate(BODIES.items()):
            answer = await server.ask("POST", path, body, {"X-Request-Id": f"r{number}"})
            assert answer.status == 200
    lines = spans(logged)
    assert [line["name"] for line in lines] == NAMES
    assert [line["request_id"] for line in lines] == [f"r{number}" for number in range(len(lines))]
    assert [line["route"] for line in lines] == list(BODIES)
    for line in lines:
        for key in ("total", "validation", "queue", "inference"):
            assert re.fullmatch(r"[0-9.]+(ns|µs|ms|s)", line[f"{key}_time"])
        assert line["generated_tokens"] == 2
        assert line["prompt_tokens"] > 1
        assert line["finish_reason"] == "length"
    everything = "".join(f"{record.getMessage()} {vars(record)}" for record in logged.records)
    assert "Prompt-of-mine" not in everything
    assert "Answer" not in everything


async def test_the_seed_as_tgi_writes_it(logged: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        await server.generate({"seed": 18446744073709551615, "do_sample": True})
        await server.generate({"do_sample": False})
    assert [line["seed"] for line in spans(logged)] == ["Some(18446744073709551615)", "None"]


SEVERAL: list[tuple[str, dict[str, Any], int]] = [
    ("/generate", {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True, "max_new_tokens": 3}}, 3),
    ("/v1/chat/completions", {"messages": [USER], "n": 2, "max_tokens": 3}, 6),
    ("/v1/chat/completions", {"messages": [USER], "n": 2, "max_tokens": 3, "stream": True}, 6),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3}, 6),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 3, "stream": True}, 6),
    ("/vertex", {"instances": [{"inputs": "a", "parameters": {"max_new_tokens": 3}}] * 2}, 6),
]


@pytest.mark.parametrize(("path", "body", "tokens"), SEVERAL)
async def test_a_request_of_several_generations_counts_once(
    path: str, body: dict[str, Any], tokens: int, logged: pytest.LogCaptureFixture
) -> None:
    async with serving(lambda _params, _draw: 5) as server:  # a token that ends nothing
        assert (await server.ask("POST", path, body)).status == 200
        assert sample(server, "tgi_request_count") == 1
        assert sample(server, "tgi_request_success") == 1
        assert sample(server, "tgi_request_failure") == 0
        assert sample(server, "tgi_request_generated_tokens_sum") == tokens
    (line,) = spans(logged)
    assert line["generated_tokens"] == tokens


async def test_a_refused_request_is_logged_with_its_reason(logged: pytest.LogCaptureFixture) -> None:
    async with serving() as server:
        await server.ask("POST", "/generate", {"inputs": ""}, {"X-Request-Id": "mine"})
    (line,) = spans(logged, "Input validation error: `inputs` cannot be empty")
    assert (line["request_id"], line["status"], line["error_type"]) == ("mine", 422, "validation")
    assert [record.levelname for record in logged.records if "span" in vars(record)] == ["INFO"]


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/"])
async def test_every_refusal_is_a_failure(path: str, logged: pytest.LogCaptureFixture) -> None:
    """V03 and V04 too, which TGI does not count."""

    async with serving() as server:
        for parameters in ({"best_of": 9, "do_sample": True}, {"temperature": 0.0}):
            assert (await server.generate(parameters, path=path)).status == 422
        assert 'tgi_request_failure{err="validation"} 2' in await server.metrics()
        assert sample(server, "tgi_request_failure") == 2
    assert len([record for record in logged.records if "span" in vars(record)]) == 2


async def test_a_body_that_cannot_be_read_is_no_request_and_is_not_quoted(
    logged: pytest.LogCaptureFixture,
) -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/generate", {"inputs": {"text": "Prompt-of-mine"}})
        assert answer.status == 422
        answer = await server.ask("POST", "/generate", {"inputs": "x", "parameters": "Prompt-of-mine"})
        assert b"Prompt-of-mine" not in answer.body
        assert sample(server, "tgi_request_count") == 0
        assert sample(server, "tgi_request_failure") == 0
    assert [record.levelname for record in logged.records] == ["DEBUG", "DEBUG"]
    assert "Prompt-of-mine" not in "".join(str(vars(record)) for record in logged.records)


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions"])
async def test_a_failure_of_ours_is_an_error_in_the_log(path: str, logged: pytest.LogCaptureFixture) -> None:
    async with serving(step_seconds=60) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.ask, "POST", path, BODIES[path])
        engine = server.service.engine
        assert engine is not None
        while not engine.scheduler.statistics().running:
            await trio.sleep(0.001)
        engine.scheduler.fail_all(GenerationFailed("broken"))
    (record,) = [record for record in logged.records if "span" in vars(record)]
    assert (record.levelname, record.getMessage()) == (
        "ERROR",
        "Request failed during generation: broken",
    )


async def test_generations_that_fail_together_are_one_failure(logged: pytest.LogCaptureFixture) -> None:
    async with serving(counting(200), step_seconds=0.02) as server, await server.connect() as stream:
        await stream.send_all(posted("/v1/chat/completions", {"messages": [USER], "n": 2, "stream": True}))
        received = b""
        while b"data: " not in received:
            received += await stream.receive_some(65536)
        assert server.service.engine is not None
        server.service.engine.scheduler.fail_all(GenerationFailed("broken"))
        while b"[DONE]" not in received:
            received += await stream.receive_some(65536)
        assert received.count(b"broken") == 2
        assert sample(server, "tgi_request_count") == sample(server, "tgi_request_failure") == 1
    assert len(spans(logged, "Request failed during generation: broken")) == 1


@pytest.mark.contract("tgi_request_failure")
@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions"])
async def test_a_client_that_leaves_is_counted_and_logged_once(
    path: str, logged: pytest.LogCaptureFixture
) -> None:
    async with serving(step_seconds=60) as server:
        with trio.move_on_after(0.2):
            await server.ask("POST", path, BODIES[path])
        while not sample(server, "tgi_request_failure"):
            await trio.sleep(0.01)
        assert 'tgi_request_failure{err="dropped"} 1' in await server.metrics()
        assert sample(server, "tgi_request_count") == 1
    assert len(spans(logged, "The client has gone")) == 1


GRAFANA = {
    "tgi_request_count": ("counter", set()),
    "tgi_request_success": ("counter", set()),
    "tgi_request_failure": ("counter", {"err"}),
    "tgi_request_duration": ("histogram", set()),
    "tgi_request_queue_duration": ("histogram", set()),
    "tgi_request_generated_tokens": ("histogram", set()),
    "tgi_request_input_length": ("histogram", set()),
    "tgi_request_mean_time_per_token_duration": ("histogram", set()),
    "tgi_request_skipped_tokens": ("summary", set()),
    "tgi_queue_size": ("gauge", set()),
    "tgi_batch_current_size": ("gauge", set()),
    "tgi_batch_current_max_tokens": ("gauge", set()),
    "tgi_batch_inference_duration": ("histogram", {"method"}),
    "tgi_batch_forward_duration": ("histogram", {"method"}),
    "tgi_batch_decode_duration": ("histogram", {"method"}),
    "tgi_batch_filter_duration": ("histogram", {"method"}),
    "tgi_batch_concat_duration": ("histogram", {"method"}),
    "tgi_batch_concat": ("counter", {"reason"}),
}
"""Metrics that TGI's dashboard queries (assets/tgi_grafana.json in its repository)."""


async def test_every_panel_of_tgis_dashboard_has_something_to_show() -> None:
    """The server has answered every kind of request, two of them at the same time."""
    async with serving(counting(200), step_seconds=0.005) as server:
        for path, body in BODIES.items():
            await server.ask("POST", path, body)
        await server.generate({"top_k": 0})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.generate, {"max_new_tokens": 30})
            assert server.service.engine is not None
            while not server.service.engine.scheduler.statistics().running:
                await trio.sleep(0.001)
            nursery.start_soon(server.generate, {"max_new_tokens": 30})
        families = {family.name: family for family in text_string_to_metric_families(await server.metrics())}
        for name, (kind, labels) in GRAFANA.items():
            assert families[name].type == kind, name
            for one in families[name].samples:
                assert set(one.labels) - {"le", "quantile"} == labels, name
        methods = {one.labels["method"] for one in families["tgi_batch_decode_duration"].samples}
        assert methods == {"prefill", "decode"}


async def test_the_end_of_every_request_is_counted_once() -> None:
    """Successes and failures add up to the number of requests."""
    limits = attrs.evolve(LIMITS, max_concurrent_requests=1)
    async with serving(counting(200), step_seconds=0.01, limits=limits) as server:
        async with trio.open_nursery() as nursery:
            for path, body in [*BODIES.items(), *[(path, body) for path, body, _ in SEVERAL]]:
                nursery.start_soon(server.ask, "POST", path, body)
                nursery.start_soon(server.ask, "POST", path, body, {"X-Request-Timeout": "0.02"})
        assert (await server.generate({})).status == 200
        ended = sample(server, "tgi_request_success") + sample(server, "tgi_request_failure")
        assert sample(server, "tgi_request_count") == ended == 2 * (len(BODIES) + len(SEVERAL)) + 1
        assert sample(server, "tgi_request_success") > 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ns"),
        (1e-9, "1ns"),
        (1.5e-6, "1.5µs"),
        (0.012345678, "12.345678ms"),
        (0.1, "100ms"),
        (10.0, "10s"),
        (61.25, "61.25s"),
    ],
)
def test_durations_are_written_as_rust_does(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
