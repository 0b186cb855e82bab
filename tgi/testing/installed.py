"""Plugins that are installed by being on a path: a module each, and what pip writes beside it."""

from pathlib import Path

OFFER = """
from tgi.plugins import Architecture, hookimpl

@hookimpl
def tgi_architectures():
    return [Architecture({name!r}, "{module}:Model", lambda get: None)]
"""


def install(folder: Path, name: str, source: str, entry: str = "plugin") -> None:
    """Distribution `name` 1.0, whose module is called alike with underscores."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tgi]\n{entry} = {module}\n")


def offer(folder: Path, name: str, architecture: str) -> None:
    """A distribution that offers an architecture of which there is only the name."""
    install(folder, name, OFFER.format(name=architecture, module=name.replace("-", "_")))
