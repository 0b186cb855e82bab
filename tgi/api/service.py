"""The rest of the server as the routes see it: one object, filled as the server starts."""

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
"""Version of TGI whose behaviour clients find, and our own version."""
FINGERPRINT = f"{VERSION}-native"
"""Value of `system_fingerprint` on `/v1`."""


@attrs.frozen(kw_only=True)
class ModelInfo:
    """Facts about the model for `/info`."""

    model_id: str
    served_name: str
    """Name of the model in answers: --served-model-name, or the id."""
    sha: str | None = None
    """Commit on the Hub; None for a local folder."""
    pipeline_tag: str | None = None
    """Task on the Hub; None if the Hub was not asked."""
    dtype: str
    device: str
    vocab_size: int
    """Number of tokens that the model knows; its tokenizer may have more."""


@attrs.frozen(kw_only=True)
class Engine:
    """The parts of a server whose model is loaded and warmed up."""

    scheduler: Scheduler
    tokenizer: Tokenizer
    templates: ChatTemplates
    grammars: Grammars
    limits: Limits
    model: ModelInfo


@attrs.define(eq=False, kw_only=True)
class Service:
    """State of the HTTP side. The server's start and end write it; `permits` writes `in_flight`."""

    limits: Limits
    lifecycle: Lifecycle
    metrics: Metrics
    options: Options = attrs.field(factory=Options)
    engine: Engine | None = None
    """None until the model is ready."""
    in_flight: int = 0
    """Number of permits that are held."""
    tracer: "Tracer | None" = None
    """Sender of traces, if they are wanted."""
    tokenizing: trio.CapacityLimiter = attrs.field(factory=lambda: trio.CapacityLimiter(TOKENIZING_THREADS))

    def ready_engine(self) -> Engine:
        """Return the engine. Raises Unavailable before it is ready and while the server is draining."""
        if self.lifecycle.phase is Phase.DRAINING:
            raise Unavailable("shutting down")
        if self.lifecycle.phase is Phase.STARTING or self.engine is None:
            raise Unavailable(f"starting: {self.lifecycle.stage}")
        return self.engine

    def loaded_engine(self) -> Engine:
        """Return the engine, also of a server that is draining. Raises Unavailable before it is ready."""
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
