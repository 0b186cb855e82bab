"""Behaviour that all routes share (tgi-behaviour 1.1, 1.2, 1.4, 1.5, 1.7)."""

import re
from collections import defaultdict
from typing import Any

import pytest

from tgi.api import app
from tgi.api.app import create_app
from tgi.api.service import Service
from tgi.config import Options
from tgi.lifecycle import Lifecycle, Phase
from tgi.limits import Limits
from tgi.metrics import Metrics

from .serving import Server, saying, serving

USER = {"role": "user", "content": "Hello"}


def methods_by_path() -> dict[str, set[str]]:
    """GET, POST and DELETE of every path, with x for each of its variables."""
    made = create_app(Service(limits=Limits(), lifecycle=Lifecycle(), metrics=Metrics()))
    found: dict[str, set[str]] = defaultdict(set)
    for rule in made.url_map.iter_rules():
        path = rule.rule.replace("<path:model>", "some/model")
        path = path.replace("/docs/<name>", "/docs/swagger-ui.css").replace("/page/<name>", "/page/page.js")
        path = re.sub("<[^>]*>", "x", path)
        found[path] |= (rule.methods or set()) & {"GET", "POST", "DELETE"}
    return found


STORED = ("/v1/responses/x", "/v1/responses/x/input_items")
"""Paths of what clients have stored, behind the key."""
GETS = [path for path, methods in methods_by_path().items() if "GET" in methods and path not in STORED]


POSTS = """/ /generate /generate_stream /v1/chat/completions /v1/completions /invocations /vertex /tokenize
    /chat_tokenize /detokenize /v2/models/x/versions/x/infer /v1/messages /v1/messages/count_tokens
    /v1/responses /v1/load_lora_adapter /v1/unload_lora_adapter /api/chat /api/generate /api/show
    /v1/embeddings /v1/rerank /rerank /v1/score /embed"""
OPEN = """/ /health /health/live /health/startup /ping /info /v1/models /v1/models/some/model
    /version /load /metrics /docs /docs/ /docs/swagger-ui.css
    /page/page.js /api-doc/openapi.json /v2 /v2/health/live /v2/health/ready /v2/models/x/versions/x
    /v2/models/x/versions/x/ready /api/tags /api/ps /api/version"""


@pytest.mark.contract("1.1")
def test_the_routes() -> None:
    assert {path for path, methods in methods_by_path().items() if "POST" in methods} == set(POSTS.split())
    assert set(GETS) == set(OPEN.split())


@pytest.mark.contract("R1.31")
async def test_every_path_says_which_methods_it_has() -> None:
    async with serving() as server:
        for path, methods in methods_by_path().items():
            allowed = [
                *(["POST"] if "POST" in methods else []),
                *(["GET", "HEAD"] if "GET" in methods else []),
                *(["DELETE"] if "DELETE" in methods else []),
            ]
            answer = await server.ask("PATCH", path)
            assert (answer.status, answer.body) == (405, b""), path
            assert answer.headers["allow"] == ",".join(allowed), path


@pytest.mark.contract("R1.32")
async def test_head_is_get_without_the_body() -> None:
    async with serving() as server:
        for path in GETS:
            get, head = await server.ask("GET", path), await server.ask("HEAD", path)
            assert head.status == get.status == (303 if path == "/docs" else 200), path
            assert head.body == b"", path
            for name in ("content-type", "location"):
                assert head.headers.get(name) == get.headers.get(name), path


@pytest.mark.contract("R1.50", "R1.64")
async def test_every_preflight_is_answered_without_a_key() -> None:
    async with serving(options=Options(api_key=("secret",))) as server:
        for path in methods_by_path():
            answer = await server.ask("OPTIONS", path)
            assert (answer.status, answer.body) == (200, b""), path
            methods = "GET,POST,DELETE" if path in STORED else "GET,POST"
            assert answer.headers["access-control-allow-methods"] == methods


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
async def test_what_answers_while_the_server_is_not_ready(phase: Phase) -> None:
    """Gets only; every POST is 503 then."""
    ready = {"/", "/health", "/ping", "/v2/health/ready", "/v2/models/x/versions/x/ready"}
    loaded = {"/info", "/v1/models", "/v1/models/some/model", "/health/startup", "/api/tags", "/api/ps"}
    async with serving(phase=phase) as server:
        for path in GETS:
            refused = path in ready | (loaded if phase is Phase.STARTING else set())
            answer = await server.ask("GET", path)
            assert (answer.status == 503) == refused, path
            assert ("retry-after" in answer.headers) == refused, path


STREAMS: list[tuple[str, dict[str, Any]]] = [
    ("/generate_stream", {"inputs": "x"}),
    ("/", {"inputs": "x", "stream": True}),
    ("/v1/chat/completions", {"messages": [USER], "stream": True}),
    ("/v1/completions", {"prompt": "x", "stream": True}),
    ("/invocations", {"messages": [USER], "stream": True}),
]


