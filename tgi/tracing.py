"""Traces of requests for an OpenTelemetry collector (tgi-behaviour 10.1), sent in batches by a thread.

Imported only by a server that was given --otlp-endpoint. It knows nothing of requests: a trace is a name,
times, attributes and parts, all told when the request has ended, so that tracing costs a token nothing.
"""

import time
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import attrs
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

HTTP_PORT = 4318
"""Where collectors take OTLP over HTTP."""
HTTP_PATH = "/v1/traces"
Part = tuple[str, float, float]
"""Name, begin and end."""


@attrs.frozen
class Tracer:
    """Makes spans of what it is told, and sends them. All times are of `time.monotonic`."""

    _provider: TracerProvider

    @classmethod
    def start(cls, endpoint: str, service_name: str) -> "Tracer":
        """Send to this URL from now on, until `shutdown`; a collector that is not there costs spans only."""
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
        """A request: one span, child of the client's if `traceparent` is one, and a child for each part.

        `failure` is what kind it was, "" for a success. Takes some 100 us, and never waits.
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
        """Send what is left. Blocks, for up to half a minute if the collector does not answer."""
        self._provider.shutdown()


def exporter_for(endpoint: str) -> SpanExporter:
    """gRPC, unless the URL is one that only HTTP has."""
    url = urlsplit(endpoint)
    if url.scheme in ("http", "https") and (url.path.rstrip("/") == HTTP_PATH or url.port == HTTP_PORT):
        return HttpExporter(endpoint if url.path.strip("/") else endpoint.rstrip("/") + HTTP_PATH)
    return GrpcExporter(endpoint, insecure=url.scheme != "https")


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
