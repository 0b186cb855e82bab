"""Traces as a collector gets them over gRPC and over HTTP (tgi-behaviour O1, O2)."""

import subprocess
import sys
import time

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.trace_collector import collecting, values
from tgi.tracing import Tracer, exporter_for

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = PARENT[:-2] + "00"


@pytest.mark.contract("--otlp-service-name")
@pytest.mark.parametrize(("kind", "way"), [("grpc_endpoint", "grpc"), ("http_endpoint", "/v1/traces")])
def test_a_request_is_a_span_with_its_parts_as_children(kind: str, way: str) -> None:
    with collecting() as collector:
        tracer = Tracer.start(getattr(collector, kind), "the service")
        end, wall = time.monotonic(), time.time_ns()
        begin = end - 3
        parts = [("validate", begin, begin + 1), ("decode", begin + 1, end)]
        tracer.record("generate", (begin, end), None, {"seed": "None", "generated_tokens": 7}, parts, "")
        tracer.shutdown()
    assert collector.ways == [way]
    assert collector.resources[0]["service.name"] == "the service"
    span = collector.named("generate")
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.parent_span_id == b""
    assert values(span) == {"seed": "None", "generated_tokens": 7}
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert abs(span.end_time_unix_nano - wall) < 1e9
    assert abs(span.end_time_unix_nano - span.start_time_unix_nano - 3e9) < 1e4
    children = collector.children(span)
    assert [child.name for child in children] == ["validate", "decode"]
    assert {child.trace_id for child in children} == {span.trace_id}
    for child, seconds in zip(children, (1, 2), strict=True):
        assert abs(child.end_time_unix_nano - child.start_time_unix_nano - seconds * 1e9) < 1e4


@pytest.mark.parametrize(
    ("traceparent", "followed"),
    [
        (PARENT, True),
        (UNSAMPLED, True),  # O1: every trace is sent
        ("cc" + PARENT[2:], True),  # a later version
        ("ff" + PARENT[2:], False),
        (PARENT[:-3], False),
        ("00-" + "0" * 32 + PARENT[35:], False),
        ("nonsense", False),
        ("", False),
        (None, False),
    ],
)
def test_the_clients_trace_goes_on(traceparent: str | None, followed: bool) -> None:
    with collecting() as collector:
        tracer = Tracer.start(collector.grpc_endpoint, "x")
        tracer.record("generate", (0.0, 1.0), traceparent, {}, [("decode", 0.0, 1.0)], "")
        tracer.shutdown()
    span = collector.named("generate")
    expected = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert ((span.trace_id.hex(), span.parent_span_id.hex()) == expected) == followed
    assert collector.named("decode").trace_id == span.trace_id
    assert collector.named("decode").parent_span_id == span.span_id


def test_a_failure_is_told() -> None:
    with collecting() as collector:
        tracer = Tracer.start(collector.grpc_endpoint, "x")
        tracer.record("generate", (0.0, 1.0), None, {}, [], "overloaded")
        tracer.shutdown()
    status = collector.named("generate").status
    assert (status.code, status.message) == (Status.STATUS_CODE_ERROR, "overloaded")


@pytest.mark.parametrize(
    ("endpoint", "way", "address"),
    [
        ("http://collector:4317", "grpc", "collector:4317"),
        ("https://collector:4317", "grpc", "collector:4317"),
        ("collector:4317", "grpc", "collector:4317"),
        ("http://collector:4318", "http", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http", "http://collector:4318/v1/traces"),
        ("http://collector:4318/v1/traces", "http", "http://collector:4318/v1/traces"),
        ("https://collector/v1/traces", "http", "https://collector/v1/traces"),
        ("http://collector:4318/else/where", "http", "http://collector:4318/else/where"),
    ],
)
def test_grpc_unless_the_url_is_one_that_only_http_has(endpoint: str, way: str, address: str) -> None:
    exporter = exporter_for(endpoint)
    assert f".{way}." in type(exporter).__module__
    assert exporter._endpoint == address  # type: ignore[attr-defined]
    exporter.shutdown()


def test_an_endpoint_of_grpc_needs_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter.otlp.proto.grpc")]:
        monkeypatch.delitem(sys.modules, name)

    with pytest.raises(ValueError, match=r"pip install 'tgi-server\[otlp-grpc\]'.*port 4318"):
        exporter_for("http://collector:4317")
    exporter_for("http://collector:4318").shutdown()


def test_nobody_waits_for_a_collector_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")  # of the thread that sends
    tracer = Tracer.start("http://127.0.0.1:9", "x")
    begin = time.monotonic()
    for _ in range(200):
        tracer.record("generate", (0.0, 1.0), None, {}, [("decode", 0.0, 1.0)], "")
    assert time.monotonic() - begin < 0.5
    tracer.shutdown()


def test_a_server_without_tracing_does_not_import_it() -> None:
    code = "import sys, tgi.cli, tgi.server; print({'opentelemetry', 'grpc', 'requests'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "set()"
