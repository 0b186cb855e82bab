"""Traces of requests for an OpenTelemetry collector, sent in batches by a thread.

Imported only with --otlp-endpoint. A trace is recorded as a whole when its request has ended, so that tracing
adds nothing to the time of a token.
"""

import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import attrs
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

HTTP_PORT = 4318
"""Port of OTLP over HTTP."""
HTTP_PATH = "/v1/traces"
Part = tuple[str, float, float]
"""Name, begin and end of a part of a request; times of `time.monotonic`."""


@attrs.frozen
class Tracer:
    """Makes spans and sends them. All times are those of `time.monotonic`."""

    _provider: TracerProvider

    @classmethod
    def start(cls, endpoint: str, service_name: str) -> "Tracer":
        """Send to this URL until `shutdown`. Spans are dropped if the collector does not answer."""
        resource = Resource.create({"service.name": service_name})
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter_for(endpoint)))
        return cls(provider)

    def record(
        self,
        name: str,
        times: tuple[float, float],
        traceparent: str | None,
        attributes: Mapping[str, object],
        parts: Iterable[Part],
        failure: str,
    ) -> None:
        """Record a request as a span, child of `traceparent` if given, with a child span for each part.

        `failure` is the kind of failure, "" for a success. Takes about 100 us and never waits.
        """
        offset = time.time_ns() - time.monotonic_ns()
        tracer = self._provider.get_tracer("tgi")
        carrier = {} if traceparent is None else {"traceparent": traceparent}
        context = TraceContextTextMapPropagator().extract(carrier)
        span = tracer.start_span(
            name,
            context,
            SpanKind.SERVER,
            {key: value if isinstance(value, int) else str(value) for key, value in attributes.items()},
            start_time=_nanoseconds(times[0]) + offset,
        )
        inside = set_span_in_context(span, context)
        for part, begin, end in parts:
            child = tracer.start_span(part, inside, start_time=_nanoseconds(begin) + offset)
            child.end(_nanoseconds(end) + offset)
        if failure:
            span.set_status(Status(StatusCode.ERROR, failure))
        span.end(_nanoseconds(times[1]) + offset)

    def shutdown(self) -> None:
        """Send the remaining spans. Blocks for up to 30 s if the collector does not answer."""
        self._provider.shutdown()


def exporter_for(endpoint: str) -> SpanExporter:
    """Return the exporter for a URL: gRPC, unless its port or path is that of OTLP over HTTP.

    Raises ValueError if the URL is none, or if what sends over gRPC is not installed.
    """
    url = urlsplit(endpoint)
    if url.scheme in ("http", "https") and (url.path.rstrip("/") == HTTP_PATH or url.port == HTTP_PORT):
        return HttpExporter(endpoint if url.path.strip("/") else endpoint.rstrip("/") + HTTP_PATH)
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
    except ImportError as error:
        raise ValueError(
            "gRPC is not installed: pip install 'tgi-server[otlp-grpc]', or name an endpoint of OTLP over "
            f"HTTP (port {HTTP_PORT}, or the path {HTTP_PATH})"
        ) from error
    return GrpcExporter(endpoint, insecure=url.scheme != "https")


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
