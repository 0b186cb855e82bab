"""Disturb a server again and again, and check after each time that nothing was lost: `make chaos`.

    python integration-tests/chaos/chaos.py --rounds 50 --seed 1 -- --num-shard 2

What follows `--` are flags of `tgi serve`. Each round streams 16 texts (greedy, seeded, held to a grammar),
does one thing to the server in the midst of them, and compares every text with that of an undisturbed run.
Between rounds every KV block must be free or cached, the queue empty, and memory and descriptors flat.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import random
import re
import resource
import signal
import statistics
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
from served import Server, check_quiet

STREAMS = 16
TOKENS = 200
DRAIN_SECONDS = 600
GRAMMAR = {"type": "regex", "value": "[a-z]{1,9}( [a-z]{1,9}){8,40}"}


@dataclasses.dataclass
class Round:
    """What the streams gave, and how long a disturbance kept them waiting."""

    texts: list[list[int] | str]
    """Token ids of each text, or the error that ended it."""
    silence: float = 0.0
    """Seconds from the disturbance on in which no stream got a token, at the longest."""
    longest: float = 0.0
    """The same of the stream that waited longest."""


def stream(server: Server, number: int, seed: int, times: list[float]) -> list[int] | str:
    """Return the token ids of one text, or its error; note when each came."""
    parameters: dict[str, Any] = {"max_new_tokens": TOKENS, "repetition_penalty": 1.1}
    if number % 3 == 1:
        parameters |= {"do_sample": True, "seed": 100 * seed + number, "temperature": 1.5}
    if number % 3 == 2:
        parameters["grammar"] = GRAMMAR
    ids = []
    try:
        answer = server.post("/generate_stream", {"inputs": f"A {number} is", "parameters": parameters})
    except urllib.error.HTTPError as refusal:
        return f"refused with {refusal.code}"
    with answer:
        for line in answer:
            if line.startswith(b"data:"):
                event = json.loads(line[5:])
                if "error" in event:
                    return str(event["error"])
                ids.append(event["token"]["id"])
                times.append(time.monotonic())
    return ids


def run_all(server: Server, seed: int, disturb: Callable[[], None] = lambda: None, after: float = 0) -> Round:
    """Stream all texts, and disturb them after some seconds."""
    times: list[list[float]] = [[] for _ in range(STREAMS)]
    with ThreadPoolExecutor(STREAMS + 1) as pool:
        answers = [pool.submit(stream, server, number, seed, times[number]) for number in range(STREAMS)]
        time.sleep(after)
        began = time.monotonic()
        disturbance = pool.submit(disturb)
        texts = [answer.result() for answer in answers]
        disturbance.result()
    return Round(
        texts, silence([at for one in times for at in one], began), max(silence(one, began) for one in times)
    )


def silence(times: list[float], began: float) -> float:
    """Return the longest time between two of these from `began` on."""
    after = [began, *sorted(at for at in times if at > began)]
    return max((then - now for now, then in itertools.pairwise(after)), default=0.0)


# What may happen


def one_rank(server: Server, draw: random.Random) -> list[psutil.Process]:
    """Return one of the ranks, as soon as there are any; none if there are none for long."""
    for _ in range(200):
        if ranks := server.ranks():
            return [draw.choice(ranks)]
        time.sleep(0.1)
    return []


def kill(server: Server, draw: random.Random) -> None:
    """Kill a rank."""
    for rank in one_rank(server, draw):
        rank.kill()


def kill_twice(server: Server, draw: random.Random) -> None:
    """Kill a rank, and one of those that are to replace it: as they start, load, or warm up."""
    kill(server, draw)
    time.sleep(draw.uniform(0.0, 5.0))
    if server.get("/health")[0] == 503:
        kill(server, draw)


def stop(server: Server, draw: random.Random) -> None:
    """Stop a rank, so that a step hangs."""
    for rank in one_rank(server, draw):
        rank.send_signal(signal.SIGSTOP)


def pause_all(server: Server, draw: random.Random) -> None:
    """Stop the server and its ranks for longer than a step may take, as a sleeping machine does."""
    stopped = server.processes()
    for process in stopped:
        process.suspend()
    time.sleep(draw.uniform(0.1, 8.0))
    for process in stopped:
        process.resume()


def be_slow(server: Server, _: random.Random) -> None:
    """Open streams that are not read for some seconds."""
    body = {"inputs": "Slow", "parameters": {"max_new_tokens": TOKENS}}
    with contextlib.ExitStack() as stack:
        answers = [stack.enter_context(server.post("/generate_stream", body)) for _ in range(8)]
        time.sleep(3)
        for answer in answers:
            answer.read()


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


def starve(server: Server, draw: random.Random) -> None:
    """Leave a rank no more memory than it has."""
    for rank in one_rank(server, draw):
        limit_sizes([rank], resource.RLIMIT_AS, rank.memory_info().vms)


def fill_disk(server: Server, draw: random.Random) -> None:
    """Let no file grow for some seconds."""
    processes = server.processes()
    limit_sizes(processes, resource.RLIMIT_FSIZE, 0)
    time.sleep(draw.uniform(0.1, 5.0))
    limit_sizes(processes, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)


def limit_sizes(processes: list[psutil.Process], kind: int, limit: int) -> None:
    """Set the soft limit of a resource for these processes, as far as they are still there."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.rlimit(kind, (limit, process.rlimit(kind)[1]))


