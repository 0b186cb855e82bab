"""Refuses a Gaudi image whose parts do not belong together: Gaudi software, torch and Python."""

import argparse
import importlib.metadata
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

_HERE = Path(__file__).parent
_TABLES = (_HERE / "gaudi_releases.py", _HERE.parent / "tgi/device/hpu/gaudi_releases.py")
"""In the image, and in the repository."""
_TABLE = runpy.run_path(str(next(path for path in _TABLES if path.exists())))
OLDEST_PYTHON = (3, 11)


def refusal(gaudi: str, torch: str, python: str, installed: "str | None") -> "str | None":
    """Why they do not belong together; None: they do. `installed` is the torch that the image has."""
    known = _TABLE["known_pair"](gaudi)
    if known is None and not is_new_patch(gaudi):
        return f"Gaudi software {gaudi} is not known; known are {', '.join(_TABLE['RELEASES'])}"
    paired, pythons = known or (torch, ())
    if torch != paired:
        return f"Gaudi software {gaudi} has torch {paired}, not {torch}: --build-arg GAUDI_TORCH={paired}"
    if installed is not None and _TABLE["public_version"](installed) != torch:
        return f"the base image has torch {installed}, not {torch}"
    if pythons and python not in pythons:
        return f"Gaudi software {gaudi} has no image with Python {python}, only {', '.join(pythons)}"
    if tuple(map(int, python.split("."))) < OLDEST_PYTHON:
        return f"the server needs Python 3.11, and this image has {python}: --build-arg GAUDI_UBUNTU=24.04"
    return None


def is_new_patch(gaudi: str) -> bool:
    """Whether this patch is not known, and another of its release is."""
    return _TABLE["known_pair"](gaudi) is None and bool(_TABLE["is_known_minor"](gaudi))


def main(arguments: Sequence[str]) -> "str | None":
    """Of this image; what to say at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gaudi", required=True)
    parser.add_argument("--torch", required=True)
    given = parser.parse_args(arguments)
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "the base image has no torch"
    if is_new_patch(given.gaudi):
        print(f"warning: Gaudi software {given.gaudi} is newer than the server", file=sys.stderr)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return refusal(given.gaudi, given.torch, python, installed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
