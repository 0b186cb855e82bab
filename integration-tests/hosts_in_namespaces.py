"""One model over hosts that are namespaces of this machine, on a Ray cluster as docs/multi-node.md starts it.

    sudo python integration-tests/hosts_in_namespaces.py [--keep]

Each host has a network, processes, a name, /tmp and /dev/shm of its own; they share other files. The script
compares 2 and 4 ranks with one process, kills a host amid 16 streams, then takes the link of another down, so
that it falls silent as a host without power does. It prints what it sees, and fails if a text differs.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from tgi.testing.models import make_llama

BIN = Path(sys.executable).parent
BRIDGE = "tgi-hosts"
NET = "10.77.0"
HOSTS = range(10, 15)
"""The first runs the server and Ray's head; the others have one CPU each, as Ray is told."""
HEAD = f"{NET}.{HOSTS[0]}"
STREAMS = 16


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True)


def name(host: int) -> str:
    return f"tgi-host-{host}"


class Network:
    """The hosts: a network namespace each, on a bridge."""

    def __enter__(self) -> "Network":
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        run("ip", "address", "add", f"{NET}.1/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for host in HOSTS:
            run("ip", "netns", "add", name(host))
            run(
                "ip", "link", "add", f"tgi{host}", "type", "veth", "peer", "name", "eth0", "netns", name(host)
            )
            run("ip", "link", "set", f"tgi{host}", "master", BRIDGE, "up")
            inside = ["ip", "-netns", name(host)]
            run(*inside, "address", "add", f"{NET}.{host}/24", "dev", "eth0")
            run(*inside, "link", "set", "eth0", "up")
            run(*inside, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in HOSTS:
            run("ip", "netns", "delete", name(host))
        run("ip", "link", "delete", BRIDGE)

    def unplug(self, host: int) -> None:
        run("ip", "link", "set", f"tgi{host}", "down")


class Process:
    """A command on a host. The first one makes the host, which ends with it; others are given that."""

    def __init__(self, host: int, command: str, log: Path, first: "Process | None" = None) -> None:
        if first is None:
            inside = ["ip", "netns", "exec", name(host), "unshare", "--mount", "--uts", "--pid", "--fork"]
            inside += ["--kill-child", "--mount-proc"]
            command = (
                f"mount -t tmpfs tmpfs /tmp; mount -t tmpfs tmpfs /dev/shm; hostname {name(host)}; {command}"
            )
        else:
            while not (inner := psutil.Process(first.process.pid).children()):
                assert first.process.poll() is None, "the host has ended"
                time.sleep(0.1)
            inside = ["nsenter", f"--target={inner[0].pid}", "--mount", "--uts", "--pid", "--net"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*inside, "bash", "-c", command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
            return int(response.status)
    except OSError as error:
        return getattr(error, "code", 0)


@contextlib.contextmanager
def serving(server: Process, url: str, log: Path) -> Iterator[str]:
    """Wait until the server on a host is ready; end it on leaving."""
    began = time.monotonic()
    try:
        while status(url) != 200:
            assert server.process.poll() is None, log.read_text()
            assert time.monotonic() < began + 180, log.read_text()
            time.sleep(0.2)
        print(f"  ready after {time.monotonic() - began:.1f} s")
        yield url
    finally:
        server.kill()


def stream_all(url: str, on_token: Callable[[int], None] = lambda _: None) -> list[str]:
    """Stream prompts at once, half of them drawn; call `on_token` with the number of tokens so far."""
    seen, latest, pauses = itertools.count(1), time.monotonic(), [0.0]

    def stream(index: int) -> str:
        nonlocal latest
        parameters = {"max_new_tokens": 60, "do_sample": bool(index % 2), "seed": index}
        body = json.dumps({"inputs": f"The {index}th question is", "parameters": parameters}).encode()
        request = urllib.request.Request(f"{url}/generate_stream", body, {"Content-Type": "application/json"})
        events: list[Any] = []
        with urllib.request.urlopen(request) as response:
            for line in response:
                if line.startswith(b"data:"):
                    events.append(json.loads(line[5:]))
                    now = time.monotonic()
                    pauses.append(now - latest)
                    latest = now
                    on_token(next(seen))
        return str(events[-1].get("generated_text", events[-1]))

    with ThreadPoolExecutor(STREAMS) as pool:
        texts = list(pool.map(stream, range(STREAMS)))
    print(f"  {len(texts)} texts; longest pause between two tokens {max(pauses):.1f} s")
    return texts


def host_of_last_rank(log: Path) -> int:
    """Return the host of the last rank, as the server's log says."""
    places = re.findall(rf"rank \d+ on {re.escape(NET)}\.(\d+)", log.read_text())
    return int(places[-1])


def compare(folder: Path, network: Network, running: list[Process]) -> None:
    """Start a cluster, and servers on it, one after the other."""
    model = make_llama(folder / "model", num_key_value_heads=4)
    serve = (
        f"exec tgi serve --model-id {model} --dtype float32 --max-total-tokens 128 --threads 1 --port 8080"
    )
    url = f"http://{HEAD}:8080"

    def start(host: int, command: str, what: str, first: Process | None = None) -> tuple[Process, Path]:
        log = folder / f"{what}.log"
        running.append(Process(host, command, log, first))
        return running[-1], log

    ray = "ray start --disable-usage-stats --block"
    on = f"{ray} --head --port=6379 --node-ip-address={HEAD} --num-cpus=0 --include-dashboard=false"
    head, _ = start(HOSTS[0], on, "head")
    print("one process")
    server, log = start(HOSTS[0], serve, "alone", head)
    with serving(server, url, log):
        expected = stream_all(url)
    workers = {}
    for host in HOSTS[1:]:
        join = f"{ray} --address={HEAD}:6379 --node-ip-address={NET}.{host} --num-cpus=1"
        workers[host], _ = start(host, join, f"host-{host}")
    for ranks, disturb in ((2, ""), (4, ""), (2, "kill"), (2, "unplug")):
        what = f"{ranks} ranks" + (f", {disturb} a host" if disturb else "")
        print(what)
        with_ray = f"{serve} --executor ray --ray-wait 60 --num-shard {ranks}"
        server, log = start(HOSTS[0], with_ray, what.replace(",", "").replace(" ", "-"), head)

        def act(tokens: int, disturb: str = disturb, log: Path = log) -> None:
            if tokens == 300 and disturb:
                lost = host_of_last_rank(log)
                if disturb == "kill":
                    workers[lost].kill()
                else:
                    network.unplug(lost)
                print(f"  {disturb} {name(lost)}")

        with serving(server, url, log):
            assert stream_all(url, act) == expected, log.read_text()
        for line in log.read_text().splitlines():
            if " on 10." in line or " on node " in line or "are back" in line:
                print("  log:", line[28:])
    print("all texts are the same")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    keep = parser.parse_args().keep
    folder = Path(tempfile.mkdtemp(prefix="tgi-hosts-", dir="/var/tmp"))
    running: list[Process] = []
    with Network() as network:
        try:
            compare(folder, network, running)
        finally:
            for process in reversed(running):
                process.kill()
    if keep:
        print("logs:", folder)
    else:
        run("rm", "-r", folder)


if __name__ == "__main__":
    main()
