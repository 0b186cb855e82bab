"""Installs plugins by writing them to a folder on the path: a module each, and its metadata."""

from pathlib import Path

OFFER = """
from tgi.plugins import Architecture, hookimpl

@hookimpl
def tgi_architectures():
    return [Architecture({name!r}, "{module}:Model", lambda get: None)]
"""


def install(folder: Path, name: str, source: str, entry: str = "plugin") -> None:
    """Install version 1.0 of distribution `name`, whose module has the same name with underscores."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tgi]\n{entry} = {module}\n")


def offer(folder: Path, name: str, architecture: str) -> None:
    """Install a distribution that offers an architecture by name only."""
    install(folder, name, OFFER.format(name=architecture, module=name.replace("-", "_")))
