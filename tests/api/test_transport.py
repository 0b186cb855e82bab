"""tgi-behaviour 1.2 to 1.4: methods, paths, media types, sizes, keys, CORS; and the server's own faults."""

import json
import re
from contextlib import AsyncExitStack

import pytest
import trio

from tgi.api.app import create_app
from tgi.api.turns import THREADS
from tgi.config import Options
from tgi.lifecycle import Phase

from .json_rows import ACCEPTED_HERE, PATHS, REFUSED_HERE, ROWS
from .serving import Server, saying, serving

POSTS = [
    "/generate", "/generate_stream", "/", "/tokenize", "/chat_tokenize", "/detokenize", "/invocations",
    "/vertex", "/v2/models/m/versions/1/infer",
]  # fmt: skip
GETS = ["/health", "/ping", "/info", "/metrics", "/"]


@pytest.mark.contract("1.1", "R1.30")
async def test_an_unknown_path_is_404_that_names_the_paths_and_the_model() -> None:
    async with serving(options=Options(api_key=("secret",))) as server:
        for path in ("/generate/", "/predict", "/v1/images", "/health/", "/" + 5000 * "x"):
            answer = await server.ask("GET", path)
            assert answer.status == 404, path
            message = answer.json["error"]["message"] if path.startswith("/v1/") else answer.json["error"]
            assert message.startswith(f"There is no {path[:100]}")
            assert "The paths of some/model are " in message
            assert "POST /generate, POST /generate_stream, GET /health" in message
            assert "POST /v1/chat/completions" in message
            assert len(message) < 1200
            assert answer.json["error_type"] == "not_found"
        assert (await server.ask("HEAD", "/predict")).body == b""


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/generate/", "/generate"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completion", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/v1/generate", "/generate"),
    ],
)
async def test_a_path_that_is_nearly_right_is_told_the_right_one(path: str, meant: str) -> None:
    async with serving() as server:
        answer = await server.ask("POST", path, {})
        assert f"did you mean {meant}?" in json.dumps(answer.json)


@pytest.mark.contract("R1.31")
@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/generate", "POST"),
        ("DELETE", "/tokenize", "POST"),
        ("POST", "/health", "GET,HEAD"),
        ("PUT", "/", "POST,GET,HEAD"),
    ],
)
async def test_another_method_is_405_and_says_which_are_allowed(method: str, path: str, allow: str) -> None:
    async with serving() as server:
        answer = await server.ask(method, path)
        assert (answer.status, answer.body, answer.headers["allow"]) == (405, b"", allow)


async def test_head_works_on_every_get_route() -> None:
    async with serving() as server:
        for path in GETS:
            answer = await server.ask("HEAD", path)
            assert (answer.status, answer.body) == (200, b"")


@pytest.mark.contract("R1.34")
@pytest.mark.parametrize(
    ("media", "accepted"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ("Application/JSON", True),
        ("application/vnd.api+json", True),
        ("text/plain", False),
        ("text/json", False),
        ("", False),
        ("application/jsonx", False),
    ],
)
async def test_only_json_is_read(media: str, accepted: bool) -> None:
    async with serving(saying("x")) as server:
        answer = await server.ask("POST", "/generate", {"inputs": "a"}, {"Content-Type": media})
        if accepted:
            assert answer.status == 200
            return
        assert answer.status == 415
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body == b"Expected request with `Content-Type: application/json`"


async def test_a_compressed_body_is_refused_by_name() -> None:
    async with serving(saying("x")) as server:
        for coding, status in (("gzip", 415), ("br", 415), ("identity", 200), ("", 200)):
            for path in ("/generate", "/api/generate"):
                answer = await server.ask(
                    "POST", path, {"inputs": "a", "prompt": "a"}, {"Content-Encoding": coding}
                )
                assert answer.status == status, (coding, path)
                assert (status == 200) != (f"without `Content-Encoding: {coding}`".encode() in answer.body)


@pytest.mark.contract("R1.35", "R1.92", "--payload-limit")
async def test_a_body_may_be_as_long_as_the_limit_and_no_longer() -> None:
    async with serving(saying("x"), options=Options(payload_limit=1000)) as server:
        for surplus in (0, 1):
            body = b'{"inputs":"a"}'.ljust(1000 + surplus)
            answer = await server.ask("POST", "/tokenize", body)
            assert answer.status == (413 if surplus else 200)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.body == b"Failed to buffer the request body: length limit exceeded"


