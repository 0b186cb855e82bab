"""What the routes need of the rest of the server: one object, filled as the server comes up."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from tgi import __version__
from tgi.config import Options
from tgi.errors import Overloaded, Unavailable
from tgi.lifecycle import Lifecycle, Phase
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.scheduler import Scheduler
from tgi.text.chat_template import ChatTemplates
from tgi.text.tokenizer import Tokenizer

from .grammars import Grammars

if TYPE_CHECKING:
    from tgi.tracing import Tracer

TOKENIZING_THREADS = 2
VERSION = f"3.3.7+tgi.{__version__}"
"""The version of TGI that clients may take this server for, and our own."""
FINGERPRINT = f"{VERSION}-native"
""""system_fingerprint" on `/v1/*`."""


@attrs.frozen(kw_only=True)
class ModelInfo:
    """The model as `/info` tells of it."""

    model_id: str
    served_name: str
    """What answers call the model: --served-model-name, or the id."""
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
    templates: ChatTemplates
    grammars: Grammars
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
    tracer: "Tracer | None" = None
    """Where traces go, if anywhere."""
    tokenizing: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(TOKENIZING_THREADS))

    def ready_engine(self) -> Engine:
        """The engine. Raises Unavailable before it is ready and while the server is draining."""
        if self.lifecycle.phase is Phase.DRAINING:
            raise Unavailable("shutting down")
        if self.lifecycle.phase is Phase.STARTING or self.engine is None:
            raise Unavailable(f"starting: {self.lifecycle.stage}")
        return self.engine

    def loaded_engine(self) -> Engine:
        """The engine, also of a server that is draining. Raises Unavailable before it is ready."""
        return self.ready_engine() if self.engine is None else self.engine

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
