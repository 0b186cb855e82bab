"""One generation request as metrics, log and traces show it: its size, its times, its end."""

import logging
import math
import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from tgi.errors import ApiError, DeadlineExceeded, InternalError
from tgi.metrics import Metrics
from tgi.scheduler import Sequence

if TYPE_CHECKING:
    from tgi.tracing import Tracer

log = logging.getLogger(__name__)
CHUNK = 1024
"""Maximum number of tokens that TGI generates in one go; a limit and a metric depend on it (R2.72)."""
OURS = (424, 500)
"""Statuses of failures that are not the client's fault."""
METRICS = {
    "total_time": "request_duration",
    "validation_time": "request_validation_duration",
    "queue_time": "request_queue_duration",
    "inference_time": "request_inference_duration",
    "time_per_token": "request_mean_time_per_token_duration",
}
"""Metric of each time of a sequence, by the name that logs and, with hyphens, headers give it."""


Timings = dict[str, float]
"""Times of a finished sequence in seconds, by the keys of `METRICS`."""


def timings_of(sequence: Sequence) -> Timings:
    """Return the times of a sequence that has just finished."""
    now = time.monotonic()
    inference = now - sequence.started
    return {
        "total_time": now - sequence.arrived,
        "validation_time": sequence.queued - sequence.arrived,
        "queue_time": sequence.started - sequence.queued,
        "inference_time": inference,
        "time_per_token": inference / max(1, sequence.generated),
    }


def timing_headers(finished: Items[tuple[Sequence, Timings]]) -> dict[str, str]:
    """Return the headers of an answer: sums over sequences in milliseconds, except x-compute-time."""
    return {
        "x-compute-time": str(max(timings["total_time"] for _, timings in finished)),
        **{
            f"x-{name.replace('_', '-')}": str(sum(int(timings[name] * 1000) for _, timings in finished))
            for name in METRICS
        },
        "x-prompt-tokens": str(sum(len(sequence.prompt) for sequence, _ in finished)),
        "x-generated-tokens": str(sum(sequence.generated for sequence, _ in finished)),
    }


