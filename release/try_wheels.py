"""Try the wheels as a user would: `python release/try_wheels.py build/dist`.

They are installed in an empty virtual environment, outside this tree. Of this environment's packages it gets
those that they depend on, by links, so that nothing is downloaded and a dependency that is not declared is
missing.
Prints each command and the end of its output.
"""

import argparse
import importlib.metadata
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from packaging.requirements import Requirement

LLM = "from tgi import LLM\nwith LLM() as llm: print(llm.chat('What is a lute?', max_tokens=9)['content'])"
START_SECONDS = 300


class Environment:
    """A virtual environment with the wheels of a folder and what they need."""

    def __init__(self, root: Path, wheels: Iterable[Path]) -> None:
        self.root = root
        self.empty = root / "empty"
        self.empty.mkdir(parents=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
        self._python = root / "venv" / "bin" / "python"
        (self.packages,) = (root / "venv").glob("lib/python*/site-packages")
        self._pip("install", "--quiet", "--no-index", "--no-deps", "--no-compile", *map(str, wheels))
        for name in needed(self.packages):
            self._link(importlib.metadata.distribution(name))
        self._pip("check")

    def command(self, name: str, *arguments: str) -> list[str]:
        """Return a command of the environment."""
        return [str(self._python.with_name(name)), *arguments]

    def start(self, command: list[str]) -> "subprocess.Popen[str]":
        """Start it in an empty folder; what it prints is one stream."""
        print("$", " ".join([Path(command[0]).name, *command[1:]]), flush=True)
        return subprocess.Popen(
            command,
            cwd=self.empty,
            env={key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str, given: str = "") -> str:
        """Return what it prints. Raises CalledProcessError."""
        process = self.start(self.command(*command))
        output, _ = process.communicate(given, timeout=120)
        print(*output.splitlines()[-12:], sep="\n", flush=True)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, output)
        return output

    def _pip(self, *arguments: str) -> None:
        pip = [sys.executable, "-m", "pip", "--python", str(self._python), "--disable-pip-version-check"]
        subprocess.run([*pip, *arguments], check=True)

    def _link(self, distribution: importlib.metadata.Distribution) -> None:
        for name in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (self.packages / name).exists():
                (self.packages / name).symlink_to(str(distribution.locate_file(name)))


def needed(packages: Path) -> set[str]:
    """Return the names of what the distributions in a folder depend on, and these in turn, without extras."""
    installed = list(importlib.metadata.distributions(path=[str(packages)]))
    ours = {_normal(one.name) for one in installed}
    found: set[str] = set()
    waiting = [line for one in installed for line in one.requires or ()]
    while waiting:
        line = Requirement(waiting.pop())
        name = _normal(line.name)
        if name in ours | found or not _holds(line):
            continue
        found.add(name)
        requires = importlib.metadata.requires(name) or ()
        waiting += [*requires, *_of_extras(requires, line.extras)]
    return found


def _of_extras(lines: Iterable[str], extras: Iterable[str]) -> Iterator[str]:
    for line in map(Requirement, lines):
        if line.marker and any(line.marker.evaluate({"extra": extra}) for extra in extras):
            line.marker = None
            yield str(line)


def _holds(line: Requirement) -> bool:
    return line.marker is None or line.marker.evaluate({"extra": ""})


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def wait_ready(server: "subprocess.Popen[str]", url: str) -> None:
    """Wait until the server says that it is connected. Raises RuntimeError with what it said instead."""
    assert server.stdout is not None
    deadline, lines = time.monotonic() + START_SECONDS, []
    while time.monotonic() < deadline and (line := server.stdout.readline()):
        lines.append(line)
        if "Connected" in line:
            print(line.strip().replace("\r", ""))
            return
    raise RuntimeError(f"{url} does not become ready: {''.join(lines)}")


def main() -> None:
    """Try everything. Raises CalledProcessError, RuntimeError or AssertionError."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    wheels = sorted(parser.parse_args().folder.glob("*.whl"))
    optional = ("tgi_transformers", "tgi_simulated_gaudi")
    chosen = [wheel for wheel in wheels if not wheel.name.startswith(optional)]
    with tempfile.TemporaryDirectory() as place, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        environment = Environment(Path(place), chosen)
        environment.run("tgi", "--version")
        where = environment.run("python", "-c", "import tgi; print(tgi.__file__)")
        assert where.startswith(str(environment.packages)), where
        listed = environment.run("tgi", "plugins")
        adapters = {_normal(wheel.name.split("-")[0]) for wheel in chosen} - {"tgi-server", "tgi-cpu-kernels"}
        assert all(f"{name} " in listed for name in adapters), listed
        environment.run("python", "-c", LLM)
        url = f"http://127.0.0.1:{port}"
        server = environment.start(
            environment.command("tgi", "serve", "--hostname", "127.0.0.1", "--port", port)
        )
        try:
            wait_ready(server, url)
            environment.run("tgi", "chat", url, given="What is a violin?\n")
            environment.run(
                "tgi", "bench", url, "--concurrency", "2", "--requests", "4", "--output-tokens", "8"
            )
        finally:
            server.terminate()
            server.communicate(timeout=60)
        assert server.returncode == 0, server.returncode


if __name__ == "__main__":
    main()
