"""One request of a route: what was asked, and what answering it may use."""

import math
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from collections.abc import Sequence as Items
from contextlib import ExitStack, contextmanager
from http import HTTPMethod
from typing import Any, Generic, TypeVar, cast

import attrs
import trio
from quart import Response, request

from tgi.errors import ValidationError
from tgi.scheduler import Sequence
from tgi.text.tokenizer import TokenizerError

from .http import check_media_type, decode
from .observe import Observer, timing_headers
from .service import Engine, Service
from .stream import EventStream, EventWriter, Finished, generate
from .transport import Exchange, current_exchange

B = TypeVar("B")
T = TypeVar("T")
INLINE_BYTES = 20_000
"""Maximum length of a body that is handled on the event loop. Longer ones would delay other requests."""
INLINE_CHARACTERS = 500
"""Maximum length of a text that is tokenised on the event loop; a thread costs about 0.2 ms."""

BODY_ERRORS = (400, 401, 408, 413, 415, 422, 503)
GENERATION_ERRORS = (*BODY_ERRORS, 424, 429, 500)


@attrs.frozen(kw_only=True)
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
    """Whether the answer is text."""
    errors: tuple[int, ...] = ()
    """Statuses of the errors."""
    example: Any = None
    """A body that is accepted."""
    documented: bool = True

    @property
    def template(self) -> str:
        """The path with its variables in braces."""
        return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", self.path)

    @property
    def generates(self) -> bool:
        """Whether tokens are generated, so that a deadline and timing headers make sense."""
        return self.errors == GENERATION_ERRORS


def get(path: str, name: str, summary: str, handler: Any, **more: Any) -> Route:
    """Describe a route without a body."""
    return Route(path=path, name=name, summary=summary, handler=handler, **more)


def post(path: str, name: str, summary: str, handler: Any, *bodies: type, **more: Any) -> Route:
    """Describe a route with a body, which generates unless other `errors` are given."""
    more = {"errors": GENERATION_ERRORS, **more}
    return Route(
        path=path, name=name, summary=summary, handler=handler, method=HTTPMethod.POST, body=bodies, **more
    )


@attrs.define(eq=False, kw_only=True)
class Call(Generic[B]):
    """A request that a handler answers. `body` is None for a route without one."""

    service: Service
    route: Route
    exchange: Exchange
    body: B
    arguments: Mapping[str, str]
    """Values of the variables in the route's path."""
    is_large: bool = False
    """Whether work on the body must not run on the event loop."""
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
            call._engine = service.ready_engine()
            check_media_type(request.content_type)
            data = cast(bytes, await request.get_data(cache=False))
            call.is_large = len(data) > INLINE_BYTES
            call.body = await call.run_in_thread_if_large(lambda: decode(data, *route.body))
        return call

    @property
    def engine(self) -> Engine:
        """The engine, from the first use until the end of the call. Raises Unavailable."""
        if self._engine is None:
            self._engine = self.service.ready_engine()
        return self._engine

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

    def take_permits(self, count: int) -> None:
        """Hold permits until the end of the answer. Raises Overloaded."""
        self._held.enter_context(self.service.permits(count))

    async def generate(self, sequences: Items[Sequence]) -> list[Finished]:
        """Generate the sequences to their ends. Raises ApiError."""
        return await generate(self.engine.scheduler, sequences)

    async def stream(
        self, sequences: Items[Sequence], writer: EventWriter, headers: Mapping[str, str]
    ) -> Response:
        """Answer with the events of the sequences, once the first token is there.

        Permits and sequences are released with the last event, or when the exchange ends. Raises ApiError.
        """
        receive = self._held.enter_context(self.engine.scheduler.generating_all(sequences))
        kept = self.exchange.resources.enter_context(ExitStack())
        events = EventStream(receive, writer, kept, self.observer.deadline)
        await events.start()
        kept.push(self._held.pop_all())
        return Response(events, 200, {**headers, **EventStream.headers})

    def prompt_headers(self, characters: int) -> dict[str, str]:
        """Return the headers that are known before anything is generated (1.5)."""
        compute_type = self.service.options.compute_type
        return {"x-compute-type": compute_type, "x-compute-characters": str(characters)}

    def finish(self, finished: Items[Finished]) -> dict[str, str]:
        """Tell the observer of finished sequences, and return the headers with their times."""
        return timing_headers([(one.sequence, self.observer.finished(one.sequence)) for one in finished])

    async def run_in_thread_if_large(self, work: Callable[[], T]) -> T:
        """Return the result of work on the body."""
        return await in_thread_if(self.is_large, work, self.service)

    async def tokenized(self, work: Callable[[], T], length: int) -> T:
        """Return the result of work of the tokenizer on a text. Raises ValidationError (V17)."""
        try:
            return await in_thread_if(length > INLINE_CHARACTERS, work, self.service)
        except TokenizerError as error:
            raise ValidationError(f"tokenizer error {error}") from error


async def in_thread_if(condition: bool, work: Callable[[], T], service: Service) -> T:
    """Return the result of work, done in a thread if the condition holds."""
    return await trio.to_thread.run_sync(work, limiter=service.tokenizing) if condition else work()


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