@attrs.define(eq=False)
class Observer:
    """Records the events in the life of a generation request.

    The life has one end: success, failure, or the departure of the client.
    """

    metrics: Metrics
    id: str = ""
    """Id of the request in logs."""
    route: str = ""
    """Rule of the route's path."""
    name: str = ""
    """Name of such requests in logs and traces."""
    arrived: float = attrs.field(factory=time.monotonic)
    """Time at which the head of the request had been read."""
    deadline: float = math.inf
    """Time on trio's clock at which the client gives up."""
    tracer: "Tracer | None" = None
    traceparent: str | None = None
    """The client's W3C trace context."""
    generations: int = 1
    """Number of sequences that must finish for a success; set before the first one does."""

    _ended: bool = attrs.field(default=False, init=False)
    _validated: list[Sequence] = attrs.field(factory=list, init=False)
    _finished: list[tuple[Sequence, Timings]] = attrs.field(factory=list, init=False)

    def received(self) -> None:
        """Count a generation request."""
        self.metrics.request_count.inc()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Record an error that passes. Raises DeadlineExceeded at the deadline."""
        try:
            with trio.move_on_at(self.deadline) as patience:
                yield
            if patience.cancelled_caught:
                raise DeadlineExceeded
        except ApiError as error:
            self.failed(error)
            raise
        except Exception:
            self.failed(InternalError())
            raise

    def failed(self, error: ApiError) -> None:
        """Record the error that ends the request. Nothing counts after the end."""
        if not self._ended:
            self._end(error.failure, error)

    def validated(self, sequence: Sequence) -> None:
        """Record the first sequence of a prompt that may be served."""
        self._validated.append(sequence)
        self.metrics.request_input_length.observe(len(sequence.prompt))
        self.metrics.request_max_new_tokens.observe(min(sequence.max_new_tokens, CHUNK))

    def finished(self, sequence: Sequence) -> Timings:
        """Record a finished sequence and return its times; the last one ends the request."""
        metrics, timings = self.metrics, timings_of(sequence)
        for name, metric in METRICS.items():
            getattr(metrics, metric).observe(timings[name])
        metrics.request_generated_tokens.observe(sequence.generated)
        metrics.request_skipped_tokens.observe(sequence.right_guesses)
        metrics.request_prefill_duration.observe(sequence.first_token - sequence.started)
        metrics.request_decode_duration.observe(sequence.last_token - sequence.first_token)
        if sequence.reason is not None:
            metrics.generated_texts.inc(finish_reason=sequence.reason.value)
        self._finished.append((sequence, timings))
        if not self._ended and len(self._finished) >= self.generations:
            metrics.request_success.inc()
            self._end()
        return timings

    def closed(self) -> None:
        """Record the end of the exchange: if the request has not ended, its client has gone."""
        if not self._ended:
            self._end("dropped")

    def _end(self, failure: str = "", error: ApiError | None = None) -> None:
        """Write log and trace, and count a failure under its label."""
        self._ended = True
        if failure:
            self.metrics.request_failure.inc(err=failure)
        level, message = logging.INFO, "Success"
        if failure:
            message = "The client has gone" if error is None else str(error)
            level = logging.ERROR if error is not None and error.status in OURS else logging.INFO
        if log.isEnabledFor(level) or self.tracer is not None:
            fields = self._fields(error)
            log.log(level, message, extra={"span": {**fields, "name": self.name}})
            if self.tracer is not None:
                self._trace(self.tracer, fields, failure)

    def _fields(self, error: ApiError | None) -> dict[str, object]:
        """Return the fields of log and trace, which never hold the text (O6, and ours)."""
        fields: dict[str, object] = {"request_id": self.id, "route": self.route}
        if error is not None:
            fields |= {"error_type": error.error_type, "status": error.status_for(self.route)}
        done = self._finished
        if not done:
            return {**fields, "total_time": duration_text(time.monotonic() - self.arrived)}
        sequences = [sequence for sequence, _ in done]
        first, timings = (
            sequences[0],
            max((timings for _, timings in done), key=lambda times: times["total_time"]),
        )
        return {
            **fields,
            "finish_reason": ",".join(one.reason.value for one in sequences if one.reason is not None),
            "prompt_tokens": sum(len(one.prompt) for one in sequences),
            "generated_tokens": sum(one.generated for one in sequences),
            **{name: duration_text(seconds) for name, seconds in timings.items()},
            "time_to_first_token": duration_text(first.first_token - first.arrived),
            "seed": f"Some({first.sampling.seed})" if first.sampling.sample else "None",
        }

    def _trace(self, tracer: "Tracer", fields: dict[str, object], failure: str) -> None:
        now = time.monotonic()
        parts = []
        for sequence in [one for one, _ in self._finished] or self._validated:
            begins = {
                "validate": sequence.arrived,
                "queued": sequence.queued,
                "prefill": sequence.started,
                "decode": sequence.first_token,
            }
            reached = [(part, begin) for part, begin in begins.items() if begin]
            ends = [*(begin for _, begin in reached[1:]), sequence.finished or now]
            parts += [(part, begin, end) for (part, begin), end in zip(reached, ends, strict=True)]
        if self._validated:
            fields["parameters"] = str(self._validated[0].sampling)
        tracer.record(self.name, (self.arrived, now), self.traceparent, fields, parts, failure)


def duration_text(seconds: float) -> str:
    """Return a duration as TGI's logs and traces write it, like 12.345678ms (O6)."""
    nanoseconds = round(seconds * 1e9)
    for unit, digits in (("s", 9), ("ms", 6), ("µs", 3)):
        if nanoseconds >= 10**digits:
            whole, rest = divmod(nanoseconds, 10**digits)
            return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".") + unit
    return f"{nanoseconds}ns"
