"""One request as metrics and log see it: what it asks for, how long each part takes, how it ends."""

import math
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio
from quart import g, request

from tgi.errors import ApiError, ValidationError
from tgi.metrics import Metrics
from tgi.scheduler import Sequence

from .service import Service

CHUNK = 1024
"""TGI generates at most this many tokens in one go; limit check and metrics show it here too (R2.72)."""
MAX_ID = 128
"""Characters of the longest `x-request-id` that is taken over."""


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
    """Told by the route of each event in the life of its request."""

    metrics: Metrics
    id: str = ""
    """The client's `x-request-id`, or one that was made."""
    route: str = ""
    """The path as the route's rule has it."""
    arrived: float = attrs.field(factory=time.monotonic)
    """When the head of the request had been read."""
    deadline: float = math.inf
    """On trio's clock; the client's `x-request-timeout` after its arrival."""

    @classmethod
    def of_request(cls, service: Service) -> "Observer":
        """The observer of the present request, the same for every caller.

        Raises ValidationError if its `x-request-timeout` is not a number of seconds.
        """
        if "observer" not in g:
            seconds = _timeout()
            arrived = g.arrived
            g.observer = cls(
                service.metrics,
                id=g.request_id,
                route=str(request.url_rule),
                arrived=arrived,
                deadline=trio.current_time() - (time.monotonic() - arrived) + seconds,
            )
        return g.observer  # type: ignore[no-any-return]

    def received(self) -> None:
        """A generation request has been read."""
        self.metrics.request_count.inc()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Count an ApiError that passes."""
        try:
            yield
        except ApiError as error:
            self.failed(error)
            raise

    def failed(self, error: ApiError) -> None:
        """The request ends with this error."""
        self.metrics.request_failure.inc(err=error.failure)

    def validated(self, sequence: Sequence) -> None:
        """It may be served; once for each prompt."""
        self.metrics.request_input_length.observe(len(sequence.prompt))
        self.metrics.request_max_new_tokens.observe(min(sequence.max_new_tokens, CHUNK))

    def first_token(self, sequence: Sequence) -> None:
        """A client gets to see the first token of this sequence."""
        waited = time.monotonic() - sequence.arrived
        self.metrics.request_time_to_first_token_duration.observe(waited)

    def finished(self, sequence: Sequence, timings: Timings) -> None:
        """A generation has finished."""
        metrics = self.metrics
        metrics.request_success.inc()
        metrics.request_duration.observe(timings.total)
        metrics.request_validation_duration.observe(timings.validation)
        metrics.request_queue_duration.observe(timings.queue)
        metrics.request_inference_duration.observe(timings.inference)
        metrics.request_mean_time_per_token_duration.observe(timings.per_token)
        metrics.request_generated_tokens.observe(sequence.generated)
        metrics.request_skipped_tokens.observe(0)


def begin_request() -> None:
    """Note when the present request came and what it is called; before anything else is done with it."""
    g.arrived = time.monotonic()
    given = request.headers.get("x-request-id", "")
    usable = 0 < len(given) <= MAX_ID and given.isascii() and given.isprintable()
    g.request_id = given if usable else secrets.token_hex(16)


def _timeout() -> float:
    text = request.headers.get("x-request-timeout")
    if text is None:
        return math.inf
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise ValidationError("`x-request-timeout` must be a number of seconds above 0")
    return seconds
