"""What surrounds the server in a container: the Dockerfile, its scripts, make's targets and the manifest."""

import http.server
import importlib.util
import io
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cyclopts import Argument
from dockerfile_parse import DockerfileParser

from tgi.cli import launcher_app

ROOT = Path(__file__).parents[1]
DOCKERFILE = DockerfileParser(fileobj=io.BytesIO((ROOT / "Dockerfile").read_bytes())).structure
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
ENTRYPOINT = ROOT / "docker" / "sagemaker-entrypoint.sh"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docker" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def argument(name: str) -> str:
    """The default of an ARG of the Dockerfile."""
    (value,) = [
        item["value"].partition("=")[2].strip('"')
        for item in DOCKERFILE
        if item["instruction"] == "ARG" and item["value"].startswith(f"{name}=")
    ]
    return str(value)


def make(*arguments: str, **variables: str) -> str:
    """What a target would run."""
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    environment = {key: value for key, value in os.environ.items() if key not in ("DEVICE", "MAKEFLAGS")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**environment, **variables})
    assert done.returncode == 0, done.stderr
    return re.sub(r" +", " ", re.sub(r"\\\n\s*", " ", done.stdout))


def test_the_defaults_belong_together() -> None:
    pairing = script("pairing")

    assert pairing.refusal(argument("GAUDI"), argument("GAUDI_TORCH"), argument("PYTHON"), None) is None
    assert argument("TORCH") == re.search(r"^TORCH \?= (\S+)$", MAKEFILE, re.MULTILINE)[1]  # type: ignore[index]
    place = "{GAUDI_REGISTRY}/{GAUDI}/ubuntu{GAUDI_UBUNTU}/habanalabs/pytorch-installer-{GAUDI_TORCH}:latest"
    image = re.sub(r"\{(\w+)\}", lambda found: argument(found[1]), place)
    assert f"GAUDI_IMAGE ?= {image}\n" in MAKEFILE
    sources = [item["value"] for item in DOCKERFILE if item["instruction"] == "FROM"]
    assert f"{re.sub(r'[{]', '${', place)} AS base-hpu" in sources


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (("1.21.0", "2.6.0", "3.12", "2.6.0+hpu.git603340c"), None),
        (("1.22.1", "2.7.1", "3.11", "2.7.1a0+git"), None),
        (("1.24.1", "2.11.0", "3.12", "2.11.0"), None),
        (("1.24.0", "2.11.0", "3.12", "2.11.0"), "1.24.0 has torch 2.10.0, not 2.11.0"),
        (("1.24.0", "2.10.0", "3.12", "2.9.0"), "the base image has torch 2.9.0, not 2.10.0"),
        (("1.21.0", "2.6.0", "3.10", "2.6.0"), "needs Python 3.11, and this image has 3.10"),
        (("1.24.0", "2.10.0", "3.13", "2.10.0"), "no image with Python 3.13"),
        (("1.20.1", "2.6.0", "3.10", "2.6.0"), "needs Python 3.11"),
        (("1.23.0", "2.9.0", "3.12", "2.9.0"), None),
        (("1.24.2", "2.11.0", "3.12", "2.11.0a0+gitc1e5ed4"), None),
        (("1.24.2", "2.11.0", "3.12", "2.10.0"), "the base image has torch 2.10.0"),
        (("1.23.9", "2.9.0", "3.12", "2.9.0"), None),
        (("1.25.0", "2.12.0", "3.12", "2.12.0"), "1.25.0 is not known; known are 1.16, 1.17"),
        (("1.2", "2.6.0", "3.12", "2.6.0"), "1.2 is not known"),
    ],
)
def test_what_does_not_belong_together_is_refused(parts: tuple[str, ...], reason: str | None) -> None:
    refusal = script("pairing").refusal(*parts)

    assert refusal is None if reason is None else reason in refusal


def test_the_check_of_an_image() -> None:
    """This is none of Gaudi's."""
    command = [sys.executable, ROOT / "docker" / "pairing.py", "--gaudi", "1.24.0", "--torch", "2.10.0"]
    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 1
    assert re.match(r"the base image has torch \S+, not 2\.10\.0\n$", done.stderr)


def test_torch_stays_what_it_is() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    lines = script("requirements").requirements(project, "hpu", "2.10.0a0+git1")

    assert "torch==2.10.0a0+git1" in lines
    assert "optimum-habana" in lines
    assert any(line.startswith("opentelemetry-exporter-otlp-proto-grpc") for line in lines)
    assert [line for line in lines if line.startswith("torch")] == ["torch==2.10.0a0+git1"]
    assert "optimum-habana" not in script("requirements").requirements(project, "cpu", "2.13.0")


def test_what_is_copied_is_there_and_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    allowed = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {
        source
        for item in DOCKERFILE
        if item["instruction"] == "COPY"
        for source in item["value"].split()[:-1]
    }

    assert all((ROOT / source).exists() for source in copied)
    assert {source.partition("/")[0] for source in copied} == allowed


def test_the_page_has_every_argument() -> None:
    page = (ROOT / "docs" / "image.md").read_text("utf-8")
    table = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)
    }

    assert {item["value"].partition("=")[0] for item in DOCKERFILE if item["instruction"] == "ARG"} <= table
    for name in ("PYTHON", "TORCH", "GAUDI", "GAUDI_TORCH", "GAUDI_UBUNTU", "GAUDI_REGISTRY"):
        assert f"`{argument(name)}`" in page


