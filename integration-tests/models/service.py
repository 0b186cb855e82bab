"""A server of a model of the table: a container of the image, or a process of this environment."""

import contextlib
import http.client
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
from huggingface_hub import InferenceClient

from .table import Model

SECONDS = {True: 7200.0, False: 900.0}
"""Time until it is ready: a model from the Hub, and one made here. Two simulated cards compile their buckets
in a minute on two idle cores, and in as many times that as other programs share these."""
PASSED = ("HF_TOKEN", "LOG_LEVEL", "PT_HPU_LAZY_MODE")
"""Variables that a container gets."""


@attrs.frozen
class Service:
    """One that is ready."""

    port: int

    def health(self) -> int:
        """Status of /health; 0 where nobody listens yet."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    @property
    def client(self) -> InferenceClient:
        """huggingface_hub's."""
        return InferenceClient(f"http://127.0.0.1:{self.port}")


@contextlib.contextmanager
def open_service(model: Model, folder: Path) -> Iterator[Service]:
    """Started, and ready when the body begins. `folder` is for its log and its checkpoint."""
    source = model.model if isinstance(model.model, str) else str(model.model(folder / "model"))
    port, log = free_port(), folder / "server.log"
    image = os.environ.get("DOCKER_IMAGE")
    local = [
        str(Path(sys.executable).parent / "tgi"),
        "serve",
        "--hostname",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command = docker_run(image, model, source, port) if image else local
    if image is None and isinstance(model.model, str):
        command += ["--device", os.environ.get("DEVICE", "hpu")]
    command += ["--model-id", source, *shlex.split(model.arguments)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    service = Service(port)
    try:
        _wait(service, process, log, SECONDS[isinstance(model.model, str)])
        yield service
    finally:
        process.terminate()
        process.wait(60)


def docker_run(image: str, model: Model, source: str, port: int) -> list[str]:
    """The beginning of the command line: as TGI's tests start theirs, on the device of DEVICE."""
    name = "tgi-gaudi-test-" + re.sub(r"\W+", "-", model.name)
    command = ["docker", "run", "--rm", "--name", name, "--ipc=host", "-p", f"{port}:80"]
    device = os.environ.get("DEVICE", "hpu")
    if device == "hpu":
        command += ["--runtime=habana", "--cap-add=sys_nice"]
    if device == "cuda":
        command += ["--gpus=all"]
    for variable in PASSED:
        if variable in os.environ:
            command += ["-e", variable]
    if "DOCKER_VOLUME" in os.environ:
        command += ["-v", f"{os.environ['DOCKER_VOLUME']}:/data"]
    if os.path.isabs(source):  # a checkpoint made here
        command += ["-v", f"{source}:{source}:ro", "--user", f"{os.getuid()}:{os.getgid()}"]
    return [*command, image]


def _wait(service: Service, process: "subprocess.Popen[bytes]", log: Path, seconds: float) -> None:
    """Until it answers. Raises AssertionError with its log if it does not."""
    deadline = time.monotonic() + seconds
    while service.health() != 200:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.1)
    service.client.text_generation("test", max_new_tokens=1)


def free_port() -> int:
    """Where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