PREFIX = {
    422: b"Failed to deserialize the JSON body into the target type: ",
    400: b"Failed to parse the request body as JSON: ",
}


@pytest.mark.contract(
    "R1.36", "R1.37", "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "C30", "C31", "T1", "T2", "12.1"
)
@pytest.mark.parametrize("kind", PATHS)
async def test_section_12_1(kind: str) -> None:
    async with serving(saying("x")) as server:
        accepted = [(body, 0, "") for of, body in ACCEPTED_HERE if of == kind]
        for body, status, reason in [row[1:] for row in (*ROWS, *REFUSED_HERE) if row[0] == kind] + accepted:
            answer = await server.ask("POST", PATHS[kind], body.encode())
            openai = PATHS[kind].startswith("/v1/")
            if not status:  # decoded; a rule of 2.6 may still refuse it
                assert answer.status in (200, 400 if openai else 422), body
                assert answer.headers["content-type"] == "application/json", body
                assert answer.status == 200 or answer.json["error_type"] != "body"
                continue
            assert answer.status == (400 if openai else status), body
            kind_of_answer = "application/json" if openai else "text/plain; charset=utf-8"
            assert answer.headers["content-type"] == kind_of_answer
            text = answer.json["error"]["message"].encode() if openai else answer.body
            assert text == PREFIX[status] + reason.encode()


@pytest.mark.contract("12.1")
async def test_an_empty_body_is_400() -> None:
    async with serving() as server:
        answer = await server.ask("POST", "/generate", b"")
        assert answer.status == 400
        assert answer.body == PREFIX[400] + b"Input data was truncated"


@pytest.mark.contract("R1.33", "R1.50", "R1.51", "R1.52", "--api-key")
async def test_a_key_guards_what_costs_something() -> None:
    async with serving(saying("x"), options=Options(api_key=("Se-cret",))) as server:
        for path in [*POSTS, "//generate", "/%67enerate"]:
            # 401 wins over 415, and has no body and no challenge.
            answer = await server.ask("POST", path, b"x", {"Content-Type": "text/plain"})
            assert (answer.status, answer.body) == (401, b"")
            assert "www-authenticate" not in answer.headers
        for path in GETS:
            assert (await server.ask("GET", path)).status == 200
        assert (await server.ask("GET", "/generate")).status == 401  # R1.33
        assert (await server.ask("PUT", "/")).status == 405
        assert (await server.ask("GET", "/v2/models/m/versions/1/infer")).status == 401
        assert (await server.ask("GET", "/v2/models/m/versions/1/ready")).status == 200
        for path in ("/v1/chat/completions", "/v1/completions"):  # deviation R1.52
            answer = await server.ask("POST", path, b"x")
            assert answer.status == 401
            assert answer.json["error"]["message"] == "Missing or wrong API key"
            assert answer.json["error"]["code"] == "invalid_api_key"
        for given, status in [
            ("Bearer Se-cret", 200),
            ("bearer Se-cret", 200),
            ("Bearer se-cret", 401),  # deviation R1.51
            ("Bearer  Se-cret", 401),
            ("Basic Se-cret", 401),
            ("Se-cret", 401),
        ]:
            key = {"Authorization": given}
            assert (await server.ask("POST", "/generate", {"inputs": "a"}, key)).status == status, given
        for given, status in [("Se-cret", 200), ("se-cret", 401), ("Bearer Se-cret", 401), ("", 401)]:
            for key in ({"X-Api-Key": given}, {"X-Api-Key": given, "Authorization": "Bearer not-needed"}):
                assert (await server.ask("POST", "/generate", {"inputs": "a"}, key)).status == status, given
        assert (await server.ask("GET", "/generate", None, {"Authorization": "Bearer Se-cret"})).status == 405


@pytest.mark.contract("R1.50")
async def test_what_works_or_was_stored_for_clients_needs_the_key_and_nothing_else() -> None:
    """Asked of the application itself, so that no new route is forgotten."""
    async with serving(options=Options(api_key=("secret",))) as server:
        asked = 0
        for rule in create_app(server.service).url_map.iter_rules():
            path = re.sub("<[^>]*>", "x", rule.rule)
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
                refused = (await server.ask(method, path)).status == 401
                guarded = method in ("POST", "DELETE") or path.startswith("/v1/responses/")
                assert refused == guarded, rule
                asked += 1
        assert asked > 20


