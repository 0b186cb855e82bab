"""The service fixture with DOCKER_IMAGE, where another program takes docker's place."""

import sys
from pathlib import Path

import pytest

from .service import open_service
from .table import INPUT, MADE_HERE

DOCKER = """#!{python}
import os, sys
from pathlib import Path

arguments = sys.argv[1:]
Path({log!r}).write_text("\\n".join(arguments))
image = arguments.index("tgi-cpu")
port, inner = arguments[arguments.index("-p") + 1].split(":")
command = [{tgi!r}, "serve", "--hostname", "127.0.0.1", "--port", port, *arguments[image + 1 :]]
os.execv(command[0], command)
"""


def test_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tgi = str(Path(sys.executable).parent / "tgi")
    log = tmp_path / "docker.log"
    (tmp_path / "docker").write_text(DOCKER.format(python=sys.executable, log=str(log), tgi=tgi))
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name, value in (("DOCKER_IMAGE", "tgi-cpu"), ("DOCKER_VOLUME", "/models"), ("DEVICE", "cpu")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN", "a-secret")

    with open_service(MADE_HERE[0], tmp_path) as service:
        assert service.client.text_generation(INPUT, max_new_tokens=2)

    arguments = log.read_text().split("\n")
    assert arguments[:5] == ["run", "--rm", "--name", "tgi-gaudi-test-llama", "--ipc=host"]
    assert arguments[arguments.index("-p") + 1].endswith(":80")
    assert "/models:/data" in arguments
    assert "--runtime=habana" not in arguments
    assert arguments[arguments.index("-e") + 1] == "HF_TOKEN"
    assert "a-secret" not in log.read_text()
    assert arguments[arguments.index("tgi-cpu") + 1 :][0] == "--model-id"