def set_clock(server: Server, draw: random.Random) -> None:
    """Set the server's wall clock some times, by seconds or weeks, forward and back."""
    assert server.clock is not None, "there is no C compiler to make its clock"
    for _ in range(5):
        server.clock.jump(draw.choice([-1, 1]) * draw.choice([2, 3600, 1_000_000]))
        time.sleep(draw.uniform(0.1, 1.0))


DISTURBANCES = {
    "kill": kill, "kill-twice": kill_twice, "stop": stop, "pause": pause_all,
    "vanish": vanish, "slow": be_slow, "bad": bad_bodies, "bomb": grammar_bomb,
    "starve": starve, "disk": fill_disk, "clock": set_clock,
}  # fmt: skip


class Suite:
    """Rounds against one server, and what they gave."""

    def __init__(self, server: Server, seed: int, apart: float) -> None:
        self.server = server
        self.seed = seed
        self.apart = apart
        self.draw = random.Random(seed)
        self.faults: list[str] = []
        self.rounds: dict[str, list[Round]] = {}
        server.wait_ready()
        self.calm = run_all(server, seed).texts
        began = time.monotonic()
        again = run_all(server, seed).texts
        self.seconds = time.monotonic() - began
        """Duration of an undisturbed run."""
        assert again == self.calm, "an undisturbed run gives other texts"
        assert all(isinstance(text, list) for text in again), again
        check_quiet(server)
        self.footprint = self._footprint()

    def round(self, name: str) -> None:
        """Disturb the streams at a random time, and compare."""
        after = self.draw.uniform(0.0, self.seconds)
        ended = run_all(self.server, self.seed, lambda: DISTURBANCES[name](self.server, self.draw), after)
        self._compare(ended, f"{name} after {after:.2f} s")
        check_quiet(self.server)
        self.server.wait_ready()
        self.rounds.setdefault(name, []).append(ended)
        print(f"{name} after {after:.2f} s: {ended.silence:.2f} s without a token", flush=True)
        time.sleep(self.apart)

    def end(self) -> None:
        """Let SIGTERM come while the streams run: those that have begun end as they would have."""
        now = self._footprint()
        mib = [size / 2**20 for size in (self.footprint[0], now[0])]
        print(f"memory {mib[0]:.0f} -> {mib[1]:.0f} MiB, files {self.footprint[1]} -> {now[1]}")
        assert now[1] <= self.footprint[1] + 8, "descriptors leak"
        after = self.draw.uniform(0.2, self.seconds / 2)
        ended = run_all(
            self.server, self.seed, lambda: self.server.process.send_signal(signal.SIGTERM), after
        )
        begun = [text != "refused with 503" for text in ended.texts]
        self._compare(ended, f"SIGTERM after {after:.2f} s", begun)
        assert self.server.process.wait(DRAIN_SECONDS + 60) == 0

    def report(self) -> None:
        """Print how long clients had to wait."""
        for name, rounds in self.rounds.items():
            shown = ", ".join(
                f"{part} {spread([getattr(one, part) for one in rounds])}" for part in ("silence", "longest")
            )
            print(f"{name}: {len(rounds)} rounds; seconds (p50, p99): {shown}")
        found = re.findall(r"start and loading (\S+) s, warm-up (\S+) s", self.server.output())
        loading, warm_up = ([float(pair[index]) for pair in found] for index in (0, 1))
        if found:
            print(f"{len(found)} times new ranks; seconds (p50, p99): start and loading {spread(loading)}, "
                  f"warm-up {spread(warm_up)}")  # fmt: skip

    def _compare(self, ended: Round, what: str, begun: Sequence[bool] = (True,) * STREAMS) -> None:
        for number, (text, calm) in enumerate(zip(ended.texts, self.calm, strict=True)):
            if begun[number] and text != calm:
                self.faults.append(f"{what}: stream {number} gave {text}, not {calm}")
                print(self.faults[-1], flush=True)

    def _footprint(self) -> tuple[int, int]:
        """Return resident bytes and open descriptors of the server process."""
        process = psutil.Process(self.server.process.pid)
        return process.memory_info().rss, process.num_fds()


def spread(values: list[float]) -> str:
    """Return the median and the 99th percentile."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f}, {ordered[math.ceil(0.99 * len(ordered)) - 1]:.2f}"


def main() -> int:
    """Run the rounds; return 1 if one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=DISTURBANCES, default=list(DISTURBANCES))
    parser.add_argument(
        "--apart", type=float, default=0.0,
        help="seconds between rounds; ranks that are lost 5 s after they were ready are replaced at once",
    )  # fmt: skip
    parser.add_argument("--step-timeout", type=float, default=5.0, help="the server's")
    parser.add_argument("flags", nargs="*", help="flags of tgi serve, after --")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    bounds = {"max-restarts": 100_000, "step-timeout": given.step_timeout}
    bounds["graceful-termination-timeout"] = DRAIN_SECONDS  # a slow machine is no fault
    server = Server([*(f"--{name}={value}" for name, value in bounds.items()), *given.flags])
    end = time.monotonic() + 60 * given.minutes
    try:
        suite = Suite(server, given.seed, given.apart)
        for _ in range(given.rounds):
            if time.monotonic() > end:
                break
            suite.round(suite.draw.choice(given.only))
        suite.end()
    except AssertionError as error:
        print(server.output()[-5000:])
        print(f"FAILED: {error}")
        return 1
    finally:
        server.process.kill()
    suite.report()
    print(f"FAILED: {len(suite.faults)} texts differ" if suite.faults else "nothing was lost")
    return 1 if suite.faults else 0


if __name__ == "__main__":
    sys.exit(main())
