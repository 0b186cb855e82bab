"""One request of a route: what was asked, the server it may use, and the answer that it becomes."""

import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import ExitStack, contextmanager
from http import HTTPMethod
from typing import Any, Generic, TypeVar, cast

import attrs
import msgspec
import trio
from quart import Response, request

from tgi import __version__
from tgi.errors import (
    OLLAMA,
    ApiError,
    DeadlineExceeded,
    IncompleteGeneration,
    ValidationError,
)
from tgi.scheduler import Sequence
from tgi.text.tokenizer_files import TokenizerError

from .bodies import check_encoding, check_media_type, decode
from .observe import Observer, timing_headers
from .service import Embedder, Engine, Service
from .stream import KEEP_ALIVE, EventStream, EventWriter, Finished
from .tenants import Tenant
from .transport import Exchange, current_exchange

B = TypeVar("B")
T = TypeVar("T")
VERSION = f"3.3.7+tgi.{__version__}"
"""Version of TGI whose behaviour clients find, and our own version."""
FINGERPRINT = f"{VERSION}-native"
"""Value of `system_fingerprint` on `/v1`."""
_NO_HEADERS: Mapping[str, str] = {}
INLINE_BYTES = 20_000
"""Maximum length of a body that is handled on the event loop. Longer ones would delay other requests."""
INLINE_CHARACTERS = 500
"""Maximum length of a text that is tokenised on the event loop; a thread costs about 0.2 ms."""

OBJECTIVE_HEADERS = "x-gateway-inference-objective", "x-llm-d-inference-objective"
"""Headers that name the InferenceObjective of a request; the second is that of llm-d from 0.8."""
BODY_ERRORS = (400, 401, 408, 413, 415, 422, 429, 503)
GENERATION_ERRORS = (*BODY_ERRORS, 424, 500)


# Routes and requests


@attrs.frozen
class Route:
    """A method of a path: how it is answered, and what the OpenAPI document says of it."""

    path: str
    """Rule for werkzeug, e.g. `/v1/models/<path:model>`."""
    name: str
    """TGI's operationId, if TGI has the route."""
    summary: str
    handler: "Callable[[Call[Any]], Awaitable[Response]]"
    method: HTTPMethod = HTTPMethod.GET
    body: tuple[type, ...] = ()
    """Structs of which the body is the first that fits."""
    answer: Any = None
    """Type of the JSON answer; None: the body is empty."""
    stream: Any = None
    """Type of the events of a streamed answer."""
    text: bool = False
    errors: tuple[int, ...] = ()
    example: Any = None
    documented: bool = True
    pools: bool = False
    """The route is of models that give embeddings or scores."""

    @property
    def template(self) -> str:
        """The path with its variables in braces."""
        return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", self.path)

    @property
    def generates(self) -> bool:
        """Whether tokens are generated, so that a deadline and timing headers make sense."""
        return self.errors == GENERATION_ERRORS


get = Route
"""Describes a route without a body."""


def post(path: str, name: str, summary: str, handler: Any, *bodies: type, **more: Any) -> Route:
    """Describe a route with a body, which generates unless other `errors` are given."""
    more = {"errors": GENERATION_ERRORS, **more}
    return Route(path, name, summary, handler, method=HTTPMethod.POST, body=bodies, **more)


