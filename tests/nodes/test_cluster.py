"""Ranks on a Ray cluster of several nodes on this machine, through the whole server."""

import functools
import importlib.util
import itertools
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import trio

from tests.nodes.cluster import Cluster, open_cluster
from tests.test_ranks import SMALL, ask_all, never, read, serving
from tgi.config import Options
from tgi.nodes.server import RayRanks
from tgi.testing.models import make_llama

if importlib.util.find_spec("ray") is None:
    pytest.skip("needs ray", allow_module_level=True)
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("logging_as_before")]
STREAMS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model"), num_key_value_heads=4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes of 2 CPUs each."""
    with open_cluster(2, 2, 2) as cluster:
        yield cluster


def options(folder: Path, cluster: Cluster, ranks: int, **others: Any) -> Options:
    chosen = {"model_id": str(folder), "dtype": "float32", "num_shard": ranks, "threads": 1, **SMALL}
    return Options(**chosen, executor="ray", ray_address=cluster.address, **others)


def rank_processes() -> list[psutil.Process]:
    """Return the processes of ranks of this test's servers on all nodes, in order."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if words[1:3] == ["-m", "tgi.worker"] and words[-1].startswith("tcp:"):
            found.append((int(words[3]), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


def nodes_of(ranks: list[psutil.Process]) -> list[int]:
    """Return the process id of the node of each rank."""
    return [int(rank.environ()["RAY_RAYLET_PID"]) for rank in ranks]


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[int]]:
    """Tokens of one process."""
    answers: dict[str, list[int]] = {}
    client = functools.partial(ask_all, answers=answers, new_tokens=24)
    chosen = Options(model_id=str(folder), dtype="float32", threads=1, **SMALL)
    assert serving(chosen, client) == 0
    return answers


@pytest.mark.parametrize(("shards", "stages", "nodes"), [(2, 1, 1), (4, 1, 2), (2, 2, 2)])
def test_ranks_on_nodes_give_the_tokens_of_one_process(
    folder: Path, cluster: Cluster, expected: dict[str, list[int]], shards: int, stages: int, nodes: int
) -> None:
    answers: dict[str, list[int]] = {}
    seen: list[psutil.Process] = []
    places: list[int] = []

    async def client(address: str) -> None:
        seen.extend(rank_processes())
        places.extend(nodes_of(seen))
        await ask_all(address, answers, 24)

    assert serving(options(folder, cluster, shards, pipeline_parallel_size=stages), client) == 0
    assert answers == expected
    assert len(seen) == shards * stages
    assert len(set(places)) == nodes
    assert places == sorted(places, key=places.index)  # the ranks of a node are neighbours
    assert not any(process.is_running() for process in seen)
    cluster.wait_until_free(6)


def stream_all(address: str, on_token: Callable[[int], None]) -> list[str]:
    """Stream prompts at once, half of them drawn; call `on_token` with the number of tokens so far."""
    seen = itertools.count(1)

    def stream(index: int) -> str:
        parameters = {"max_new_tokens": 40, "do_sample": bool(index % 2), "seed": index}
        body = json.dumps({"inputs": f"The {index}th question is", "parameters": parameters}).encode()
        request = urllib.request.Request(
            f"{address}/generate_stream", body, {"Content-Type": "application/json"}
        )
        events = []
        with urllib.request.urlopen(request) as response:
            for line in response:
                if line.startswith(b"data:"):
                    events.append(json.loads(line[5:]))
                    on_token(next(seen))
        assert [event["index"] for event in events] == list(range(1, len(events) + 1))
        return str(events[-1]["generated_text"])

    with ThreadPoolExecutor(STREAMS) as pool:
        return list(pool.map(stream, range(STREAMS)))


def test_streams_go_on_with_the_same_text_when_a_node_is_lost(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts: list[list[str]] = []
    places: list[list[int]] = []

    async def client(address: str) -> None:
        first = rank_processes()
        places.append(nodes_of(first))

        def disturb(tokens: int) -> None:
            if tokens == 200:
                cluster.kill_node_of(first[1].pid)

        for act in (lambda _: None, disturb):
            texts.append(await trio.to_thread.run_sync(stream_all, address, act))
        places.append(nodes_of(rank_processes()))
        metrics = await trio.to_thread.run_sync(read, f"{address}/metrics")
        assert "tgi_engine_restarts 1" in metrics.splitlines()

    with open_cluster(1, 1, 1) as cluster:
        assert serving(options(folder, cluster, 2), client) == 0
    (line,) = (line for line in capfd.readouterr().out.splitlines() if "starting the ranks again" in line)
    assert re.search(
        r"rank 1 \(process \d+ on node \S+\) was lost: its node (has died|cannot be reached); ", line
    )
    calm, disturbed = texts
    assert len(calm) == STREAMS
    assert disturbed == calm
    before, after = places
    assert before[1] not in after
    assert len(set(after)) == 2


def test_too_few_resources(folder: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert serving(options(folder, cluster, 8), never) == 1
    line = capsys.readouterr().err
    assert line.startswith("tgi: 8 ranks ask for 8 CPU, and the Ray cluster has 6 CPU free of 6 (")
    assert line.count("has 2 CPU") == 3


def test_a_server_can_wait_for_a_node(folder: Path) -> None:
    ready: list[str] = []

    async def client(address: str) -> None:
        ready.append(address)

    with open_cluster(1) as cluster, ThreadPoolExecutor(1) as pool:
        adding = pool.submit(cluster.add, 1)
        assert serving(options(folder, cluster, 2, ray_wait=120), client) == 0
        adding.result()
    assert ready


def test_a_model_that_a_node_lacks(
    tmp_path: Path, folder: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """The nodes look for a folder of another name, as if it were not shared."""
    task, absent = RayRanks._task, str(tmp_path / "absent")
    monkeypatch.setattr(
        RayRanks, "_task", lambda *given: msgspec.structs.replace(task(*given), model_id=absent)
    )
    assert serving(options(folder, cluster, 2), never) == 1
    line = capsys.readouterr().err.strip()
    assert " on node " in line
    assert line.endswith(f"finds no model there: there is no folder {absent}")


def test_no_cluster(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    chosen = Options(model_id=str(folder), executor="ray", ray_address="127.0.0.1:1", **SMALL)
    assert serving(chosen, never) == 1
    assert capsys.readouterr().err.startswith("tgi: no Ray cluster answers at 127.0.0.1:1 (")
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["placing", "serving"])
def test_nothing_is_left_in_the_cluster_by_a_server_that_is_ended(
    folder: Path, cluster: Cluster, number: signal.Signals, moment: str
) -> None:
    command = [sys.executable, "-m", "tgi", "serve", "--model-id", str(folder), "--num-shard", "4", "-p", "0"]
    command += ["--executor", "ray", "--ray-address", cluster.address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        while cluster.ask("free") == 6:
            assert server.poll() is None
            time.sleep(0.02)
        while moment == "serving" and len(rank_processes()) < 4:
            assert server.poll() is None
            time.sleep(0.05)
        server.send_signal(number)
    cluster.wait_until_free(6)
    deadline = time.monotonic() + 10
    while rank_processes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_another_version_on_a_node(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text("import tgi\ntgi.__version__ = '0.0.9'\n")
    with open_cluster(1) as cluster:
        cluster.add(1, PYTHONPATH=str(tmp_path))
        assert serving(options(folder, cluster, 2), never) == 1
    line = capsys.readouterr().err
    assert " has tgi 0.0.9, torch " in line
    assert ", and the server tgi 0.1.0, torch " in line