def test_it_runs_as_a_user_that_may_do_little() -> None:
    words = [(item["instruction"], item["value"]) for item in DOCKERFILE]
    user = words.index(("USER", "1000:1000"))

    assert not [word for word, _ in words[user:] if word in ("RUN", "COPY", "USER")][1:]


@pytest.fixture
def port() -> Iterator[tuple[int, list[int]]]:
    """Of a server whose /health answers with the first status of the list."""
    statuses: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(statuses[0] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, statuses
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_check_of_a_containers_health(port: tuple[int, list[int]]) -> None:
    number, statuses = port

    def check(place: int) -> int:
        environment = {**os.environ, "PORT": str(place)}
        command = [sys.executable, ROOT / "docker" / "health.py"]
        return subprocess.run(command, env=environment, capture_output=True).returncode

    for status, code in ((200, 0), (503, 1)):
        statuses[:] = [status]
        assert check(number) == code
    assert check(1) == 1


def test_sagemakers_variables_become_the_launchers(tmp_path: Path) -> None:
    launcher = tmp_path / "text-generation-launcher"
    names = ["MODEL_ID", "REVISION", "NUM_SHARD", "QUANTIZE", "TRUST_REMOTE_CODE"]
    launcher.write_text(f'#!/bin/sh\necho "$@" {" ".join(f"{name}=${name}" for name in names)}\n')
    launcher.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    given = {"HF_MODEL_ID": "org/name", "HF_MODEL_REVISION": "main", "SM_NUM_GPUS": "2"}

    refused = subprocess.run([ENTRYPOINT, "serve"], env=path, capture_output=True, text=True)
    assert (refused.returncode, refused.stderr) == (1, "HF_MODEL_ID must be set\n")
    started = subprocess.run([ENTRYPOINT, "serve"], env=path | given, capture_output=True, text=True)
    assert started.stdout == (
        "--port 8080 --json-output MODEL_ID=org/name REVISION=main NUM_SHARD=2 QUANTIZE= TRUST_REMOTE_CODE=\n"
    )


def test_make_image() -> None:
    assert make("image") == "docker build --build-arg DEVICE=hpu --tag tgi-gaudi .\n"
    built = make("image", "DEVICE=cpu", "BUILD_ARGS=--target sagemaker")
    assert built == "docker build --build-arg DEVICE=cpu --tag tgi-cpu --target sagemaker .\n"


def test_make_run_local_dev_container() -> None:
    command = make("run-local-dev-container")

    assert command.startswith(
        "docker run --rm --interactive --tty --runtime=habana --ipc=host --cap-add=sys_nice"
    )
    assert f"--volume {ROOT}:/tgi --workdir /tgi " in command
    assert command.endswith("pytorch-installer-2.11.0:latest bash\n")


@pytest.mark.parametrize(
    ("target", "variables", "flags"),
    [
        ("run-integration-tests", {}, ""),
        ("run-integration-tests", {"DOCKER_IMAGE": "tgi-gaudi"}, "--gaudi"),
        ("run-integration-tests-with-all-models", {}, "--gaudi --gaudi-all-models"),
        ("capture-expected-outputs-for-integration-tests", {}, "--capture-expected-outputs"),
    ],
)
def test_make_runs_the_models(target: str, variables: dict[str, str], flags: str) -> None:
    last = make(target, **variables).splitlines()[-1]

    command = ".venv/bin/python -m pytest --durations=0 -s -vv"
    command += " -o faulthandler_timeout=900 integration-tests/models"
    assert last.strip() == f"{command} {flags}".strip()


def manifest() -> Any:
    (deployment,) = [
        part
        for part in yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text("utf-8"))
        if part["kind"] == "Deployment"
    ]
    return deployment["spec"]["template"]["spec"]


def test_the_manifest_says_what_the_server_knows() -> None:
    """Every variable is of an option, and has a value that it takes."""
    (container,) = manifest()["containers"]
    known: dict[str, Argument] = {
        str(name): argument
        for argument in launcher_app.assemble_argument_collection()
        for name in argument.parameter.env_var or ()
    }
    flags = []
    for variable in container["env"]:
        if variable["name"] != "HF_TOKEN":
            flags += [known[variable["name"]].name, variable["value"]]
    _, bound, _ = launcher_app.parse_args([*flags, *container["args"]], exit_on_error=False)
    options = bound.arguments["options"]
    assert options.port == container["ports"][0]["containerPort"]
    grace = manifest()["terminationGracePeriodSeconds"]
    assert grace > options.drain_delay + options.graceful_termination_timeout


def test_the_manifests_probes_survive_a_long_warm_up() -> None:
    (container,) = manifest()["containers"]
    startup = container["startupProbe"]

    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600
    paths = {"startupProbe": "/health/startup", "readinessProbe": "/health", "livenessProbe": "/health/live"}
    for kind, path in paths.items():
        assert container[kind]["httpGet"] == {"path": path, "port": "http"}
    assert "initialDelaySeconds" not in container["livenessProbe"]
