"""What the routes need of the rest of the server: one object, filled as the server comes up."""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import trio

from tgi.config import Limits, Options
from tgi.errors import Overloaded, Unavailable
from tgi.lifecycle import Lifecycle, Phase
from tgi.metrics import Metrics
from tgi.scheduler import Scheduler
from tgi.text.tokenizer import Tokenizer

TOKENIZING_THREADS = 2


@attrs.frozen(kw_only=True)
class ModelInfo:
    """The model as `/info` tells of it."""

    model_id: str
    sha: str | None = None
    """Commit on the Hub; None for a local folder."""
    pipeline_tag: str | None = None
    """On the Hub; None where it was not asked."""
    dtype: str
    device: str
    vocab_size: int
    """Token ids from here on are not the model's, even if its tokenizer has them."""


@attrs.frozen(kw_only=True)
class Engine:
    """What there is once the model is loaded and warmed up."""

    scheduler: Scheduler
    tokenizer: Tokenizer
    limits: Limits
    model: ModelInfo


@attrs.define(eq=False, kw_only=True)
class Service:
    """The state of the HTTP side. Written by the server's start and end; `in_flight` by `permits`."""

    limits: Limits
    lifecycle: Lifecycle
    metrics: Metrics
    options: Options = attrs.field(factory=Options)
    engine: Engine | None = None
    """None until it is ready."""
    in_flight: int = 0
    """Generations that hold a permit."""
    tokenizing: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(TOKENIZING_THREADS))

    def ready_engine(self) -> Engine:
        """The engine. Raises Unavailable before it is ready and while the server is draining."""
        if self.lifecycle.phase is Phase.DRAINING:
            raise Unavailable("shutting down")
        if self.lifecycle.phase is Phase.STARTING or self.engine is None:
            raise Unavailable(f"starting: {self.lifecycle.stage}")
        return self.engine

    @contextmanager
    def permits(self, count: int) -> Iterator[None]:
        """Hold `count` of `max_concurrent_requests` permits. Raises Overloaded; never waits."""
        if self.in_flight + count > self.limits.max_concurrent_requests:
            raise Overloaded
        self.in_flight += count
        try:
            yield
        finally:
            self.in_flight -= count
