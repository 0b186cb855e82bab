"""`tgi serve` that ends when its standard input does: `python -m tgi.embedded FLAGS`, for `tgi.LLM`.

So it outlives no parent, however that dies.
"""

import contextlib
import functools
import signal
import sys

import attrs
import trio
from hypercorn.config import Config, Sockets

from tgi.cli import parse_options, usage_errors
from tgi.listen import listen
from tgi.server import serve


async def _parent_ends() -> None:
    """Return when the program that started this one closes the pipe, or has gone."""
    async with trio.lowlevel.FdStream(sys.stdin.fileno()) as pipe:
        with contextlib.suppress(trio.BrokenResourceError):
            while await pipe.receive_some():
                pass


def main() -> int:
    """Serve; return the exit code."""
    with usage_errors():
        options = attrs.evolve(parse_options(sys.argv[1:]), graceful_termination_timeout=0.0)
    sockets = Sockets([], listen(options), [])
    return trio.run(functools.partial(serve, options, Config(), sockets, (signal.SIGTERM,), _parent_ends))


if __name__ == "__main__":
    sys.exit(main())
