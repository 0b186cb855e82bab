"""Progress of the start: a bar on a terminal, plain lines in a log."""

import logging
import sys
import time

import trio
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from tgi.lifecycle import Lifecycle, Phase

log = logging.getLogger(__name__)
_REFRESH_SECONDS = 0.2
_LINE_SECONDS = 10.0


async def show_progress(lifecycle: Lifecycle, *, bar: bool | None = None) -> None:
    """Show the progress until the start is over; as a bar if stdout is a terminal or `bar` is true."""
    if _is_terminal() if bar is None else bar:
        await _show_bar(lifecycle)
    else:
        await _write_lines(lifecycle)


def _is_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


async def _show_bar(lifecycle: Lifecycle) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(
        *columns, console=Console(file=sys.stdout, force_terminal=True), transient=True
    ) as progress:
        task = progress.add_task(lifecycle.stage, total=None)
        stage = lifecycle.stage
        while lifecycle.phase is Phase.STARTING:
            if lifecycle.stage != stage:
                stage = lifecycle.stage
                progress.reset(task, description=stage, total=None)
            progress.update(task, completed=lifecycle.done, total=lifecycle.total or None)
            await trio.sleep(_REFRESH_SECONDS)


async def _write_lines(lifecycle: Lifecycle) -> None:
    stage, written = "", 0.0
    while lifecycle.phase is Phase.STARTING:
        now = time.monotonic()
        if lifecycle.stage != stage or now - written >= _LINE_SECONDS:
            log.info(describe(lifecycle))
            stage, written = lifecycle.stage, now
        await trio.sleep(_REFRESH_SECONDS)


def describe(lifecycle: Lifecycle) -> str:
    """Return the current stage as a line: "warming up: 40 %, 12 s left (decode of 8 rows, 64 blocks)"."""
    text = lifecycle.stage
    if lifecycle.done and lifecycle.total:
        text += f": {100 * lifecycle.done // lifecycle.total} %"
    left = lifecycle.seconds_left()
    if left is not None:
        text += f", {left:.0f} s left"
    return f"{text} ({lifecycle.detail})" if lifecycle.detail else text
