"""Prints what the server needs, with the torch that is there: `requirements.py pyproject.toml DEVICE`."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path


def requirements(project: str, device: str, torch: str) -> list[str]:
    """Lines for pip: what is not of this repository, with the extras of an image and of the device."""
    table = tomllib.loads(project)["project"]
    extras = table["optional-dependencies"]
    chosen = ["docs", "otlp-grpc", "ray", "transformers", device]
    needed = [*table["dependencies"], *(line for name in chosen for line in extras.get(name, []))]
    foreign = [line for line in needed if not line.startswith("tgi-")]
    return [f"torch=={torch}" if re.match(r"torch\b(?!-)", line) else line for line in foreign]


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text("utf-8")
    print("\n".join(requirements(text, sys.argv[2], importlib.metadata.version("torch"))))
