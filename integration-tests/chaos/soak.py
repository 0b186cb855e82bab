"""Serve a mixed load for hours, and check that nothing leaks: `make soak HOURS=1`.

    python integration-tests/chaos/soak.py --hours 1 --rate 3 --plot soak.png -- --num-shard 2

What follows `--` are flags of `tgi serve`. Requests come at random, `--rate` of them a second on average, to
several routes; 1 % are invalid, and 5 % of the clients leave in the midst. At the end every KV block must be
free or cached, no answer may have been a 5xx, and the resident memory and open files of each process must be
those of minute ten, within 2 %.
"""

import argparse
import contextlib
import json
import random
import signal
import statistics
import sys
import time
import urllib.error
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import psutil
from served import Server, check_quiet

SAMPLE_SECONDS = 5.0
SETTLING = 600.0
"""Seconds after which memory and files are taken as flat."""
CLIENTS = 64
WORDS = "the river of a small town that is known for its bridges and mills and the old music".split()  # noqa: SIM905
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}}, "required": ["name"]}
INVALID: list[tuple[str, Any]] = [
    ("/generate", {"inputs": 5}),
    ("/generate", {"inputs": "a", "parameters": {"temperature": -1}}),
    ("/v1/chat/completions", {"messages": []}),
    ("/v1/completions", {"prompt": "a", "max_tokens": -5}),
]


class Soak:
    """What was sent and seen so far."""

    def __init__(self, server: Server, draw: random.Random) -> None:
        self.server = server
        self.draw = draw
        self.answers: Counter[str] = Counter()
        self.latencies: list[float] = []
        """Seconds of the whole requests that ended since the last sample."""
        self.samples: list[dict[str, Any]] = []

    def request(self) -> tuple[str, Any, str]:
        """Return path and body of a random request, and what is to come of it."""
        draw = self.draw
        if draw.random() < 0.01:
            return *draw.choice(INVALID), "invalid"
        prompt = " ".join(draw.choices(WORDS, k=draw.randrange(1, 120)))
        tokens = draw.randrange(1, 80)
        sampling = draw.choice([{}, {"temperature": 1.2, "seed": draw.randrange(1000), "top_p": 0.9}])
        messages = [{"role": "user", "content": prompt}]
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        path, body = draw.choice(
            [
                ("/v1/completions", {"prompt": prompt, "max_tokens": tokens, **sampling}),
                ("/v1/chat/completions", {"messages": messages, "max_tokens": tokens, **sampling}),
                ("/v1/chat/completions", {"messages": messages, "max_tokens": 60, "response_format": schema}),
                ("/generate", {"inputs": prompt, "parameters": {"max_new_tokens": tokens}}),
                ("/tokenize", {"inputs": prompt}),
            ]
        )
        if path.startswith("/v1/") and draw.random() < 0.6:
            body["stream"] = True
        return path, body, "cancelled" if draw.random() < 0.05 else "whole"

    def ask(self, path: str, body: Any, wanted: str, leave_after: int) -> None:
        """Send a request, and note what came."""
        began = time.monotonic()
        try:
            with self.server.post(path, body) as answer:
                if wanted == "cancelled":
                    answer.read(leave_after)
                    self.answers["cancelled"] += 1
                    return
                text = answer.read()
            said = "an error in a stream" if b'"error"' in text else str(answer.status)
        except urllib.error.HTTPError as refusal:
            said = f"{wanted}: {refusal.code}"
        except OSError as error:
            said = f"{wanted}: {error!r}"
        self.latencies.append(time.monotonic() - began)
        self.answers[said] += 1

    def sample(self, began: float) -> None:
        """Note memory, files, queue and latencies."""
        _, text = self.server.get("/metrics")
        metrics = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#")
        taken, self.latencies = sorted(self.latencies), []
        processes = {"server": psutil.Process(self.server.process.pid)}
        processes |= {f"rank {number}": rank for number, rank in enumerate(self.server.ranks())}
        self.samples.append(
            {
                "minute": (time.monotonic() - began) / 60,
                "MiB": {name: one.memory_info().rss / 2**20 for name, one in processes.items()},
                "files": {name: one.num_fds() for name, one in processes.items()},
                "queue": float(metrics.get("tgi_queue_size", "nan")),
                "blocks": float(metrics.get('tgi_kv_blocks{state="used"}', "nan")),
                "p50": statistics.median(taken) if taken else 0.0,
                "worst": taken[-1] if taken else 0.0,
            }
        )

    def run(self, seconds: float, rate: float) -> None:
        """Send requests for a time, and sample meanwhile."""
        began, ended = time.monotonic(), Event()

        def keep_sampling() -> None:
            while not ended.wait(SAMPLE_SECONDS):
                self.sample(began)

        sampling = Thread(target=keep_sampling)
        sampling.start()
        with ThreadPoolExecutor(CLIENTS) as pool:
            next_one = began
            while next_one < began + seconds and self.server.process.poll() is None:
                time.sleep(max(0.0, next_one - time.monotonic()))
                pool.submit(self.ask, *self.request(), self.draw.randrange(1, 2000))
                next_one += self.draw.expovariate(rate)
        ended.set()
        sampling.join()
        check_quiet(self.server)
        self.sample(began)

    def check(self) -> None:
        """Assert that nothing was refused without a reason, and that nothing grew."""
        good = {"200", "cancelled", *(f"invalid: {status}" for status in (400, 422))}
        assert set(self.answers) <= good, dict(self.answers)
        settled = [one for one in self.samples if one["minute"] * 60 >= SETTLING]
        if not settled:
            return
        for kind, room in (("MiB", 0.0), ("files", 3.0)):
            for name in settled[0][kind]:
                # Medians of a minute: one sample more or less says nothing.
                first, last = (
                    statistics.median([one[kind][name] for one in part])
                    for part in (settled[:12], settled[-12:])
                )
                print(f"{name}: {kind} {first:.1f} at minute ten, {last:.1f} at the end")
                assert last <= first * 1.02 + room, f"{name}: {kind} grew from {first:.1f} to {last:.1f}"


