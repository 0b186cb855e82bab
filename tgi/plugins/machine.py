"""The machine that a server runs on: its files, variables, programs and packages. Tests make up others."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import attrs
import psutil  # type: ignore[import-untyped]

GIB, MIB = 1 << 30, 1 << 20
_TIMEOUT = 20
"""Seconds that a program may take to answer."""


def run_program(command: Sequence[str]) -> str | None:
    """Return the output of a program; None if it is not installed, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def may_use(path: Path) -> bool:
    """Return whether this user may read and write a file."""
    return os.access(path, os.R_OK | os.W_OK)


def disk(path: Path) -> tuple[int, int]:
    """Return the size of a path's file system and its free space, in bytes. Raises OSError."""
    usage = shutil.disk_usage(path)
    return usage.total, usage.free


def memory() -> tuple[int, int]:
    """Return the memory of the machine and its free part, in bytes, regardless of containers."""
    usage = psutil.virtual_memory()
    return usage.total, usage.available


def version(package: str) -> str:
    """Return the version of an installed distribution, or of "python"; "" if it is not installed."""
    if package == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@attrs.frozen(kw_only=True)
class Machine:
    """This machine, unless its fields are given."""

    root: Path = Path("/")
    """Folder that stands for the root of the file system."""
    environ: Mapping[str, str] = attrs.field(factory=lambda: dict(os.environ))
    """Environment variables."""
    version: Callable[[str], str] = version
    """Function from a distribution's name to its version, as `version` above."""
    run: Callable[[Sequence[str]], str | None] = run_program
    """Function from a command to its output, as `run_program`."""
    may_use: Callable[[Path], bool] = may_use
    """Function that tells whether this user may read and write a file."""
    disk: Callable[[Path], tuple[int, int]] = disk
    """Function from a path to the size and the free bytes of its file system."""
    cores: int = attrs.field(factory=lambda: len(os.sched_getaffinity(0)))
    """Number of logical cores that this process may use."""
    memory: tuple[int, int] = attrs.field(factory=memory)
    """Memory of the machine and its free part, in bytes."""

    def path(self, name: str) -> Path:
        """Return the path of an absolute file name on this machine."""
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str:
        """Return the content of a small file, stripped; "" if it cannot be read."""
        try:
            return self.path(name).read_text(errors="replace").strip()
        except OSError:
            return ""

    def files(self, pattern: str) -> list[Path]:
        """Return the files that match, in the order of the numbers in their names."""

        def order(path: Path) -> tuple[int, str]:
            return int("".join(filter(str.isdigit, path.name)) or 0), path.name

        return sorted(self.root.glob(pattern.lstrip("/")), key=order)

    def versions(self, packages: Iterable[str]) -> dict[str, str]:
        """Return the versions of the distributions that are installed, by name."""
        return {package: version for package in packages if (version := self.version(package))}
