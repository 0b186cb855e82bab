"""The application for `hypercorn -k trio tgi.app`, configured by the environment variables of `tgi serve`.

hypercorn's worker does not suit an engine: it announces a shutdown only when all connections have ended, cuts
them after its own timeout, keeps answering after the application's lifespan has crashed, and gives up if that
takes a minute to start. Importing this module therefore replaces hypercorn's `worker_serve` by
`tgi.server.serve`, with hypercorn's sockets and shutdown trigger; engine, signals and exit codes are those of
`tgi serve`. Any other ASGI server gets an error.
"""

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from multiprocessing.synchronize import SemLock
from typing import Any, NoReturn

import hypercorn.trio.run
import trio
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
    # Under a master process, SIGINT is hypercorn's and arrives as its shutdown.
    ours = (signal.SIGTERM, signal.SIGHUP)
    signals = ours if shutdown_trigger else (*ours, signal.SIGINT)
    trigger = None if shutdown_trigger is None else functools.partial(_master_ends, shutdown_trigger)
    try:
        code = await serve(options_from_environment(), config, sockets, signals, trigger)
    except SystemExit as error:
        code = int(error.code or 0)
    if code:
        _leave(code)


async def _master_ends(shutdown_trigger: Callable[[], Awaitable[None]]) -> None:
    """Return when hypercorn's master requests a shutdown or has died."""

    async def wait(until: Callable[[], Awaitable[None]]) -> None:
        await until()
        nursery.cancel_scope.cancel()

    master = multiprocessing.parent_process()
    assert master is not None, "hypercorn has a trigger only where it has a master process"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, shutdown_trigger)
        nursery.start_soon(wait, functools.partial(trio.lowlevel.wait_readable, master.sentinel))


async def app(*_: Any) -> NoReturn:
    """Refuse to run. Only called if something other than hypercorn's trio worker loads this module."""
    _refuse("tgi.app runs under hypercorn's trio worker only: hypercorn -k trio tgi.app")


def _refuse(reason: str) -> NoReturn:
    print(f"tgi: {reason}", file=sys.stderr, flush=True)
    _leave(1)


def _leave(code: int) -> NoReturn:
    """Exit, and make hypercorn's master exit with a non-zero code too.

    On its own the master exits with 0 after any code of its worker: hypercorn 0.18 asks for the codes when no
    worker is left. A supervisor would mistake the loss of the engine for success.
    """
    master = multiprocessing.parent_process()
    if master is not None and master.pid is not None:
        for lock in gc.get_objects():
            if isinstance(lock, SemLock):  # the master's; left alone, Python would warn that it leaked
                with contextlib.suppress(FileNotFoundError):
                    SemLock._cleanup(lock._semlock.name)  # type: ignore[attr-defined]
        with contextlib.suppress(ProcessLookupError):
            os.kill(master.pid, signal.SIGUSR1)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there is no stdout, or it is full
        sys.stdout.flush()
    os._exit(code)


hypercorn.trio.run.worker_serve = _worker_serve  # type: ignore[assignment]
