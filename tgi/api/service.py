"""The server as handlers see it: its model, its limits, and whether it takes requests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs

from tgi.config import Options
from tgi.errors import Overloaded, Unavailable, WrongTask
from tgi.lifecycle import Lifecycle, Phase
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.pooler import Pooler
from tgi.protocol.pooling import Pooling
from tgi.scheduler import Router
from tgi.text.chat_template import ChatTemplates
from tgi.text.tokenizer import Tokenizer

from .grammars import Grammars
from .store import ResponseStore
from .tenants import Tenants
from .turns import Turns

if TYPE_CHECKING:
    from tgi.tracing import Tracer


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

    scheduler: Router
    tokenizer: Tokenizer
    templates: ChatTemplates
    grammars: Grammars
    limits: Limits
    model: ModelInfo


@attrs.frozen(kw_only=True)
class Embedder:
    """The parts of a server whose model gives embeddings or scores, when it is loaded."""

    pooler: Pooler
    pooling: Pooling
    tokenizer: Tokenizer
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
    """Engine of a model that continues texts; None until it is ready, and for other models."""
    embedder: Embedder | None = None
    """Embedder of a model that gives embeddings or scores; None until it is ready, and for other models."""
    url: str = ""
    """URL at which this machine reaches the server, or the path of a Unix socket."""
    responses: ResponseStore = attrs.field(factory=ResponseStore)
    in_flight: int = 0
    """Number of permits that are held."""
    tracer: "Tracer | None" = None
    """Sender of traces, if they are wanted."""
    tenants: Tenants | None = attrs.field(init=False)
    """Clients with shares and limits of their own, if requests have any."""
    objectives: Mapping[str, int] = attrs.field(init=False)
    """Priorities of InferenceObjectives; higher comes first."""
    turns: Turns = attrs.field(init=False)
    """Turns at reading and tokenising long texts."""

    def __attrs_post_init__(self) -> None:
        self.tenants = Tenants.of(self.options)
        self.objectives = self.options.objective_priorities
        self.turns = Turns(self.options.max_concurrent_requests)

    def ready(self) -> Engine | Embedder:
        """Return the model if it takes requests. Raises Unavailable."""
        if self.lifecycle.phase is Phase.DRAINING:
            raise Unavailable("shutting down")
        served = self.engine or self.embedder
        if self.lifecycle.phase is Phase.STARTING or served is None:
            raise Unavailable(f"starting: {self.lifecycle.stage}")
        if self.lifecycle.phase is Phase.RECOVERING and self.options.while_recovering == "refuse":
            raise Unavailable("recovering from the loss of a rank")
        return served

    def ready_engine(self) -> Engine:
        """Return the engine if it takes requests. Raises Unavailable, and WrongTask if there is none."""
        served = self.ready()
        if isinstance(served, Embedder):
            raise WrongTask(
                f"{served.model.served_name} gives embeddings or scores and generates no text: "
                "ask /v1/embeddings, /v1/rerank or /v1/score"
            )
        return served

    def ready_embedder(self) -> Embedder:
        """Return the embedder if it takes requests. Raises Unavailable, and WrongTask if there is none."""
        served = self.ready()
        if isinstance(served, Engine):
            raise WrongTask(
                f"{served.model.served_name} generates text and gives no embeddings or scores: "
                "serve an embedding model or a reranker for this route"
            )
        return served

    def check_health(self) -> None:
        """Raise Unavailable unless requests are answered soon: also while recovering, and if a step hangs."""
        served = self.ready()
        if self.lifecycle.phase is Phase.RECOVERING:
            raise Unavailable(f"recovering from the loss of a rank: {self.lifecycle.stage}")
        waited = served.scheduler.waited_seconds() if isinstance(served, Engine) else 0.0
        if waited > self.options.stall_timeout:
            raise Unavailable(f"stalled: a step has taken {waited:.0f} s so far")

    def loaded(self) -> Engine | Embedder:
        """Return the model, also of a server that is draining. Raises Unavailable before it is ready."""
        return self.engine or self.embedder or self.ready()

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
