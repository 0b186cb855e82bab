"""The nursery in this process: an engine that cannot start, a port that answers meanwhile."""

import functools
import importlib.metadata
import io
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from hypercorn.config import Config, Sockets

from tgi.config import DEMO_MODEL, Options
from tgi.server import run, serve

pytestmark = pytest.mark.usefixtures("logging_as_before")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found


def serve_on(listener: socket.socket, options: Options) -> int:
    sockets = Sockets([], [listener], [])
    return trio.run(functools.partial(serve, options, Config(), sockets, (signal.SIGUSR2,)))


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tgi: ")
    return line


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "no folder"),
        ("", "has no config.json"),
        ("{", "config.json cannot be read"),
        ("[]", "is no JSON object"),
        ('{"architectures": ["NoSuchModel"]}', "NoSuchModel is not supported: no adapter offers it"),
        ('{"architectures": ["LlamaForCausalLM"]}', "config.json has no 'num_attention_heads'"),
        ("no weights", "has no weights"),
    ],
)
def test_a_folder_that_is_no_model(
    listener: socket.socket,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    config: str | None,
    said: str,
) -> None:
    """`integration-tests/test_life.py` has what is found only when ranks run."""
    folder = tmp_path / "model"
    if config is not None:
        folder.mkdir()
        for file in DEMO_MODEL.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / ("model.safetensors" if config == "no weights" else "config.json")).unlink()
    if config not in (None, "", "no weights"):
        (folder / "config.json").write_text(str(config))
    assert serve_on(listener, Options(model_id=str(folder))) == 1
    out, err = capsys.readouterr()
    assert [line.startswith("tgi: ") and said in line for line in err.splitlines()] == [True]
    assert "Traceback" not in out


@pytest.mark.contract("--env")
def test_env_logs_the_versions_first_and_goes_on(
    listener: socket.socket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve_on(listener, Options(model_id=str(tmp_path), env=True)) == 1
    out, err = capsys.readouterr()
    assert f", torch {importlib.metadata.version('torch')}, " in out.splitlines()[0]
    assert "no config.json" in err


def test_the_reason_is_the_last_line(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.1)
            return written.write(text)

    monkeypatch.setattr(sys, "stdout", Slow())
    monkeypatch.setattr(sys, "stderr", written)

    assert serve_on(listener, Options(sharded="true", num_shard=1, env=True)) == 1

    *lines, last = written.getvalue().splitlines()
    assert any("torch" in line for line in lines)
    assert last.startswith("tgi: ")


def test_options_that_contradict_each_other(
    listener: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    assert serve_on(listener, Options(sharded="true", num_shard=1)) == 1
    assert "`sharded` is true but `num_shard` <= 1" in one_line(capsys)


@pytest.mark.parametrize("endpoint", ["http://[collector", "http://collector:port"])
def test_an_endpoint_that_is_no_url(
    listener: socket.socket, capsys: pytest.CaptureFixture[str], endpoint: str
) -> None:
    assert serve_on(listener, Options(otlp_endpoint=endpoint)) == 1
    assert f"--otlp-endpoint {endpoint}: " in one_line(capsys)


def test_a_taken_port(listener: socket.socket, capsys: pytest.CaptureFixture[str]) -> None:
    port = listener.getsockname()[1]
    assert run(Options(hostname="127.0.0.1", port=port)) == 1
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in one_line(capsys)


def test_a_signal_while_the_engine_starts(listener: socket.socket, tmp_path: Path) -> None:
    """The port answers 503 first; the model is one that takes for ever: a Hub that says nothing."""
    answers = []

    def ask() -> bytes:
        with socket.create_connection(listener.getsockname(), timeout=20) as client:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return client.makefile("rb").read()

    async def main() -> int:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def client() -> None:
                answers.append(await trio.to_thread.run_sync(ask))
                signal.raise_signal(signal.SIGUSR2)

            options = Options(model_id="org/never", huggingface_hub_cache=tmp_path)
            return await serve(options, Config(), Sockets([], [listener], []), (signal.SIGUSR2,))
        raise AssertionError

    with socket.create_server(("127.0.0.1", 0)) as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.getsockname()[1]}")
        assert trio.run(main) == 0
    assert answers[0].startswith(b"HTTP/1.1 503")
    assert b'"stage"' in answers[0]
