"""The life of the server process: one nursery with HTTP and the engine, and one way to shut down.

The port opens at once and answers 503 until the engine is ready. Shutdown takes the same steps for any cause
(a signal, hypercorn's own shutdown, loss of the engine): readiness off, listeners closed, running requests
finished or ended with an error event, ranks stopped.
"""

import functools
import gc
import logging
import platform
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import trio
from hypercorn.config import Config, Sockets
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app

from tgi import log as logs
from tgi.api import transport
from tgi.api.app import create_app
from tgi.api.service import Service
from tgi.config import OptionError, Options
from tgi.engine import run_engine
from tgi.errors import ApiError, GenerationFailed, Unavailable
from tgi.executor import EngineError
from tgi.hub_errors import HubError
from tgi.lifecycle import Lifecycle, Phase
from tgi.limits import Limits
from tgi.listen import listen
from tgi.metrics import Metrics
from tgi.plugins import PLUGIN_TRACE, ConfigError
from tgi.plugins.machine import Machine
from tgi.progress import show_progress
from tgi.tls import Certificate, read_certificate

log = logging.getLogger(__name__)
LOOK_SECONDS = 10.0
"""Interval, in seconds, at which files are looked at."""
FLUSH_SECONDS = 2.0
"""Seconds that connections have to send their last event once generation has ended; same for traces."""
MAX_FILES = 65_536
"""Limit of open files, and so of connections, to ask for: many systems allow only 1024 by default."""
EXPECTED = (HubError, ConfigError, OptionError, EngineError)
"""Errors explained by one line; any other is a defect and shows its traceback."""


def run(options: Options) -> int:
    """Serve until a signal or a failure; return the exit code."""
    try:
        listeners = listen(options)
    except OptionError as error:
        return _explain(error)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    try:
        return trio.run(functools.partial(serve, options, Config(), Sockets([], listeners, []), signals))
    except KeyboardInterrupt:
        return 130
    finally:
        if options.uds is not None:
            options.uds.unlink(missing_ok=True)


