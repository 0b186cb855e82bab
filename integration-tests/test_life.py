"""How a server starts, and every way in which it ends: under `tgi serve` and under hypercorn alike."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

ENDLESS = 1500


def collect(server: Any, **parameters: Any) -> tuple[threading.Thread, list[Any]]:
    """Read a stream in a thread, up to its end or the loss of the connection."""
    events: list[Any] = []

    def read() -> None:
        try:
            for event in server.stream("What is a violin?", details=True, **parameters):
                events.append(event)
        except (OSError, ValueError) as error:
            events.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    server.wait_for(lambda: len(events) >= 2)
    return thread, events


def failure(kind: str) -> int:
    """The exit code of a failure: a worker of hypercorn ends its master with a signal (see tgi.app)."""
    return 1 if kind == "tgi serve" else -signal.SIGUSR1


def compiles() -> bool:
    """Whether a start takes as long as the warm-up of a device that compiles."""
    return os.environ.get("TGI_TEST_DEVICE", "cpu") != "cpu"


def lines_of_failure(server: Any) -> list[str]:
    return [line for line in server.output().splitlines() if line.startswith("tgi:")]


@pytest.mark.contract("R1.40")
def test_the_port_opens_at_once_tells_of_the_progress_and_is_ready_in_ten_seconds(
    kind: str, start: Any
) -> None:
    """The seconds are a processor's: other programs may run on the machine."""
    server = start(kind)
    server.wait_for(lambda: server.health() == 503, 20)
    status, body = server.get("/health")
    if status == 503:
        assert json.loads(body)["stage"]
    assert server.post("/generate", {"inputs": "x"})[0] in (503, 200)
    server.wait_ready()
    if not compiles():
        process = psutil.Process(server.process.pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        assert sum(one.user + one.system for one in times) < 10
    server.end()


def test_sigterm_lets_requests_finish(kind: str, start: Any) -> None:
    server = start(kind, {"SLOW_SECONDS": "0.1"}, device="slow", drain_delay=1).wait_ready()
    thread, events = collect(server, max_new_tokens=30)
    server.signal(signal.SIGTERM)
    if kind == "tgi serve":  # hypercorn closes the listener through its master, which asks at intervals
        server.wait_for(lambda: server.health() == 503)
    server.wait_for(lambda: server.health() == 0)
    assert server.process.poll() is None
    thread.join(60)
    assert events[-1]["details"]["generated_tokens"] == 30
    assert server.wait_exit() == 0
    assert server.ranks() == []


@pytest.mark.contract("--graceful-termination-timeout")
def test_what_is_left_after_the_timeout_ends_with_an_error_event(kind: str, start: Any) -> None:
    server = start(kind, {"SLOW_SECONDS": "0.1"}, device="slow", graceful_termination_timeout=1).wait_ready()
    thread, events = collect(server, max_new_tokens=ENDLESS)
    server.signal(signal.SIGTERM)
    thread.join(60)
    assert set(events[-1]) == {"error", "error_type"}
    assert server.wait_exit() == 0


def test_a_second_signal_ends_it_at_once(start: Any) -> None:
    server = start("tgi serve", {"SLOW_SECONDS": "0.1"}, device="slow").wait_ready()
    thread, events = collect(server, max_new_tokens=ENDLESS)
    server.signal(signal.SIGINT)
    server.wait_for(lambda: server.health() == 0)
    server.signal(signal.SIGINT)
    assert server.wait_exit(10) == 0
    thread.join(10)
    assert set(events[-1]) == {"error", "error_type"}


def test_signals_in_quick_succession_end_it_with_code_0(start: Any) -> None:
    server = start("tgi serve").wait_ready()
    while server.process.poll() is None:
        server.signal(signal.SIGTERM)
        time.sleep(0.001)  # a flood of them overflows Python's stack, as it does in any program
    assert server.wait_exit(10) == 0


def test_a_half_sent_body_does_not_delay_the_end(kind: str, start: Any) -> None:
    server = start(kind).wait_ready()
    head = (
        "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(head.encode())
        time.sleep(0.2)  # the server has begun to read the body
        server.signal(signal.SIGTERM)
        assert server.wait_exit(20) == 0


def test_ctrl_c_in_a_terminal_reaches_every_process(kind: str, start: Any) -> None:
    server = start(kind, {"SLOW_SECONDS": "0.1"}, device="slow").wait_ready()
    thread, events = collect(server, max_new_tokens=20)
    os.killpg(server.process.pid, signal.SIGINT)
    thread.join(60)
    assert events[-1]["details"]["generated_tokens"] == 20
    assert server.wait_exit() == 0
    assert "Traceback" not in server.output()


def test_a_signal_while_it_starts(start: Any) -> None:
    server = start("tgi serve")
    server.wait_for(lambda: server.health() == 503, 20)
    server.signal(signal.SIGTERM)
    assert server.wait_exit(15) == 0
    assert server.ranks() == []


def test_a_killed_rank_beyond_the_restarts_ends_the_server_with_one_line(kind: str, start: Any) -> None:
    server = start(kind, {"SLOW_SECONDS": "0.1"}, device="slow", max_restarts=0).wait_ready()
    thread, events = collect(server, max_new_tokens=ENDLESS)
    (rank,) = server.ranks()
    os.kill(rank, signal.SIGKILL)
    assert server.wait_exit(15) == failure(kind)
    assert lines_of_failure(server) == [
        f"tgi: rank 0 (process {rank}) was killed by SIGKILL (out of memory?)"
    ]
    assert "Traceback" not in server.output()
    thread.join(10)
    assert set(events[-1]) == {"error", "error_type"}
    assert server.health() == 0


def test_a_killed_server_leaves_nothing_behind(kind: str, start: Any, tmp_path: Path) -> None:
    """No process, no file for temporary ones, no shared memory, also none where two ranks have met."""
    before = set(Path("/dev/shm").iterdir())
    variables = {"SLOW_SECONDS": "0.5", "TMPDIR": str(tmp_path)}
    server = start(kind, variables, device="slow", num_shard=2, threads=2).wait_ready()
    processes = server.ranks()
    assert len(processes) == 2
    server.process.kill()
    server.wait_for(lambda: server.ranks() == [], 5)
    server.wait_for(lambda: server.health() == 0)
    assert list(tmp_path.iterdir()) == []
    new = [path.name for path in set(Path("/dev/shm").iterdir()) - before]
    assert not [name for name in new for process in processes if f"_{process}_" in f"{name}_"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("tokenizer_config.json", "the tokenizer cannot be read"), ("model.safetensors", "safetensors")],
)
def test_a_model_with_a_file_that_is_cut(
    name: str, said: str, checkpoint: Path, start: Any, tmp_path: Path
) -> None:
    """Found by the server and by a rank while ranks run; tests/test_server.py has what is found before."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    server = start("tgi serve", model_id=folder)
    assert server.wait_exit(20) == 1
    assert len(lines_of_failure(server)) == 1
    assert said in lines_of_failure(server)[0]
    assert "Traceback" not in server.output()


def test_an_unsupported_architecture_under_hypercorn(start: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    server = start("hypercorn", model_id=tmp_path)
    assert server.wait_exit(20) == failure("hypercorn")
    assert len(lines_of_failure(server)) == 1
    assert "NoSuchModel is not supported: no adapter offers it" in lines_of_failure(server)[0]
    assert "Traceback" not in server.output()


def test_too_little_memory(kind: str, start: Any) -> None:
    server = start(kind, max_total_tokens=2_000_000_000)
    assert server.wait_exit(30) == failure(kind)
    (line,) = lines_of_failure(server)
    assert "Not enough memory to handle `max_total_tokens=2000000000`" in line


def test_another_worker_class_than_trio(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "hypercorn", "-k", "asyncio", "-b", "127.0.0.1:0", "tgi.app"]
    done = subprocess.run(
        command, env={**os.environ, "MODEL_ID": str(checkpoint)}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == failure("hypercorn")
    assert done.stderr.strip().splitlines()[-1] == (
        "tgi: tgi.app runs under hypercorn's trio worker only: hypercorn -k trio tgi.app"
    )
    assert "Traceback" not in done.stderr


def test_a_wrong_variable_under_hypercorn(start: Any) -> None:
    server = start("hypercorn", max_batch_size="many")
    assert server.wait_exit(20) == failure("hypercorn")
    assert len(lines_of_failure(server)) == 1
