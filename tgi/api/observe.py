"""One request as metrics and log see it: what it asks for, how long each part takes, how it ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from tgi.errors import ApiError
from tgi.metrics import Metrics
from tgi.scheduler import Sequence

CHUNK = 1024
"""TGI generates at most this many tokens in one go; limit check and metrics show it here too (R2.72)."""


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
