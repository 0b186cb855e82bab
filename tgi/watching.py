"""Notices when files change, as those of Kubernetes do without a signal."""

from collections.abc import Callable, Sequence
from pathlib import Path

import trio

LOOK_SECONDS = 10.0
"""Interval, in seconds, at which files are looked at."""


async def watch(paths: Sequence[Path], on_change: Callable[[], None]) -> None:
    """Call `on_change` whenever one of the files has changed, until cancelled."""
    seen = _versions(paths)
    while True:
        await trio.sleep(LOOK_SECONDS)
        versions = await trio.to_thread.run_sync(_versions, paths)
        if versions != seen:
            seen = versions
            on_change()


def _versions(paths: Sequence[Path]) -> list[tuple[int, ...]]:
    """Return numbers that change with the contents of the files."""
    versions: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:  # while it is replaced
            versions.append(())
        else:
            versions.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return versions
