"""`hypercorn -k trio tgi.app`: the server as an ASGI application, configured by the variables of `tgi serve`.

hypercorn's own way of running an application does not suit an engine: it tells the application of a shutdown
only when all connections have ended, cuts them after a timeout of its own, goes on answering when the
application's lifespan has crashed, and gives up when that takes a minute to start. So, when hypercorn loads
this module in its worker process, `tgi.server.serve` takes the place of hypercorn's function of the same
purpose, with hypercorn's sockets and hypercorn's shutdown; engine, signals and exit codes are then those of
`tgi serve`. Started by anything else, the application refuses.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import hypercorn.trio.run
from hypercorn.config import Config, Sockets

from tgi.cli import options_from_environment
from tgi.server import serve


async def _worker_serve(
    _app: Any,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[[], Awaitable[None]] | None = None,
) -> None:
    if config.workers > 1:
        _refuse("every hypercorn worker would load the model: start one (-w 1)")
    assert sockets is not None, "hypercorn binds before it starts a worker"
    # Under a master process, SIGINT is hypercorn's and comes as its shutdown.
    signals = (signal.SIGTERM,) if shutdown_trigger else (signal.SIGTERM, signal.SIGINT)
    code = await serve(options_from_environment(), config, sockets, signals, shutdown_trigger)
    if code:
        sys.exit(code)


async def app(*_: Any) -> NoReturn:
    """Reached only when something else than hypercorn's trio worker has loaded the module."""
    _refuse("tgi.app runs under hypercorn's trio worker only: hypercorn -k trio tgi.app")


def _refuse(reason: str) -> NoReturn:
    print(f"tgi: {reason}", file=sys.stderr, flush=True)
    os._exit(1)  # an exception would be logged by the server, which would go on


hypercorn.trio.run.worker_serve = _worker_serve  # type: ignore[assignment]