async def serve(
    options: Options,
    config: Config,
    sockets: Sockets,
    signals: tuple[signal.Signals, ...],
    trigger: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Serve on listening sockets until a signal comes or `trigger` returns; return the exit code.

    A failure that the user can fix becomes one line on stderr; a defect raises.
    """
    traced = [PLUGIN_TRACE] if options.trace_plugins else []
    writer = logs.configure(options.log_level, json_output=options.json_output, traced=traced)
    _raise_file_limit()
    if options.env:
        log.info("%s", ", ".join(_versions()))
    server = _Server(options)
    early: list[int] = []
    failure: Exception | None = None
    for one in signals:  # before the receiver opens, and after it has closed
        signal.signal(one, lambda number, _: early.append(number))
    try:
        for warning in options.checked():
            log.warning(warning)
        if server.service.tenants is not None:
            server.service.tenants.load()
        server.certificate = read_certificate(options)
        if server.certificate is not None:
            secure = [*sockets.secure_sockets, *sockets.insecure_sockets]
            sockets = Sockets(secure, [], sockets.quic_sockets)
        server.service.url = url_of(sockets)
        server.start_tracing()
        with trio.open_signal_receiver(*signals) as received:
            async with trio.open_nursery() as nursery:
                for number in early:
                    server.take_signal(number)
                nursery.start_soon(server.count_signals, received)
                if trigger is not None:
                    nursery.start_soon(server.await_trigger, trigger)
                nursery.start_soon(server.run_http, config, sockets)
                nursery.start_soon(server.run_engine)
                nursery.start_soon(_start_up, server.service.lifecycle)
                nursery.start_soon(watch, server.files, server.reload)
                await server.live()
                nursery.cancel_scope.cancel()
            await server.end_tracing()
        if server.failure is not None:
            raise server.failure
    except Exception as error:
        failure = error
    finally:
        writer.close()
        for number in signals:  # one that comes while the process exits changes nothing
            signal.signal(number, signal.SIG_IGN)
    return 0 if failure is None else _explain(failure)  # after all lines of the log


def url_of(sockets: Sockets) -> str:
    """Return the URL at which this machine reaches the server, or the path of a Unix socket."""
    listener = (sockets.secure_sockets or sockets.insecure_sockets)[0]
    if listener.family == socket.AF_UNIX:
        return str(listener.getsockname())
    host, port = listener.getsockname()[:2]
    host = "localhost" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    return f"{'https' if sockets.secure_sockets else 'http'}://{host}:{port}/"


@attrs.define(eq=False)
class _Server:
    """State of a running server and of its shutdown."""

    options: Options
    service: Service = attrs.field(init=False)
    stopping: trio.Event = attrs.field(factory=trio.Event)
    """Set once shutdown is requested."""
    closing: trio.Event = attrs.field(factory=trio.Event)
    """Set when new connections are refused."""
    closed: trio.Event = attrs.field(factory=trio.Event)
    """Set when all connections have ended."""
    patience: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Scope of waiting for running requests; cancelled to stop at once."""
    failure: Exception | None = None
    """Error that ended the engine."""
    certificate: Certificate | None = None
    """Certificate of HTTPS; None for HTTP, or if hypercorn has its own."""

    def __attrs_post_init__(self) -> None:
        self.service = Service(
            limits=Limits(), lifecycle=Lifecycle(), metrics=Metrics(), options=self.options
        )

    def start_tracing(self) -> None:
        """Start to send traces if --otlp-endpoint is set. Raises OptionError if it cannot be used."""
        endpoint = self.options.otlp_endpoint
        if endpoint is not None:
            from tgi.tracing import Tracer

            try:
                self.service.tracer = Tracer.start(endpoint, self.options.otlp_service_name)
            except ValueError as error:
                raise OptionError(f"--otlp-endpoint {endpoint}: {error}") from error

    async def end_tracing(self) -> None:
        """Send the last traces, if the collector accepts them in time."""
        if self.service.tracer is not None:
            with trio.move_on_after(FLUSH_SECONDS):
                await trio.to_thread.run_sync(self.service.tracer.shutdown, abandon_on_cancel=True)

    async def run_http(self, config: Config, sockets: Sockets) -> None:
        """Answer on the sockets until `closing`, then until every connection has ended."""
        tls = None if self.certificate is None else self.certificate.context
        transport.configure(config, keep_alive_seconds=self.options.keep_alive_timeout, tls=tls)
        app = create_app(self.service)
        wrapped = wrap_app(app, config.wsgi_max_body_size, "asgi")
        async with trio.open_nursery() as nursery:

            async def begin_to_close() -> None:
                await self.closing.wait()
                nursery.start_soon(transport.cut_bodies, app)

            await worker_serve(wrapped, config, sockets=sockets, shutdown_trigger=begin_to_close)
            nursery.cancel_scope.cancel()
        self.closed.set()

    async def run_engine(self) -> None:
        """Run the engine; if it fails, shut down after telling the clients."""
        try:
            await run_engine(self.service, self.options)
        except Exception as error:
            self.failure = error
            self.patience.cancel()

    async def count_signals(self, received: AsyncIterator[int]) -> None:
        """Take signals for ever."""
        async for number in received:
            self.take_signal(number)

    def take_signal(self, number: int) -> None:
        """Shut down at the first signal, at once at the second. SIGHUP reads `files` again, if any."""
        if number == signal.SIGHUP and self.files:
            self.reload()
            return
        if self.patience.cancel_called:
            return
        name = signal.Signals(number).name
        if self.stopping.is_set():
            log.info("%s received again, stopping at once", name)
            self.patience.cancel()
        else:
            log.info("%s received, starting graceful shutdown; another stops at once", name)
        self.stopping.set()

    @property
    def files(self) -> list[Path]:
        """Files that are read again when they change."""
        options = self.options
        return [path for path in (options.tenants, options.tls_cert, options.tls_key) if path is not None]

    def reload(self) -> None:
        """Read the files again; one with an error changes nothing."""
        if self.certificate is not None:
            self.certificate.load_again()
        tenants = self.service.tenants
        if self.options.tenants is None or tenants is None:
            return
        try:
            tenants.load()
        except OptionError as error:
            log.error("%s; the terms of before go on", error)
        else:
            log.info("%s was read again", self.options.tenants)

    async def await_trigger(self, trigger: Callable[[], Awaitable[None]]) -> None:
        """Shut down when hypercorn does."""
        await trigger()
        self.stopping.set()

    async def live(self) -> None:
        """Return when every connection has ended, or its time to end is over."""
        with self.patience:
            await self.stopping.wait()
            self.service.lifecycle.change(Phase.DRAINING)
            await trio.sleep(self.options.drain_delay)
            self.closing.set()
            with trio.move_on_after(self.options.graceful_termination_timeout):
                await self.closed.wait()
        self.service.lifecycle.change(Phase.DRAINING)
        self.closing.set()
        self._end_running()
        with trio.move_on_after(FLUSH_SECONDS):
            await self.closed.wait()

    def _end_running(self) -> None:
        error: ApiError = Unavailable("shutting down")
        if self.failure is not None:
            error = GenerationFailed("the engine is lost")
        if self.service.engine is not None:
            self.service.engine.scheduler.fail_all(error)
        if self.service.embedder is not None:
            self.service.embedder.pooler.fail_all(error)


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _versions() -> Iterator[str]:
    yield f"{platform.platform()}, Python {platform.python_version()}"
    packages = ("tgi-server", "torch", "transformers", "tokenizers", "trio", "quart-trio", "hypercorn")
    for name, version in Machine().versions(packages).items():
        yield f"{name} {version}"


def _explain(error: Exception) -> int:
    """Print the line that explains the error and return the exit code; raise defects."""
    for leaf in _leaves(error):
        if isinstance(leaf, EXPECTED):
            print(f"tgi: {leaf}", file=sys.stderr, flush=True)
            return 1
    raise error


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _start_up(lifecycle: Lifecycle) -> None:
    """Show the progress of the start, and never look for garbage among what it leaves, which takes 0.1 s."""
    await show_progress(lifecycle)
    gc.freeze()


async def watch(paths: list[Path], on_change: Callable[[], None]) -> None:
    """Call `on_change` whenever a file has changed, as Kubernetes's do without a signal, until cancelled."""
    seen = _states(paths)
    while True:
        await trio.sleep(LOOK_SECONDS)
        states = await trio.to_thread.run_sync(_states, paths)
        if states != seen:
            seen = states
            on_change()


def _states(paths: list[Path]) -> list[tuple[int, ...]]:
    """Return numbers that change with the contents of the files."""
    states: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # while it is replaced
            states.append(())
        else:
            states.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return states
