"""Compare text-generation servers under closed-loop clients: tokens/s, time to first token, between tokens.

A server is a name, a URL and, unless it is running already, the command that starts it in the foreground.
Whether it speaks TGI's protocol or OpenAI's is found out. With several servers the runs alternate, so that
whatever else the machine does meets all of them alike; one that was started here is suspended while another
is measured. A ratio compares the first server with another one in neighbouring runs.

    python benchmarks/serve.py CHECKPOINT --server tgi http://127.0.0.1:8080
    python benchmarks/serve.py CHECKPOINT --repeats 5 --json results.jsonl \\
        --server tgi http://127.0.0.1:8081 "tgi serve --model-id CHECKPOINT --port 8081" \\
        --server vllm http://127.0.0.1:8082 "vllm serve CHECKPOINT --port 8082"

Workloads: aN is N clients with 128 prompt tokens and 64 output tokens each; bN 1024 and 16; cN 1016 and 16,
where the first 1000 are the same in all prompts and computed before. A client sends its next request when its
last answer has ended. Prompts are random words, one token each for the checkpoint's tokenizer.
"""

import argparse
import itertools
import math
import re
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import msgspec
import psutil  # type: ignore[import-untyped]
import trio
from client import Prompts, Target, Workload, answers, ask, drive
from rich.console import Console
from rich.table import Table

READY_TIMEOUT = 600.0
"""Seconds that a server may take to start."""

HEADINGS = ("tokens/s", "range", "first/it", "TTFT p50", "p99", "gap p50", "p99 ms", "noise", "errors")
DEFAULT_WORKLOADS = [Workload.parse(name) for name in ("a1", "a4", "a16", "b1", "b4", "c4")]


@attrs.define(eq=False)
class Server:
    """A server that is measured, and its process if it was started here."""

    name: str
    url: str
    command: str = ""
    process: psutil.Process | None = None
    ready_seconds: float = math.nan

    def tree(self) -> list[psutil.Process]:
        """Its processes, parents first."""
        return [self.process, *self.process.children(recursive=True)] if self.process else []

    def cpu_seconds(self) -> float:
        """What its processes have used so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self.tree())

    def memory(self) -> tuple[float, float]:
        """MiB now, shared pages counted once, and the sum of the largest sizes of its processes."""
        peaks = [re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{p.pid}/status").read_text()) for p in self.tree()]
        now = sum(process.memory_full_info().pss for process in self.tree())
        return now / 2**20, sum(int(peak[1]) for peak in peaks if peak) / 2**10


@contextmanager
def started(server: Server) -> Iterator[None]:
    """Start it, if it is ours to start, wait until it is ready, and stop it in the end."""
    begin = time.perf_counter()
    if not server.command:
        yield
        return
    log = Path(tempfile.gettempdir()) / f"benchmark-{server.name}.log"
    with log.open("wb") as output:
        popen = subprocess.Popen(shlex.split(server.command), stdout=output, stderr=output)
    server.process = psutil.Process(popen.pid)
    try:
        while not answers(server.url + "/health"):
            if popen.poll() is not None or time.perf_counter() - begin > READY_TIMEOUT:
                sys.exit(f"{server.name} did not start; see {log}")
            time.sleep(0.1)
        server.ready_seconds = time.perf_counter() - begin
        yield
    finally:
        stop(server)


def stop(server: Server) -> None:
    """End its processes: politely, after 30 s not."""
    tree = server.tree()
    resume(server)
    if tree:
        tree[0].terminate()
    for process in psutil.wait_procs(tree, timeout=30)[1]:
        process.kill()


def suspend(server: Server) -> None:
    for process in server.tree():
        process.suspend()


def resume(server: Server) -> None:
    for process in server.tree():
        process.resume()


@attrs.frozen(kw_only=True)
class Run:
    """What one run measured; times in milliseconds, of the requests without error."""

    server: str
    workload: str
    repeat: int
    requests: int
    errors: int
    first_error: str
    seconds: float
    tokens_per_second: float
    ttft_p50: float
    ttft_p99: float
    gap_p50: float
    gap_p99: float
    server_cores: float
    """CPU cores that the server used on average, where it was started here,"""
    client_cores: float
    other_cores: float
    """and everything else on the machine, and of the machine's host, noise to us."""


