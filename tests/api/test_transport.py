"""tgi-behaviour 1.2 to 1.4: methods, paths, media types, sizes, keys, CORS; and how connections end."""

import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import h2.events
import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection

from tgi.api import transport
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


async def is_closed(stream: trio.SocketStream, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        try:
            return await stream.receive_some(65536) == b""
        except trio.BrokenResourceError:
            return True
    return False


async def answered(server: Server, request: bytes) -> trio.SocketStream:
    """Send a request, and read its answer up to an empty body."""
    stream = await server.connect()
    await stream.send_all(request)
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        received += await stream.receive_some(65536)
    assert b" 200 " in received
    return stream


async def test_200_idle_connections_are_closed() -> None:
    async with serving(keep_alive=0.5) as server:
        request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        streams = [await answered(server, request) for _ in range(200)]
        assert all([await is_closed(stream, 10) for stream in streams])
        for stream in streams:
            await stream.aclose()


async def test_200_connections_that_ask_for_it_are_closed_at_once() -> None:
    async with serving(keep_alive=1000) as server:
        request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        streams = [await answered(server, request) for _ in range(200)]
        assert all([await is_closed(stream, 5) for stream in streams])
        for stream in streams:
            await stream.aclose()


async def test_http_1_0_clients_get_their_end_of_file() -> None:
    async with serving(saying("Hello"), keep_alive=1000) as server:
        stream = await server.connect()
        body = b'{"inputs":"a"}'
        head = b"POST /generate_stream HTTP/1.0\r\nContent-Type: application/json\r\n"
        received = b""
        async with stream:
            await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            while data := await stream.receive_some(65536):
                received += data
        assert received.count(b"data: ") == 2
        assert received.endswith(b"}\n\n")


async def test_a_kept_connection_serves_request_after_request() -> None:
    async with serving() as server:
        stream = await answered(server, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        async with stream:
            for _ in range(5):
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert b" 200 " in await stream.receive_some(65536)


async def test_a_client_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = trio.Event()
    write = transport.Connection._write

    async def write_and_tell(connection: transport.Connection, data: bytes) -> None:
        try:
            await write(connection, data)
        finally:  # giving a client up may cancel the request that was writing
            waited.set()

    monkeypatch.setattr(transport, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(transport.Connection, "_write", write_and_tell)
    async with serving() as server, await server.connect() as stream:
        body = b'{"inputs":"%s"}' % (b"Hello " * 200_000)
        head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        await stream.send_all(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await waited.wait()
        received = b""
        while data := await stream.receive_some(1 << 20):
            received += data
        answer = received.partition(b"\r\n\r\n")[2]
        assert len(answer) < int(received.partition(b"content-length: ")[2].partition(b"\r")[0])


@pytest.mark.parametrize(
    "headers",
    [
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: \xff\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n",
    ],
)
async def test_what_hypercorn_cannot_read_ends_its_connection_and_no_other(
    headers: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as server, await server.connect() as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        while await stream.receive_some(65536):
            pass
        assert (await server.ask("GET", "/health")).status == 200
        assert "a connection was lost" in caplog.text


async def test_a_request_with_two_lengths_is_refused_and_what_follows_is_not_read() -> None:
    async with serving() as server, await server.connect() as stream:
        await stream.send_all(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /info HTTP/1.1\r\nHost: x\r\n\r\n"
        )
        received = b""
        while data := await stream.receive_some(65536):
            received += data
        assert received.startswith(b"HTTP/1.1 400 ")
        assert received.count(b"HTTP/1.1") == 1


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


async def raw(server: Server, request: bytes) -> bytes:
    """Return the first bytes of the answer to these bytes."""
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(request)
        return bytes(await stream.receive_some())


@pytest.mark.parametrize("target", [b"?", b"?a=b", b"generate", b"#x"])
async def test_a_target_that_is_no_path_is_400(target: bytes) -> None:
    async with serving() as server:
        answer = await raw(server, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


async def test_a_status_has_its_reason_phrase() -> None:
    async with serving() as server:
        answer = await raw(server, b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 404 Not Found\r\n")


@pytest.mark.parametrize("piece", [1, 1_000_000])
@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n\n", b"\r\n" * 100_000])
async def test_empty_lines_before_a_request_are_passed_over(empty: bytes, piece: int) -> None:
    """RFC 9112, 2.2: before the first request of a connection, between two, and behind the last."""
    body = b'{"inputs": "a"}'
    post = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    post += b"Content-Length: %d\r\n\r\n" % len(body) + body
    last = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    if len(empty) > 100:
        piece = max(piece, 10_000)
    requests = empty + post + empty + post + empty + last + empty
    async with serving() as server, await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        received = b""

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError):  # closed before what is behind the last
                for begin in range(0, len(requests), piece):
                    await stream.send_all(requests[begin : begin + piece])

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                with contextlib.suppress(trio.BrokenResourceError):
                    while data := await stream.receive_some():
                        received += data
    assert received.count(b"HTTP/1.1 200 OK\r\n") == received.count(b"HTTP/1.1 ") == 3


@pytest.mark.parametrize("behind", [b"\r\n", b"\x16\x03", b"POST /generate HTTP/1.1\r\n\r\n"])
async def test_nothing_is_read_behind_a_request_that_closes_its_connection(behind: bytes) -> None:
    request = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with serving() as server:
        assert (await raw(server, request + behind)).startswith(b"HTTP/1.1 404 Not Found\r\n")


async def test_empty_lines_alone_are_no_request_and_keep_no_connection_open() -> None:
    async with serving(keep_alive=0.2) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            await stream.send_all(b"\r\n\r")
            assert await stream.receive_some() == b""


@pytest.mark.parametrize(("size", "status"), [(60_000, b"200"), (70_000, b"431")])
@pytest.mark.parametrize("piece", [1_000_000, 17_000, 30_000])
async def test_headers_are_limited_however_tcp_cuts_them(size: int, status: bytes, piece: int) -> None:
    request = b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nCookie: " + b"x" * size + b"\r\n\r\n"
    async with serving() as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stream:
            for begin in range(0, len(request), piece):
                await stream.send_all(request[begin : begin + piece])
                await trio.sleep(0.01)
            answer = await stream.receive_some()
    assert answer.split()[1] == status


async def test_a_client_that_closes_leaves_no_socket_open() -> None:
    async with serving(keep_alive=75) as server:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            async with stream:
                await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await stream.receive_some()
        with trio.fail_after(5):
            while len(os.listdir("/proc/self/fd")) > before:
                await trio.sleep(0.01)


class HTTP2:
    """A client of HTTP/2 on one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        unchecked = dict.fromkeys(("validate_outbound_headers", "normalize_outbound_headers"), False)
        self._connection = H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8", **unchecked)
        )
        self._connection.initiate_connection()
        self.statuses: dict[int, str] = {}
        self.ended: set[int] = set()
        """Streams that the server has ended or reset."""

    def begin(self, method: str, path: str, body: bytes | None = None, *, end: bool = True) -> int:
        names = {":method": method, ":path": path, ":scheme": "http", ":authority": "x"}
        return self.begin_with({**names, "content-type": "application/json"}, body, end=end)

    def begin_with(self, headers: dict[str, str], body: bytes | None = None, *, end: bool = True) -> int:
        """Begin a stream with headers that may break every rule."""
        number: int = self._connection.get_next_available_stream_id()
        self._connection.send_headers(number, list(headers.items()), end_stream=body is None)
        if body is not None:
            self.send(number, body, end=end)
        return number

    def send(self, number: int, body: bytes, *, end: bool = True) -> None:
        self._connection.send_data(number, body, end_stream=end)

    def reset(self, number: int) -> None:
        self._connection.reset_stream(number)

    async def finish(self, *numbers: int) -> None:
        """Read until these streams have ended."""
        await self._stream.send_all(self._connection.data_to_send())
        while not self.ended.issuperset(numbers):
            data = await self._stream.receive_some()
            assert data, "the server has closed the connection"
            for event in self._connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    self.statuses[event.stream_id] = dict(event.headers)[":status"]
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    self.ended.add(event.stream_id)
                elif isinstance(event, h2.events.DataReceived):
                    self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            await self._stream.send_all(self._connection.data_to_send())


@contextlib.asynccontextmanager
async def http2(server: Server) -> AsyncIterator[HTTP2]:
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        yield HTTP2(stream)


LONG = json.dumps({"inputs": "x", "parameters": {"max_new_tokens": 40}}).encode()


async def test_http2_serves_more_than_a_thousand_requests_on_a_connection() -> None:
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        for _ in range(999):
            await client.finish(client.begin("GET", "/health"))
        long = client.begin("POST", "/generate_stream", LONG)
        await client.finish(*(client.begin("GET", "/health") for _ in range(5)))
        await client.finish(long)
        assert set(client.statuses.values()) == {"200"}


@pytest.mark.parametrize(
    ("method", "path", "status"), [("POST", "/nope", "404"), ("PUT", "/generate", "405")]
)
async def test_http2_answers_before_the_end_of_a_body_without_cutting_others(
    method: str, path: str, status: str
) -> None:
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        long = client.begin("POST", "/generate_stream", LONG)
        refused = client.begin(method, path, b"x" * 1000, end=False)
        await client.finish(refused)
        client.send(refused, b"y" * 1000)
        await client.finish(long)
        assert client.statuses == {long: "200", refused: status}


HEAD = {":method": "GET", ":path": "/health", ":scheme": "http", ":authority": "x"}
POST = HEAD | {":method": "POST", ":path": "/generate", "content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (HEAD | {"X-Upper": "1"}, None),
        (HEAD | {"connection": "close"}, None),
        (HEAD | {"x-a": "a\r\nb: c"}, None),
        (HEAD | {":path": ""}, None),
        (HEAD | {":path": "/é"}, None),
        (HEAD | {":method": "GÉT"}, None),
        (HEAD | {":authority": "é"}, None),
        ({":method": "CONNECT", ":authority": "x:80"}, None),
        ({":method": "GET", ":scheme": "http", ":authority": "x"}, None),
        (POST | {"content-length": "5"}, b"longer than that"),
        (POST | {"content-length": "50"}, b"shorter"),
        (POST | {"content-length": "x"}, b"{}"),
        (HEAD | {"x-long": "x" * 100_000}, None),
    ],
)
async def test_a_malformed_request_of_http2_ends_alone(headers: dict[str, str], body: bytes | None) -> None:
    """RFC 9113, 8.1.1: malformed requests are errors of a stream."""
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        long = client.begin("POST", "/generate_stream", LONG)
        malformed = client.begin_with(headers, body)
        await client.finish(malformed)
        assert client.statuses.get(malformed) == ("431" if "x-long" in headers else None)
        await client.finish(long, client.begin("GET", "/health"))
        assert client.statuses[long] == "200"


async def test_http2_takes_streams_begun_before_the_limit_is_known() -> None:
    async with serving(step_seconds=0.01) as server, http2(server) as client:
        await client.finish(*(client.begin("GET", "/health") for _ in range(400)))
        assert len(client.statuses) == 400


async def test_http2_streams_that_are_begun_and_reset_at_once_cost_no_other_and_leave_nothing() -> None:
    """Rapid reset (CVE-2023-44487)."""
    async with serving(step_seconds=0.01) as server, http2(server) as client, http2(server) as other:
        assert server.service.engine is not None
        scheduler = server.service.engine.scheduler
        for _ in range(20):
            for _ in range(50):
                client.reset(client.begin("POST", "/generate_stream", LONG))
            await client.finish(client.begin("GET", "/health"))
            await other.finish(other.begin("GET", "/health"))
        assert set(other.statuses.values()) == {"200"}
        with trio.fail_after(10):
            while server.service.in_flight or scheduler.statistics().blocks.used:
                await trio.sleep(0.01)


async def test_http2_headers_without_an_end_are_cut_off() -> None:
    """CONTINUATION flood (CVE-2024-27316)."""
    async with serving() as server:
        stream = await server.connect()
        async with stream:
            first = H2Connection(H2Configuration(client_side=True))
            first.initiate_connection()
            piece = b"\x00\x01x" + b"\x7f\x81\xff\x00" + b"y" * 511  # one header of a literal name
            frames = [b"\x00\x00\x00\x01\x00\x00\x00\x00\x01"]  # HEADERS, of nothing so far
            frames += [len(piece).to_bytes(3, "big") + b"\x09\x00\x00\x00\x00\x01" + piece] * 10_000
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(first.data_to_send())
                for frame in frames:
                    await stream.send_all(frame)
            assert await is_closed_in_the_end(stream)
        assert (await server.ask("GET", "/health")).status == 200


async def is_closed_in_the_end(stream: trio.SocketStream) -> bool:
    """Return whether the server closes the connection after what it has to say."""
    with trio.move_on_after(10):
        with contextlib.suppress(trio.BrokenResourceError):
            while await stream.receive_some(65536):
                pass
        return True
    return False
