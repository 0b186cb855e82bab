"""One request as metrics, log and traces see it: what it asks for, how long each part takes, how it ends."""

import logging
import math
import time
from collections.abc import Iterator
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
"""TGI generates at most this many tokens in one go; limit check and metrics show it here too (R2.72)."""
OURS = (424, 500)
"""Statuses of failures that are not the client's."""


@attrs.frozen
class Timings:
    """Where the time of a finished sequence went, in seconds."""

    total: float
    validation: float
    queue: float
    inference: float
    per_token: float

    @classmethod
    def of(cls, sequence: Sequence) -> "Timings":
        """Up to now."""
        now = time.monotonic()
        inference = now - sequence.started
        return cls(
            total=now - sequence.arrived,
            validation=sequence.queued - sequence.arrived,
            queue=sequence.started - sequence.queued,
            inference=inference,
            per_token=inference / max(1, sequence.generated),
        )


@attrs.define(eq=False)
class Observer:
    """Told by the route of each event in the life of a generation request.

    That has one end: success, failure, or that its client has gone.
    """

    metrics: Metrics
    id: str = ""
    """The client's `x-request-id`, or one that was made."""
    route: str = ""
    """The path as the route's rule has it."""
    name: str = ""
    """What logs and traces call such a request."""
    arrived: float = attrs.field(factory=time.monotonic)
    """When the head of the request had been read."""
    deadline: float = math.inf
    """On trio's clock; the client's `x-request-timeout` after its arrival."""
    tracer: "Tracer | None" = None
    traceparent: str | None = None
    """The client's; see W3C Trace Context."""
    generations: int = 1
    """How many must finish for a success. To be set before the first does, if it is not one."""

    _ended: bool = attrs.field(default=False, init=False)
    _validated: list[Sequence] = attrs.field(factory=list, init=False)
    _finished: list[tuple[Sequence, Timings]] = attrs.field(factory=list, init=False)

    def received(self) -> None:
        """A generation request has been read."""
        self.metrics.request_count.inc()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Take note of an ApiError that passes. Raises DeadlineExceeded at the deadline."""
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
        """The request ends with this error. What comes after the end of a request does not count."""
        if not self._ended:
            self._end(error.failure, error)

    def validated(self, sequence: Sequence) -> None:
        """It may be served; once for each prompt."""
        self._validated.append(sequence)
        self.metrics.request_input_length.observe(len(sequence.prompt))
        self.metrics.request_max_new_tokens.observe(min(sequence.max_new_tokens, CHUNK))

    def finished(self, sequence: Sequence) -> Timings:
        """A generation has finished, after so much time; with the last one the request."""
        metrics, timings = self.metrics, Timings.of(sequence)
        metrics.request_duration.observe(timings.total)
        metrics.request_validation_duration.observe(timings.validation)
        metrics.request_queue_duration.observe(timings.queue)
        metrics.request_inference_duration.observe(timings.inference)
        metrics.request_mean_time_per_token_duration.observe(timings.per_token)
        metrics.request_generated_tokens.observe(sequence.generated)
        metrics.request_skipped_tokens.observe(0)
        self._finished.append((sequence, timings))
        if not self._ended and len(self._finished) >= self.generations:
            metrics.request_success.inc()
            self._end()
        return timings

    def closed(self) -> None:
        """The connection has done with the request: if it has not ended, then its client has gone."""
        if not self._ended:
            self._end("dropped")

    def _end(self, failure: str = "", error: ApiError | None = None) -> None:
        """Tell log and trace, once; a failure is counted under its label."""
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
        """What log and trace tell of the request: never its text. O6, and ours."""
        fields: dict[str, object] = {"request_id": self.id, "route": self.route}
        if error is not None:
            fields |= {"error_type": error.error_type, "status": error.status}
        done = self._finished
        if not done:
            return {**fields, "total_time": duration_text(time.monotonic() - self.arrived)}
        sequences = [sequence for sequence, _ in done]
        first, timings = sequences[0], max((timings for _, timings in done), key=lambda its: its.total)
        return {
            **fields,
            "finish_reason": ",".join(one.reason.value for one in sequences if one.reason is not None),
            "prompt_tokens": sum(len(one.prompt) for one in sequences),
            "generated_tokens": sum(one.generated for one in sequences),
            "total_time": duration_text(timings.total),
            "validation_time": duration_text(timings.validation),
            "queue_time": duration_text(timings.queue),
            "inference_time": duration_text(timings.inference),
            "time_per_token": duration_text(timings.per_token),
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
    """As TGI's logs and traces have it (O6): 12.345678ms."""
    nanoseconds = round(seconds * 1e9)
    for unit, digits in (("s", 9), ("ms", 6), ("µs", 3)):
        if nanoseconds >= 10**digits:
            whole, rest = divmod(nanoseconds, 10**digits)
            return f"{whole}.{rest:0{digits}d}".rstrip("0").rstrip(".") + unit
    return f"{nanoseconds}ns"
