"""Disturb a server again and again, and check after each time that nothing was lost: `make chaos`.

    python integration-tests/chaos/chaos.py --rounds 50 --seed 1 -- --num-shard 2

What follows `--` are flags of `tgi serve`. Each round streams 16 texts (greedy, seeded, held to a grammar),
does one thing to the server in the midst of them, and compares every text with that of an undisturbed run.
Between rounds every KV block must be free or cached, the queue empty, and memory and descriptors flat.
"""

import argparse
import contextlib
import itertools
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

STREAMS = 16
TOKENS = 60
GRAMMAR = {"type": "regex", "value": "[a-z]{1,9}( [a-z]{1,9}){8,40}"}
QUIET_SECONDS = 60.0
"""Maximum time until a server is ready again."""


class Server:
    """A running `tgi serve`."""

    def __init__(self, flags: list[str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "tgi", "serve", "--hostname", "127.0.0.1", "--port", str(self.port)]
        command += ["--max-restarts", "100000", "--step-timeout", "5", *flags]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def ranks(self) -> list[psutil.Process]:
        """Return the rank processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if "tgi.worker" in _command(child)]
        return []

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def wait_ready(self) -> None:
        """Wait until the server is healthy."""
        end = time.monotonic() + 5 * QUIET_SECONDS
        while self.get("/health")[0] != 200:
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server is not ready again"
            time.sleep(0.05)

    def post(self, path: str, body: Any, timeout: float = 300) -> Any:
        """Open an answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=timeout)


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def stream(server: Server, number: int, times: list[float]) -> list[int]:
    """Return the token ids of one text; note when each came."""
    parameters: dict[str, Any] = {"max_new_tokens": TOKENS, "repetition_penalty": 1.1}
    if number % 3 == 1:
        parameters |= {"do_sample": True, "seed": number, "temperature": 1.5}
    if number % 3 == 2:
        parameters["grammar"] = GRAMMAR
    ids = []
    with server.post("/generate_stream", {"inputs": f"A {number} is", "parameters": parameters}) as answer:
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            event = json.loads(line[5:])
            assert "error" not in event, f"stream {number}: {event}"
            ids.append(event["token"]["id"])
            times.append(time.monotonic())
    return ids


def run_all(server: Server, disturb: Callable[[], None] | None = None, after: float = 0) -> tuple[Any, float]:
    """Stream all texts, and disturb them; return texts, and the longest silence after the disturbance."""
    times: list[list[float]] = [[] for _ in range(STREAMS)]
    disturbed = [0.0]

    def later() -> None:
        time.sleep(after)
        disturbed[0] = time.monotonic()
        assert disturb is not None
        disturb()

    thread = threading.Thread(target=later) if disturb else None
    with ThreadPoolExecutor(STREAMS) as pool:
        answers = [pool.submit(stream, server, number, times[number]) for number in range(STREAMS)]
        if thread:
            thread.start()
        texts = [answer.result() for answer in answers]
    if thread:
        thread.join()
    after_it = sorted(at for one in times for at in one if at > disturbed[0])
    silences = [then - now for now, then in itertools.pairwise([disturbed[0], *after_it])]
    return texts, max(silences, default=0.0)


# What may happen


def kill(server: Server, draw: random.Random) -> None:
    """Kill a rank."""
    for rank in draw.sample(server.ranks(), 1) if server.ranks() else []:
        rank.kill()


def stop(server: Server, draw: random.Random) -> None:
    """Stop a rank, so that a step hangs."""
    for rank in draw.sample(server.ranks(), 1) if server.ranks() else []:
        rank.send_signal(signal.SIGSTOP)


def vanish(server: Server, draw: random.Random) -> None:
    """Open streams and leave them."""
    for _ in range(8):
        with contextlib.suppress(OSError), server.post("/generate_stream", {"inputs": "Bye"}) as answer:
            answer.read(draw.randrange(1, 200))


