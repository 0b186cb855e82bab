"""adapters/README.md, done as it says: from an empty folder to a model that is served, from a wheel."""

import json
import os
import re
import shlex
import signal
import site
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[1] / "adapters" / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TEST, PREPARE, SERVE, ASK, BUILD = (text for kind, text in BLOCKS if kind == "bash")
SERVE_SECONDS = 90


class Environment:
    """A virtual environment that sees what this one has, and has what is installed into it by itself."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        for number, parent in enumerate(site.getsitepackages()):
            (packages / f"parent{number}.pth").write_text(f"import site; site.addsitedir({parent!r})\n")
        python = shlex.quote(str(folder / "bin" / "python"))
        for command, module in (("tgi", "tgi"), ("pip", "pip"), ("pytest", "pytest")):
            script = folder / "bin" / command
            script.write_text(f'#!/bin/sh\nexec {python} -m {module} "$@"\n')
            script.chmod(0o755)
        self.variables = {
            **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # "no", to a flag that is called no
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONPATH": "",
        }

    def run(self, commands: str, folder: Path) -> str:
        """What they print, from a shell that stops at the first that fails."""
        done = subprocess.run(
            ["bash", "-ec", commands],
            cwd=folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with all that the page says to write into it."""
    parent = tmp_path_factory.mktemp("tutorial")
    (making,) = re.findall(r"^    (mkdir .*)$", PAGE, re.MULTILINE)
    subprocess.run(["bash", "-ec", making], cwd=parent, check=True)
    for kind, text in BLOCKS:
        if kind != "bash":
            (parent / "my-seed" / text.partition("\n")[0].removeprefix("# ")).write_text(text)
    return parent / "my-seed"


def test_from_an_empty_folder_to_an_answer(project: Path, tmp_path: Path) -> None:
    """Written and tested in one environment; served in another one, which has got nothing but the wheel."""
    author = Environment(tmp_path / "author")
    assert "2 passed" in author.run(TEST, project)
    listed = author.run(PREPARE, project)
    assert "my-seed 1.0 (seed = my_seed.plugin)\n  architectures: SeedOssForCausalLM\n" in listed
    author.run(BUILD, project)
    user = Environment(tmp_path / "user")
    assert "my-seed" not in user.run("tgi plugins", tmp_path)
    user.run(f"pip install --quiet --no-deps {shlex.quote(str(project))}/dist/*.whl", tmp_path)
    (tmp_path / "random-seed").symlink_to(project / "random-seed")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve = SERVE.replace("8080", f"{port} --hostname 127.0.0.1 --threads 1")
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            ["bash", "-ec", f"exec {serve}"],
            cwd=tmp_path, env=user.variables, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + SERVE_SECONDS
        ready = f"curl -sf -o /dev/null 127.0.0.1:{port}/health"
        while subprocess.run(["bash", "-c", ready]).returncode:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()  # noqa: PT018
            time.sleep(0.1)
        answer = json.loads(user.run(ASK.replace("localhost:8080", f"127.0.0.1:{port}"), tmp_path))
        assert answer["generated_text"]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0, log.read_text()


def test_the_blocks_of_code_are_of_this_repositorys_style(project: Path) -> None:
    """Which is what authors copy."""
    for command in (["check", "--isolated", "--line-length=110"], ["format", "--check", "--line-length=110"]):
        checked = subprocess.run(
            [sys.executable, "-m", "ruff", *command, project], capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stdout
