"""A stand-in for an OpenTelemetry collector: takes traces over gRPC and over HTTP, and keeps them."""

import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import attrs
import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@attrs.define
class TraceCollector(TraceServiceServicer):
    """What has been received since it was started."""

    grpc_endpoint: str = ""
    http_endpoint: str = ""
    spans: list[Span] = attrs.field(factory=list)
    resources: list[dict[str, str]] = attrs.field(factory=list)
    """The attributes of each batch's sender."""
    ways: list[str] = attrs.field(factory=list)
    """How each batch came: "grpc", or the path."""

    def Export(self, request: ExportTraceServiceRequest, _context: Any) -> ExportTraceServiceResponse:
        """The gRPC call."""
        self.take(request, "grpc")
        return ExportTraceServiceResponse()

    def take(self, request: ExportTraceServiceRequest, way: str) -> None:
        """Keep a batch."""
        self.ways.append(way)
        for batch in request.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in batch.resource.attributes})
            for scope in batch.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> Span:
        """The only span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def children(self, parent: Span) -> list[Span]:
        """By the time they began."""
        found = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


def values(span: Span) -> dict[str, str | int]:
    """Its attributes."""
    return {one.key: getattr(one.value, str(one.value.WhichOneof("value"))) for one in span.attributes}


@contextmanager
def collecting() -> Iterator[TraceCollector]:
    """A collector on two ports of its own."""
    collector = TraceCollector()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(ExportTraceServiceRequest.FromString(body), self.path)
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    called = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(collector, called)  # type: ignore[no-untyped-call]
    collector.grpc_endpoint = f"http://127.0.0.1:{called.add_insecure_port('127.0.0.1:0')}"
    called.start()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as posted:
        collector.http_endpoint = f"http://127.0.0.1:{posted.server_port}/v1/traces"
        thread = threading.Thread(target=posted.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            posted.shutdown()
            thread.join()
            called.stop(None).wait()