def measure(server: Server, workload: Workload, prompts: Prompts, requests: int, repeat: int) -> Run:
    """One run of a workload, `requests` for each client."""
    keys = [f"{workload.name} {repeat} {index}" for index in range(requests * workload.clients)]
    texts = [prompts.make(workload, key) for key in keys]
    target = Target.find(server.url)
    if workload.shared:
        trio.run(ask, target, prompts.make(workload, f"{workload.name} {repeat} warm"), 1)
    machine, own, theirs = busy_seconds(), time.process_time(), server.cpu_seconds()
    begin = time.perf_counter()
    replies = trio.run(drive, target, texts, workload.clients, workload.output)
    seconds = time.perf_counter() - begin
    machine, own, theirs = busy_seconds() - machine, time.process_time() - own, server.cpu_seconds() - theirs
    good = [reply for reply in replies if not reply.error]
    first = [1000 * (reply.times[0] - reply.started) for reply in good]
    gaps = [1000 * (later - this) for reply in good for this, later in itertools.pairwise(reply.times)]
    return Run(
        server=server.name,
        workload=workload.name,
        repeat=repeat,
        requests=len(replies),
        errors=len(replies) - len(good),
        first_error=next((reply.error for reply in replies if reply.error), ""),
        seconds=seconds,
        tokens_per_second=sum(reply.tokens for reply in good) / seconds,
        ttft_p50=percentile(first, 50),
        ttft_p99=percentile(first, 99),
        gap_p50=percentile(gaps, 50),
        gap_p99=percentile(gaps, 99),
        server_cores=theirs / seconds,
        client_cores=own / seconds,
        other_cores=(machine - own - theirs) / seconds,
    )


def busy_seconds() -> float:
    """CPU seconds that the machine was busy since it started, time taken by its host included."""
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` percent are not above."""
    return sorted(values)[math.ceil(share / 100 * len(values)) - 1] if values else math.nan


def run_all(servers: list[Server], workloads: list[Workload], options: argparse.Namespace) -> list[Run]:
    """Start and warm up the servers, then measure them in turns; every second repeat in reverse order."""
    prompts = Prompts(options.checkpoint)
    runs: list[Run] = []
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(started(server))
            for workload in workloads:
                measure(server, attrs.evolve(workload, output=4), prompts, 1, -1)
            report(server, options.json)
            suspend(server)
        for repeat in range(options.repeats):
            for workload in workloads:
                for server in servers if repeat % 2 == 0 else reversed(servers):
                    resume(server)
                    runs.append(measure(server, workload, prompts, options.requests, repeat))
                    suspend(server)
                    save(attrs.asdict(runs[-1]), options.json)
        for server in servers:
            resume(server)
            report(server, options.json)
    return runs


def report(server: Server, path: Path | None) -> None:
    """Note how long a server started here took to get ready, and its memory."""
    if server.process:
        memory, peak = server.memory()
        ready = server.ready_seconds
        save({"server": server.name, "ready_seconds": ready, "memory_mib": memory, "peak_mib": peak}, path)


def save(row: dict[str, object], path: Path | None) -> None:
    """Print the row and append it to the file, as a line of JSON."""
    rounded = {key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()}
    line = msgspec.json.encode(rounded).decode()
    print(line, flush=True)
    if path:
        with path.open("a") as file:
            file.write(line + "\n")


def make_table(runs: list[Run], title: str) -> Table:
    """Medians over the repeats, the range of the tokens/s, and how the first server compares."""
    table = Table("", "server", title=title)
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    for workload in dict.fromkeys(run.workload for run in runs):
        some = [run for run in runs if run.workload == workload]
        servers = list(dict.fromkeys(run.server for run in some))
        first = {run.repeat: run.tokens_per_second for run in some if run.server == servers[0]}
        for name in servers:
            table.add_row(workload, *cells([run for run in some if run.server == name], first))
        table.add_section()
    return table


def cells(runs: list[Run], first: dict[int, float]) -> list[str]:
    """A line of the table: one server's runs of one workload."""

    def median(name: str) -> float:
        return statistics.median(float(getattr(run, name)) for run in runs)

    speeds = [run.tokens_per_second for run in runs]
    ratios = [first[run.repeat] / run.tokens_per_second for run in runs if run.tokens_per_second]
    return [
        runs[0].server,
        f"{median('tokens_per_second'):.1f}",
        f"{min(speeds):.1f}-{max(speeds):.1f}",
        f"{statistics.median(ratios):.2f}" if ratios else "",
        *(f"{median(name):.0f}" for name in ("ttft_p50", "ttft_p99", "gap_p50", "gap_p99")),
        f"{median('other_cores'):.2f}",
        str(sum(run.errors for run in runs)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="folder with the tokenizer of the model that is served")
    parser.add_argument("--server", nargs="+", action="append", required=True, metavar="NAME URL [COMMAND]")
    parser.add_argument("--workloads", type=Workload.parse, nargs="+", default=DEFAULT_WORKLOADS)
    parser.add_argument("--requests", type=int, default=4, help="of each client in a run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file to append results to")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        runs = run_all([Server(*words) for words in options.server], options.workloads, options)
        Console(width=120).print(make_table(runs, options.checkpoint.name))
    except* KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