def bad_bodies(server: Server, draw: random.Random) -> None:
    """Send what cannot be served."""
    bodies: list[Any] = [
        {}, {"inputs": 5}, {"inputs": "a" * 200_000}, {"inputs": "a", "parameters": {"temperature": -1}},
        {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": "(" * 50}}},
        {"inputs": "a", "parameters": {"max_new_tokens": 10**9}},
    ]  # fmt: skip
    for body in draw.sample(bodies, 3):
        status = 200
        try:
            server.post("/generate", body, timeout=60).read()
        except urllib.error.HTTPError as refusal:
            status = refusal.code
        assert status in (400, 413, 422, 503), f"{body}: {status}"


def grammar_bomb(server: Server, draw: random.Random) -> None:
    """Ask for a grammar that is too large to compile."""
    value = f"(a{{0,{draw.randrange(500, 2000)}}}){{0,1000}}b"
    body = {"inputs": "a", "parameters": {"grammar": {"type": "regex", "value": value}, "max_new_tokens": 3}}
    with contextlib.suppress(urllib.error.HTTPError):
        server.post("/generate", body, timeout=120).read()


DISTURBANCES = {"kill": kill, "stop": stop, "vanish": vanish, "bad": bad_bodies, "bomb": grammar_bomb}


def check_quiet(server: Server) -> None:
    """Assert that nothing is held once all streams have ended."""
    end = time.monotonic() + QUIET_SECONDS
    while True:
        status, text = server.get("/metrics")
        lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
        held = [lines.get('tgi_kv_blocks{state="used"}'), lines.get("tgi_queue_size")]
        if status == 200 and held == ["0", "0"]:
            return
        assert time.monotonic() < end, f"blocks in use and queue: {held}"
        time.sleep(0.1)


def footprint(server: Server) -> tuple[int, int]:
    """Return resident bytes and open descriptors of the server process."""
    process = psutil.Process(server.process.pid)
    return process.memory_info().rss, process.num_fds()


def main() -> int:
    """Run the rounds; return 1 if one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=DISTURBANCES, default=list(DISTURBANCES))
    parser.add_argument("flags", nargs="*", help="flags of tgi serve, after --")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    print(f"seed {given.seed}", flush=True)
    server = Server(given.flags)
    waits: dict[str, list[float]] = {name: [] for name in given.only}
    end = time.monotonic() + 60 * given.minutes
    try:
        server.wait_ready()
        calm, _ = run_all(server)
        began = time.monotonic()
        again, _ = run_all(server)
        seconds = time.monotonic() - began
        assert again == calm, "an undisturbed run gives other texts"
        check_quiet(server)
        memory, files = footprint(server)
        for number in range(given.rounds):
            if time.monotonic() > end:
                break
            name = draw.choice(given.only)
            after = draw.uniform(0.0, seconds)
            texts, wait = run_all(server, lambda name=name: DISTURBANCES[name](server, draw), after)  # type: ignore[misc]
            assert texts == calm, f"round {number}, {name} after {after:.2f} s: texts differ"
            check_quiet(server)
            server.wait_ready()
            waits[name].append(wait)
        now, open_files = footprint(server)
        assert open_files <= files + 8, f"descriptors: {files}, then {open_files}"
        mib = [size / 2**20 for size in (memory, now)]
        print(f"memory {mib[0]:.0f} -> {mib[1]:.0f} MiB, files {files} -> {open_files}")
        for name, each in waits.items():
            if each:
                p50, p99 = statistics.median(each), sorted(each)[max(0, round(0.99 * len(each)) - 1)]
                print(f"{name}: {len(each)} rounds; longest silence {p50:.2f} s (p50), {p99:.2f} s (p99)")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    except AssertionError as error:
        server.log.seek(0)
        print(str(server.log.read()[-5000:], "utf-8", "replace"))
        print(f"FAILED: {error}")
        return 1
    finally:
        server.process.kill()
    print("nothing was lost")
    return 0


if __name__ == "__main__":
    sys.exit(main())
