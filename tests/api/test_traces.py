"""The trace of each kind of request (tgi-behaviour 10.1), as a collector gets it."""

import re
from collections.abc import Awaitable, Callable

import pytest
import trio
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.trace_collector import TraceCollector, collecting, values
from tgi.tracing import Tracer

from .serving import Server, serving
from .test_observe import BODIES, NAMES, SEVERAL

TRACEPARENT = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
PARTS = ["validate", "queued", "prefill", "decode"]


async def traced(ask: Callable[[Server], Awaitable[None]], step_seconds: float = 0.0) -> TraceCollector:
    """Return what a collector has received when a server has answered and ended."""
    with collecting() as collector:
        tracer = Tracer.start(collector.grpc_endpoint, "x")
        async with serving(lambda _params, _draw: 70, step_seconds=step_seconds) as server:
            server.service.tracer = tracer
            await ask(server)
        await trio.to_thread.run_sync(tracer.shutdown)
    return collector


async def test_every_kind_of_generation_is_a_span_with_its_parts() -> None:
    async def ask(server: Server) -> None:
        for path, body in BODIES.items():
            assert (await server.ask("POST", path, body, TRACEPARENT)).status == 200

    collector = await traced(ask)
    assert len(collector.spans) == len(NAMES) * (1 + len(PARTS))
    for name, route in zip(NAMES, BODIES, strict=True):
        span = collector.named(name)
        assert span.trace_id.hex() == TRACEPARENT["traceparent"][3:35]
        assert span.parent_span_id.hex() == TRACEPARENT["traceparent"][36:52]
        assert span.status.code == Status.STATUS_CODE_UNSET
        assert values(span)["route"] == route
        children = collector.children(span)
        assert [child.name for child in children] == PARTS
        moments = [
            moment for one in children for moment in (one.start_time_unix_nano, one.end_time_unix_nano)
        ]
        assert moments == sorted(moments)
        assert span.start_time_unix_nano <= moments[0]
        assert moments[-1] <= span.end_time_unix_nano


async def test_attributes() -> None:
    async def ask(server: Server) -> None:
        body = {
            "inputs": "Prompt-of-mine",
            "parameters": {"do_sample": True, "seed": 42, "max_new_tokens": 3, "stop": ["Secret"]},
        }
        await server.ask("POST", "/generate", body, {"X-Request-Id": "mine"})

    collector = await traced(ask)
    attributes = values(collector.named("generate"))
    for key in ("total_time", "validation_time", "queue_time", "inference_time", "time_per_token"):
        assert re.fullmatch(r"[0-9.]+(ns|µs|ms|s)", str(attributes[key])), key
    assert attributes["seed"] == "Some(42)"
    assert attributes["generated_tokens"] == 3
    assert attributes["finish_reason"] == "length"
    assert attributes["request_id"] == "mine"
    assert "seed=42" in str(attributes["parameters"])
    assert "Prompt-of-mine" not in str(collector.spans)
    assert "Secret" not in str(collector.spans)


@pytest.mark.parametrize(("path", "body", "tokens"), SEVERAL)
async def test_several_generations_are_one_span(path: str, body: dict[str, object], tokens: int) -> None:
    async def ask(server: Server) -> None:
        await server.ask("POST", path, body)

    collector = await traced(ask)
    (span,) = [span for span in collector.spans if not span.parent_span_id]
    assert values(span)["generated_tokens"] == tokens
    generations = tokens // 3
    assert sorted(child.name for child in collector.children(span)) == sorted(PARTS * generations)


async def test_a_refused_request() -> None:
    async def ask(server: Server) -> None:
        await server.generate({"top_k": 0})

    collector = await traced(ask)
    span = collector.named("generate")
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "validation")
    assert values(span)["status"] == 422
    assert collector.children(span) == []


async def test_a_request_that_is_cut_shows_how_far_it_came() -> None:
    async def ask(server: Server) -> None:
        await server.ask("POST", "/generate", BODIES["/generate"], {"X-Request-Timeout": "0.05"})

    collector = await traced(ask, step_seconds=60)
    span = collector.named("generate")
    assert span.status.message == "deadline"
    children = collector.children(span)
    assert [child.name for child in children] == ["validate", "queued", "prefill"]
    assert children[-1].end_time_unix_nano - children[-1].start_time_unix_nano < 10e9


async def test_a_client_that_leaves() -> None:
    async def ask(server: Server) -> None:
        with trio.move_on_after(0.2):
            await server.ask("POST", "/generate_stream", BODIES["/generate_stream"])
        while "dropped" not in await server.metrics():
            await trio.sleep(0.01)

    collector = await traced(ask, step_seconds=60)
    assert collector.named("generate_stream").status.message == "dropped"


async def test_what_generates_nothing_leaves_no_trace() -> None:
    async def ask(server: Server) -> None:
        for path in ("/health", "/info", "/metrics", "/nope"):
            await server.ask("GET", path, None, TRACEPARENT)
        await server.ask("POST", "/tokenize", {"inputs": "x"})

    assert (await traced(ask)).spans == []
