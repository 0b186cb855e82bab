"""A stand-in for an OpenTelemetry collector that keeps traces it receives over gRPC and HTTP."""

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
    """Everything received since the start."""

    grpc_endpoint: str = ""
    http_endpoint: str = ""
    spans: list[Span] = attrs.field(factory=list)
    resources: list[dict[str, str]] = attrs.field(factory=list)
    """Attributes of the sender of each batch."""
    ways: list[str] = attrs.field(factory=list)
    """Transport of each batch: "grpc", or the path of the HTTP request."""

    def Export(self, request: ExportTraceServiceRequest, _context: Any) -> ExportTraceServiceResponse:
        """Serve the gRPC method."""
        self.take(request, "grpc")
        return ExportTraceServiceResponse()

    def take(self, request: ExportTraceServiceRequest, way: str) -> None:
        """Keep a batch."""
        self.ways.append(way)
        for batch in request.resource_spans:
            self.resources.append({item.key: item.value.string_value for item in batch.resource.attributes})
            for scope in batch.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> Span:
        """Return the only span of this name."""
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def children(self, parent: Span) -> list[Span]:
        """Return the children of a span in the order of their starts."""
        spans = [span for span in self.spans if span.parent_span_id == parent.span_id]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)


def values(span: Span) -> dict[str, str | int]:
    """Return the attributes of a span."""
    return {item.key: getattr(item.value, str(item.value.WhichOneof("value"))) for item in span.attributes}


@contextmanager
def collecting() -> Iterator[TraceCollector]:
    """Run a collector on two free ports."""
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