@attrs.define(eq=False, kw_only=True)
class Call(Generic[B]):
    """A request that a handler answers. `body` is None for a route without one."""

    service: Service
    route: Route
    exchange: Exchange
    body: B
    arguments: Mapping[str, str]
    """Values of the variables in the route's path."""
    size: int = 0
    """Bytes of the body."""
    _engine: Engine | None = attrs.field(default=None, init=False)
    _observer: Observer | None = attrs.field(default=None, init=False)
    _held: ExitStack = attrs.field(factory=ExitStack, init=False)

    @staticmethod
    async def of_request(service: Service, route: Route, arguments: Mapping[str, str]) -> "Call[Any]":
        """Read the present request. Raises BodyError, and Unavailable for a body that nothing can use yet."""
        call: Call[Any] = Call(
            service=service, route=route, exchange=current_exchange(), body=None, arguments=arguments
        )
        if route.body:
            if route.pools:
                service.ready_embedder()
            else:
                call._engine = service.ready_engine()
            if not route.path.startswith(OLLAMA):  # whose users call it by curl, without a type
                check_media_type(request.content_type)
            check_encoding(request.headers.get("Content-Encoding"))
            data = cast(bytes, await request.get_data(cache=False))
            call.size = len(data)
            call.body = await call.run_in_thread_if_large(lambda: decode(data, *route.body))
        return call

    @property
    def engine(self) -> Engine:
        """The engine, from the first use until the end of the call. Raises Unavailable."""
        if self._engine is None:
            self._engine = self.service.ready_engine()
        return self._engine

    @property
    def embedder(self) -> Embedder:
        """The embedder. Raises Unavailable and WrongTask."""
        return self.service.ready_embedder()

    @contextmanager
    def pooling(self, tokens: int) -> Iterator[None]:
        """Count a request for embeddings or scores, and hold its permit. Raises as `take_permits` does.

        Raises DeadlineExceeded after the seconds of `x-request-timeout`.
        """
        metrics, seconds = self.service.metrics, _timeout()
        metrics.request_count.inc()
        metrics.request_input_length.observe(tokens)
        try:
            with self._held, trio.fail_after(seconds):
                self.take_permits(1)
                yield
        except trio.TooSlowError:
            metrics.request_failure.inc(err=DeadlineExceeded.failure)
            raise DeadlineExceeded from None
        except ApiError as error:
            metrics.request_failure.inc(err=error.failure)
            raise
        metrics.request_success.inc()

    @property
    def observer(self) -> Observer:
        """The observer of a call that generates."""
        assert self._observer is not None, "not in generating()"
        return self._observer

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Observe a generation, and release its permits and sequences unless `stream` took them over.

        Raises ValidationError if `x-request-timeout` is not a number of seconds, DeadlineExceeded after them.
        """
        arrived = self.exchange.arrived
        self._observer = Observer(
            self.service.metrics,
            id=self.exchange.id,
            route=str(request.url_rule),
            name=self.route.name,
            arrived=arrived,
            deadline=trio.current_time() - (time.monotonic() - arrived) + _timeout(),
            tracer=self.service.tracer,
            traceparent=request.headers.get("traceparent"),
        )
        self.exchange.resources.callback(self._observer.closed)
        self._observer.received()
        with self._held, self._observer.failures():
            yield

    @property
    def tenant(self) -> Tenant | None:
        """The tenant of the request; None if the server knows no tenants."""
        tenants, header = self.service.tenants, self.service.options.tenant_header
        if tenants is None:
            return None
        if header is not None:
            return tenants.named(request.headers.get(header, ""))
        keys, given = self.service.options.api_key, given_keys()
        return tenants.named(next((key for key in given if key and (not keys or key in keys)), ""))

    @property
    def priority(self) -> int:
        """Place in the queue by the objective that a gateway's header names; lower comes first."""
        named = (request.headers.get(header, "") for header in OBJECTIVE_HEADERS)
        return -next((self.service.objectives[name] for name in named if name in self.service.objectives), 0)

    def take_permits(self, count: int) -> None:
        """Hold permits until the end of the answer. Raises Overloaded, and RateLimited for a tenant."""
        if (tenant := self.tenant) is not None:
            self._held.enter_context(tenant.permits(count))
            self.exchange.limits = tenant.headers()
        self._held.enter_context(self.service.permits(count))

    async def generate(self, sequences: Items[Sequence]) -> list[Finished]:
        """Generate the sequences to their ends and return them in order.

        Raises ApiError if one fails. Leaving early, also by cancellation, aborts all.
        """
        finished = [Finished(sequence, []) for sequence in sequences]
        self._spend(sequences)
        with self.engine.scheduler.generating(sequences, self.observer.deadline) as receive:
            async for index, item in receive:
                if isinstance(item, ApiError):
                    raise item
                finished[index].tokens.append(item)
        if any(not one.tokens or one.tokens[-1].finish is None for one in finished):
            raise IncompleteGeneration
        return finished

    def _spend(self, sequences: Items[Sequence]) -> None:
        if (tenant := self.tenant) is not None:
            self._held.enter_context(tenant.spending(sequences))

    async def stream(
        self,
        sequences: Items[Sequence],
        writer: EventWriter,
        headers: Mapping[str, str],
        keep_alive: bytes = KEEP_ALIVE,
    ) -> Response:
        """Answer with the events of the sequences, once the first token is there.

        `headers` take precedence over those of server-sent events. Permits and sequences are released with
        the last event, or when the exchange ends. Raises ApiError.
        """
        self._spend(sequences)
        receive = self._held.enter_context(
            self.engine.scheduler.generating(sequences, self.observer.deadline)
        )
        kept = self.exchange.resources.enter_context(ExitStack())
        events = EventStream(receive, writer, kept, self.observer.deadline, keep_alive)
        await events.start()
        kept.push(self._held.pop_all())
        return Response(events, 200, {**EventStream.headers, **headers})

    def prompt_headers(self, characters: int) -> dict[str, str]:
        """Return the headers that are known before anything is generated (1.5)."""
        compute_type = self.service.options.compute_type
        return {"x-compute-type": compute_type, "x-compute-characters": str(characters)}

    def finish(self, finished: Items[Finished]) -> dict[str, str]:
        """Tell the observer of finished sequences, and return the headers with their times."""
        return timing_headers([(one.sequence, self.observer.finished(one.sequence)) for one in finished])

    async def run_in_thread_if_large(self, work: Callable[[], T]) -> T:
        """Return the result of work on the body."""
        return await self._run(work, self.size, INLINE_BYTES)

    async def tokenized(self, work: Callable[[], T], length: int) -> T:
        """Return the result of work of the tokenizer on a text. Raises ValidationError (V17)."""
        try:
            return await self._run(work, length, INLINE_CHARACTERS)
        except TokenizerError as error:
            raise ValidationError(f"tokenizer error {error}") from error

    async def _run(self, work: Callable[[], T], size: int, inline: int) -> T:
        """Return the result of work on a text, in a thread if it is longer than `inline`."""
        if size <= inline:
            return work()
        async with self.service.turns.turn(request.remote_addr or "", size):
            return await trio.to_thread.run_sync(work)


def given_keys() -> tuple[str, str]:
    """Return the keys that the present request has as a bearer token and in `X-Api-Key`, each "" if not."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token if scheme.lower() == "bearer" else "", request.headers.get("X-Api-Key", "")


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


# Answers


def json_answer(body: object, status: int = 200, headers: Mapping[str, str] = _NO_HEADERS) -> Response:
    """Answer with a JSON document. Numbers that JSON does not have become null."""
    return Response(msgspec.json.encode(body), status, {"content-type": "application/json", **headers})


def text_answer(text: str, status: int = 200) -> Response:
    """Answer with plain text."""
    return Response(text, status, {"content-type": "text/plain; charset=utf-8"})


def empty_answer(status: int, headers: Mapping[str, str] = _NO_HEADERS) -> Response:
    """Answer without a body or a content type."""
    response = Response(b"", status, dict(headers))
    del response.headers["content-type"]
    return response
