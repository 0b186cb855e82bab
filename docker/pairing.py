"""Refuses a Gaudi image whose parts do not belong together: Gaudi software, torch and Python.

The table is Intel's support matrix; of releases before 1.21 no image has a Python that the server runs on.
"""

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

PAIRS = {
    "1.21": ("2.6.0", ("3.10", "3.11", "3.12")),
    "1.22": ("2.7.1", ("3.10", "3.11", "3.12")),
    "1.23.0": ("2.9.0", ("3.10", "3.11", "3.12")),
    "1.24.0": ("2.10.0", ("3.10", "3.11", "3.12")),
    "1.24.1": ("2.11.0", ("3.10", "3.11", "3.12")),
}
"""Release of the Gaudi software, or the beginning of one -> its torch, and the Pythons of its images."""
OLDEST_PYTHON = (3, 11)


def refusal(gaudi: str, torch: str, python: str, installed: str | None) -> str | None:
    """Why they do not belong together; None: they do. `installed` is the torch that the image has."""
    release = next((known for known in PAIRS if f"{gaudi}.".startswith(f"{known}.")), None)
    if release is None:
        return (
            f"Gaudi software {gaudi} is not known; known are {', '.join(PAIRS)}: add it to docker/pairing.py"
        )
    paired, pythons = PAIRS[release]
    if torch != paired:
        return f"Gaudi software {gaudi} has torch {paired}, not {torch}: --build-arg GAUDI_TORCH={paired}"
    if installed is not None and installed.partition("+")[0].partition("a")[0] != torch:
        return f"the base image has torch {installed}, not {torch}"
    if python not in pythons:
        return f"Gaudi software {gaudi} has no image with Python {python}, only {', '.join(pythons)}"
    if tuple(map(int, python.split("."))) < OLDEST_PYTHON:
        return f"the server needs Python 3.11, and this image has {python}: --build-arg GAUDI_UBUNTU=24.04"
    return None


def main(arguments: Sequence[str]) -> str | None:
    """Of this image; what to say at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gaudi", required=True)
    parser.add_argument("--torch", required=True)
    given = parser.parse_args(arguments)
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "the base image has no torch"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return refusal(given.gaudi, given.torch, python, installed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