def plot(samples: list[dict[str, Any]], path: Path) -> None:
    """Draw memory, files, queue and latencies over time."""
    import matplotlib.pyplot as plt

    minutes = [one["minute"] for one in samples]
    figure, axes = plt.subplots(4, 1, figsize=(9, 10), sharex=True, layout="constrained")
    for axis, kind, label in ((axes[0], "MiB", "resident memory, MiB"), (axes[1], "files", "open files")):
        for name in samples[0][kind]:
            axis.plot(minutes, [one[kind].get(name) for one in samples], label=name)
        axis.set_ylabel(label)
        axis.legend()
    for axis, keys, label in (
        (axes[2], ("queue", "blocks"), "waiting requests, KV blocks in use"),
        (axes[3], ("p50", "worst"), "seconds of a request"),
    ):
        for key in keys:
            axis.plot(minutes, [one[key] for one in samples], label=key, linewidth=0.8)
        axis.set_ylabel(label)
        axis.legend()
    for axis in axes:
        axis.set_ylim(bottom=0)
    axes[-1].set_xlabel("minutes")
    figure.savefig(path, dpi=100)


def main() -> int:
    """Soak; return 1 if something leaks or fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a picture")
    parser.add_argument("--samples", type=Path, metavar="FILE", help="also write what was sampled, as JSON")
    parser.add_argument("flags", nargs="*", help="flags of tgi serve, after --")
    given = parser.parse_args()
    server = Server(given.flags)
    soak = Soak(server, random.Random(given.seed))
    try:
        server.wait_ready()
        soak.run(given.hours * 3600, given.rate)
        print(dict(soak.answers))
        soak.check()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
    except AssertionError as error:
        print(server.output()[-5000:])
        print(f"FAILED: {error}")
        return 1
    finally:
        with contextlib.suppress(OSError):
            server.process.kill()
        if given.samples:
            given.samples.write_text(json.dumps(soak.samples))
        if given.plot and soak.samples:
            plot(soak.samples, given.plot)
    print("nothing leaked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
