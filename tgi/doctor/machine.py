"""The machine that is looked at: its files, its variables, its programs. Tests make up others."""

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import psutil  # type: ignore[import-untyped]

from tgi.planning.recipes import installed_software

GIB, MIB = 1 << 30, 1 << 20
_PATIENCE = 20
"""Seconds that a program may take that answers at once."""


def run_program(command: Sequence[str]) -> str | None:
    """What it prints; None where there is no such program, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def may_use(path: Path) -> bool:
    """Whether this user may read and write it."""
    return os.access(path, os.R_OK | os.W_OK)


def disk(path: Path) -> tuple[int, int]:
    """Bytes of its file system in all, and those that are left. Raises OSError."""
    usage = shutil.disk_usage(path)
    return usage.total, usage.free


def memory() -> tuple[int, int]:
    """Of the machine, not of a container."""
    found = psutil.virtual_memory()
    return found.total, found.available


@attrs.frozen(kw_only=True)
class Machine:
    """This one, unless something else is given."""

    root: Path = Path("/")
    environ: Mapping[str, str] = attrs.field(factory=lambda: dict(os.environ))
    software: Mapping[str, str] = attrs.field(
        factory=lambda: {"python": platform.python_version(), **installed_software()}
    )
    """Versions of Python and of what packages there are."""
    run: Callable[[Sequence[str]], str | None] = run_program
    may_use: Callable[[Path], bool] = may_use
    disk: Callable[[Path], tuple[int, int]] = disk
    cores: int = attrs.field(factory=lambda: len(os.sched_getaffinity(0)))
    """That this process may use."""
    memory: tuple[int, int] = attrs.field(factory=memory)
    """Bytes in all, and those that are left."""

    def path(self, name: str) -> Path:
        """Of "/dev/shm" and the like."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """A small file; "" where it cannot be read."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return ""

    def files(self, pattern: str) -> list[Path]:
        """Those that match, in the order of the numbers in their names."""

        def order(path: Path) -> tuple[int, str]:
            return int("".join(filter(str.isdigit, path.name)) or 0), path.name

        return sorted(self.root.glob(pattern.lstrip("/")), key=order)