@pytest.mark.contract("R1.41", "1.5")
@pytest.mark.parametrize(("path", "body"), STREAMS)
async def test_a_stream_is_chunked_and_not_buffered(path: str, body: dict[str, Any]) -> None:
    async with serving(saying("Hello"), options=Options(compute_type="1-gaudi2")) as server:
        answer = await server.ask("POST", path, body)
        assert answer.status == 200
        for name, value in {
            "transfer-encoding": "chunked",
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            "x-compute-type": "1-gaudi2",
        }.items():
            assert answer.headers[name] == value
        assert int(answer.headers["x-compute-characters"]) > 0
        assert not {"x-total-time", "x-compute-time", "x-generated-tokens"} & answer.headers.keys()


async def test_a_body_must_come_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.1)
    async with serving() as server, await server.connect() as stream:
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        await stream.send_all(head + b'Content-Length: 14\r\n\r\n{"inputs"')
        assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 408 ")


@pytest.mark.contract("R1.35", "R1.41")
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (b"Transfer-Encoding: chunked", b'e\r\n{"inputs":"a"}\r\n0\r\n\r\n', 200),
        (b"Transfer-Encoding: chunked", 2 * (b"258\r\n" + 600 * b" " + b"\r\n") + b"0\r\n\r\n", 413),
        (b"Expect: 100-continue\r\nContent-Length: 14", b'{"inputs":"a"}', 100),
    ],
)
async def test_bodies_in_chunks_and_after_a_pause(headers: bytes, body: bytes, status: int) -> None:
    async with (
        serving(saying("Hello"), options=Options(payload_limit=1000)) as server,
        await server.connect() as stream,
    ):
        head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + headers
        await stream.send_all(head + b"\r\n\r\n")
        if status == 100:
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(body)
        wanted = 200 if status == 100 else status
        assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 %d " % wanted)


@pytest.mark.contract("1.5")
async def test_the_headers_of_completions_are_sums() -> None:
    """The time per token is a sum too; x-compute-time is missing."""
    async with serving(saying("Hello world"), step_seconds=0.02) as server:
        answer = await server.ask("POST", "/v1/completions", {"prompt": ["é", "Hello"]})
        headers = {name: value for name, value in answer.headers.items() if name.startswith("x-")}
        assert headers.pop("x-request-id")
        assert headers.pop("x-compute-type") == "gpu+optimized"
        assert headers.pop("x-compute-characters") == "6"
        usage = answer.json["usage"]
        assert headers.pop("x-prompt-tokens") == str(usage["prompt_tokens"])
        assert headers.pop("x-generated-tokens") == str(usage["completion_tokens"]) == "6"
        times = {name: int(value) for name, value in headers.items()}
        assert times.keys() == {
            "x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token",
        }  # fmt: skip
        # Two of three tokens each, at 20 ms a token and more.
        assert times["x-inference-time"] >= 2 * 60
        assert abs(times["x-time-per-token"] - times["x-inference-time"] / 3) <= 2


@pytest.mark.contract("1.5")
async def test_the_time_of_an_answer() -> None:
    """Milliseconds, but for x-compute-time."""
    async with serving(saying("Hello world"), step_seconds=0.02) as server:
        for path, body in [
            ("/generate", {"inputs": "x"}),
            ("/", {"inputs": "x"}),
            ("/v1/chat/completions", {"messages": [USER]}),
        ]:
            headers = (await server.ask("POST", path, body)).headers
            total = int(headers["x-total-time"])
            assert 60 <= int(headers["x-inference-time"]) <= total
            assert abs(1000 * float(headers["x-compute-time"]) - total) < 5
            assert abs(int(headers["x-time-per-token"]) - int(headers["x-inference-time"]) / 3) <= 1


@pytest.mark.contract("R1.70")
async def test_other_answers_have_no_such_headers() -> None:
    """Errors, and the routes that TGI does not time."""

    async def ask_all(server: Server) -> None:
        infer = {"id": "1", "inputs": [], "outputs": []}
        for method, path, body, status in [
            ("POST", "/generate", {"inputs": ""}, 422),
            ("POST", "/v1/chat/completions", {"messages": [USER], "top_p": 2}, 400),
            ("POST", "/v1/completions", {"prompt": "x", "suffix": "y"}, 400),
            ("POST", "/generate", {}, 422),
            ("GET", "/generate", None, 405),
            ("POST", "/tokenize", {"inputs": "x"}, 200),
            ("POST", "/chat_tokenize", {"messages": [USER]}, 200),
            ("POST", "/detokenize", {"tokens": [1]}, 200),
            ("POST", "/vertex", {"instances": [{"inputs": "x"}]}, 200),
            ("POST", "/v2/models/m/versions/1/infer", infer, 200),
            ("GET", "/info", None, 200),
        ]:
            answer = await server.ask(method, path, body)
            assert answer.status == status, path
            assert [name for name in answer.headers if name.startswith("x-")] == ["x-request-id"], path

    async with serving(saying("Hello")) as server:
        await ask_all(server)


@pytest.mark.contract("R1.94")
async def test_there_may_be_any_number_of_instances_each_with_a_permit() -> None:
    async with serving(saying("Hello")) as server:
        assert server.service.limits.max_client_batch_size == 4
        for count, status in ((8, 200), (9, 429)):
            answer = await server.ask("POST", "/vertex", {"instances": [{"inputs": "x"}] * count})
            assert answer.status == status
        assert server.service.in_flight == 0
