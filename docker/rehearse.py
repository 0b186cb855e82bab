"""Carries out the Dockerfile without a container engine, in a tree of files that stands for the base image.

    unshare --mount python docker/rehearse.py --base TREE --root ROOT --build-arg DEVICE=cpu -- COMMAND …

Needs to be root. TREE, a Debian with Python in /usr/local for instance, is copied to ROOT; every COPY and RUN
of the target is done there, with what ENV, ARG, WORKDIR and USER say, and how much each adds is printed. Then
the COMMAND runs as the image's user, with its root read-only but for /data and /tmp. What is no RUN, such as
HEALTHCHECK, is not tried. With `--mount FOLDER` the tree has a folder of this machine: pip's files, perhaps.
"""

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from dockerfile_parse import DockerfileParser

REPOSITORY = Path(__file__).parents[1]
DROPPED = ("__pycache__", "*.egg-info", "tests", "tgi-simulated-gaudi")
"""As .dockerignore has it."""


def instructions(path: Path, target: str | None, values: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What leads to the target (the last stage), without the instructions of other stages. The ARGs before
    the first stage are added to `values`."""
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for item in DockerfileParser(fileobj=io.BytesIO(path.read_bytes())).structure:
        word, value = item["instruction"], item["value"]
        if word == "FROM":
            source, _, name = expand(value, values).partition(" AS ")
            stages[name] = (source, [])
        elif not stages and word == "ARG":
            key, _, default = value.partition("=")
            values.setdefault(key, default)
        elif word != "COMMENT":
            stages[name][1].append((word, value))
    chain, name = [], name if target is None else target
    while name in stages:
        name, own = stages[name]
        chain.append(own)
    for own in reversed(chain):
        yield from own


def expand(text: str, values: Mapping[str, str]) -> str:
    """With the values of variables."""
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), text)


class Tree:
    """The files of the image, and what its instructions have said so far."""

    def __init__(self, root: Path, values: Mapping[str, str]) -> None:
        self.root = root
        self.values = values
        self.folder = "/"
        self.user = "0:0"
        self.variables = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin"}
        self.passed = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        self.arguments: dict[str, str] = {}

    def carry_out(self, word: str, value: str) -> None:
        """One instruction."""
        if word == "RUN":
            self.run(["/bin/sh", "-c", value], {**self.passed, **self.arguments})
        elif word == "COPY":
            *sources, goal = value.split()
            for source in sources:
                self._copy(REPOSITORY / source, goal)
        elif word == "ENV":
            for key, quoted, plain in re.findall(r'(\w+)=(?:"([^"]*)"|(\S+))', value):
                self.variables[key] = expand(quoted or plain, self.variables)
        elif word == "ARG":
            key, _, default = value.partition("=")
            given = self.values.get(key, default.strip('"'))
            self.arguments |= {key: given} if given else {}
        elif word == "WORKDIR":
            self.folder = value
            (self.root / value.strip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            self.user = value

    def run(self, command: list[str], variables: Mapping[str, str]) -> None:
        """In the tree, as the user. Raises CalledProcessError."""
        place = ["--userspec", self.user, str(self.root), "/usr/bin/env", "-C", self.folder]
        subprocess.run(["chroot", *place, *command], env={**variables, **self.variables}, check=True)

    def _copy(self, source: Path, goal: str) -> None:
        place = self.root / os.path.join(self.folder, goal).strip("/")
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns(*DROPPED), dirs_exist_ok=True)
        else:
            into = place / source.name if goal.endswith("/") else place
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, into)

    def size(self, mounted: list[str]) -> int:
        """Bytes of all files."""
        skipped = {str(self.root / name.strip("/")) for name in ("proc", "dev", "sys", *mounted)}
        total = 0
        for folder, folders, files in os.walk(self.root):
            folders[:] = [name for name in folders if os.path.join(folder, name) not in skipped]
            total += sum(os.lstat(os.path.join(folder, name)).st_size for name in files)
        return total


def main() -> None:
    """Prints as it goes. Raises CalledProcessError."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--target")
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("--mount", action="append", default=[])
    parser.add_argument("command", nargs="*")
    given = parser.parse_args()
    subprocess.run(["cp", "--archive", given.base, given.root], check=True)
    shutil.copy("/etc/resolv.conf", given.root / "etc/resolv.conf")
    for folder in ("/proc", "/dev", *given.mount):
        place = given.root / folder.strip("/")
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--rbind", folder, place], check=True)
    values = dict(argument.split("=", 1) for argument in given.build_arg)
    tree, before = Tree(given.root, values), None
    for word, value in instructions(REPOSITORY / "Dockerfile", given.target, values):
        before = tree.size(given.mount) if before is None else before
        print(f"--- {word} {value[:100]}", flush=True)
        tree.carry_out(word, value)
        if word in ("RUN", "COPY"):
            after = tree.size(given.mount)
            print(f"+++ {(after - before) / 2**20:.1f} MiB", flush=True)
            before = after
    if given.command:
        for folder in ("data", "tmp"):
            subprocess.run(["mount", "--bind", given.root / folder, given.root / folder], check=True)
        subprocess.run(["mount", "--rbind", given.root, given.root], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", given.root], check=True)
        tree.run(given.command, {})


if __name__ == "__main__":
    sys.exit(main())