async def test_each_of_several_keys_will_do() -> None:
    async with serving(saying("x"), options=Options(api_key=("first", "second"))) as server:
        for key, status in [("first", 200), ("third", 401), ("firstsecond", 401)]:
            answer = await server.ask(
                "POST", "/tokenize", {"inputs": "a"}, {"Authorization": f"Bearer {key}"}
            )
            assert answer.status == status, key


@pytest.mark.contract("R1.60", "R1.61", "R1.63", "R1.64")
async def test_cors_decorates_every_answer() -> None:
    vary = "origin, access-control-request-method, access-control-request-headers"
    async with serving(saying("x")) as server:
        for method, path in [
            ("GET", "/health"),
            ("GET", "/nope"),
            ("PUT", "/generate"),
            ("POST", "/generate"),
        ]:
            answer = await server.ask(method, path)
            assert answer.headers["access-control-allow-origin"] == "*"
            assert answer.headers["access-control-expose-headers"] == "*"
            assert answer.headers["vary"] == vary
        for path in ("/generate", "/nope"):
            answer = await server.ask("OPTIONS", path)
            assert (answer.status, answer.body) == (200, b"")
            assert answer.headers["access-control-allow-methods"] == "GET,POST"
            assert answer.headers["access-control-allow-headers"] == "content-type,authorization,*"
            assert "access-control-max-age" not in answer.headers


@pytest.mark.contract("R1.62", "--cors-allow-origin")
async def test_only_listed_origins_are_echoed() -> None:
    allowed = ("https://a.example", "https://b.example")
    async with serving(options=Options(cors_allow_origin=allowed)) as server:
        for origin in allowed:
            answer = await server.ask("GET", "/info", None, {"Origin": origin})
            assert answer.headers["access-control-allow-origin"] == origin
        for headers in ({}, {"Origin": "https://c.example"}):
            answer = await server.ask("GET", "/info", None, headers)
            assert "access-control-allow-origin" not in answer.headers


async def test_an_asterisk_among_the_origins_is_any() -> None:
    async with serving(options=Options(cors_allow_origin=("https://a.example", "*"))) as server:
        answer = await server.ask("GET", "/info", None, {"Origin": "https://c.example"})
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/v1/completions", "/vertex"])
async def test_a_large_body_is_read_in_a_thread_and_keeps_nobody_waiting(path: str) -> None:
    async def ask_large(server: Server) -> None:
        body = b'{"inputs":1,"messages":1,"prompt":1,"instances":1,"more":[%s1]}' % (b"[]," * 10_000)
        assert (await server.ask("POST", path, body)).status == (400 if path.startswith("/v1") else 422)

    async with serving(saying("Hello")) as server, trio.open_nursery() as nursery:
        turns = server.service.turns
        async with AsyncExitStack() as others:
            for _ in range(THREADS):
                await others.enter_async_context(turns.turn("others", 1))
            nursery.start_soon(ask_large, server)
            while not turns.waiting:
                await trio.sleep(0.001)
            assert (await server.generate({})).json == {"generated_text": "Hello"}


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.DRAINING])
async def test_before_and_after_service_every_generation_is_503_with_retry_after(phase: Phase) -> None:
    async with serving(phase=phase) as server:
        for path in POSTS:
            answer = await server.ask("POST", path, {"inputs": "a"})
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.json["error_type"] == "unavailable"


async def test_a_defect_is_a_500_that_keeps_its_secrets(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(saying("Hello")) as server:
        assert server.service.engine is not None
        scheduler = server.service.engine.scheduler
        scheduler.generating = None  # type: ignore[assignment,method-assign]
        for path in ("/generate", "/generate_stream"):
            answer = await server.generate({}, path=path)
            assert answer.status == 500
            assert answer.json == {"error": "Internal server error", "error_type": "internal"}
            assert server.service.in_flight == 0
        assert (await server.ask("GET", "/health")).status == 200
    assert "a defect while answering POST /generate_stream" in caplog.text
    assert "TypeError" in caplog.text
