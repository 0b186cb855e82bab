"""Time and memory that loading a checkpoint takes, beside transformers: `python benchmarks/load.py --help`.

    python benchmarks/make_checkpoint.py llama-1b /tmp/llama-1b
    python benchmarks/load.py /tmp/llama-1b

Each load has processes of its own, and the loaders take turns. The time is from the moment that torch is
imported until the weights are where they are computed with; of several ranks that of the slowest. Beside it
is the time that the CPUs worked for it, which depends less on what else the machine does. *Own memory* is the
largest that all ranks together had of their own at any moment, *with pages of the file* also counts what they
had mapped and the system could have taken back; both without what was there before. The file is in the page
cache, or with --cold is not. transformers only maps it: the first step reads it, which is measured by reading
every weight once.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOADERS = (
    "tgi",
    "tgi, 2 ranks",
    "tgi, dummy",
    "tgi, dummy, 2 ranks",
    "transformers",
    "transformers, and read once",
)
MIB = 1 << 20


class Peak:
    """The largest memory that this process had while it was open, in bytes beyond what it began with."""

    def __init__(self) -> None:
        self._first = resident()
        self._most = self._first
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def own(self) -> int:
        return self._most[0] - self._first[0]

    @property
    def mapped(self) -> int:
        return self._most[1] - self._first[1]

    def _watch(self) -> None:
        while not self._ended.wait(0.003):
            own, mapped = resident()
            self._most = max(self._most[0], own), max(self._most[1], mapped)


def resident() -> tuple[int, int]:
    """Bytes that are this process's own, and those that it has mapped as well."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    fields = {words[0]: int(words[1]) << 10 for words in lines if words[0].startswith(("Rss", "VmRSS"))}
    return fields["RssAnon:"], fields["VmRSS:"]


def load_tgi(folder: Path, shard: tuple[int, int, str], dummy: bool, threads: int) -> dict[str, float]:
    from tgi.layers.loading import describe
    from tgi.protocol import Describe, Load
    from tgi.weights import Shard
    from tgi.worker.runner import Runner, open_device

    rank, ranks, store = shard
    command = Load(
        folder=str(folder),
        architecture=json.loads((folder / "config.json").read_bytes())["architectures"][0],
        device="cpu",
        dtype="bfloat16",
        threads=threads,
        lanes=1,
        block_size=16,
        max_tokens=4096,
        dummy=dummy,
    )
    device = open_device("cpu", threads)
    if ranks > 1:
        device.connect(Shard(rank, ranks), f"file://{store}")
    with Peak() as peak:
        began, before = time.perf_counter(), time.process_time()
        Runner.load(command, Shard(rank, ranks), device)
        seconds, worked = time.perf_counter() - began, time.process_time() - before
    kept = describe(
        Describe(
            folder=str(folder), architecture=command.architecture, ranks=ranks, dtype="bfloat16", dummy=dummy
        )
    ).weight_bytes
    return {"seconds": seconds, "cpu": worked, "own": peak.own, "mapped": peak.mapped, "weights": kept}


def load_transformers(folder: Path, read: bool, threads: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    AutoModelForCausalLM.from_pretrained  # noqa: B018 (imports what it needs)
    with Peak() as peak:
        began, before = time.perf_counter(), time.process_time()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        if read:
            for parameter in model.parameters():
                parameter.data.view(torch.int16).amax()
        seconds, worked = time.perf_counter() - began, time.process_time() - before
    kept = sum(parameter.nbytes for parameter in model.parameters())
    return {"seconds": seconds, "cpu": worked, "own": peak.own, "mapped": peak.mapped, "weights": kept}


def measure(loader: str, folder: Path, threads: int) -> dict[str, float]:
    """In processes of its own; times of the slowest, sums of the rest."""
    ranks = 2 if "2 ranks" in loader else 1
    environment = dict(os.environ)
    if not loader.startswith("transformers"):
        from tgi.plugins import devices, load_plugins

        environment = {**devices(load_plugins())["cpu"].environment, **environment}
    command = [sys.executable, __file__, "--child", loader, str(folder), "--threads", str(threads)]
    with tempfile.TemporaryDirectory() as meeting:
        children = [
            subprocess.Popen(
                [*command, "--shard", str(rank), str(ranks), f"{meeting}/store"],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        results = [json.loads(child.communicate()[0].splitlines()[-1]) for child in children]
    return {
        name: (max if name == "seconds" else sum)(result[name] for result in results) for name in results[0]
    }


def forget(folder: Path) -> None:
    """Put the files out of the page cache."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    """Put them into it."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb", 0) as file:
            while file.read(64 * MIB):
                pass


def child(arguments: argparse.Namespace) -> None:
    rank, ranks, store = arguments.shard
    if arguments.child.startswith("transformers"):
        result = load_transformers(arguments.folder, "read" in arguments.child, arguments.threads)
    else:
        result = load_tgi(
            arguments.folder, (int(rank), int(ranks), store), "dummy" in arguments.child, arguments.threads
        )
    print(json.dumps(result), flush=True)
    os._exit(0)  # a thread of gloo's may abort a process that ends otherwise


def table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = [
        "| loader | seconds | of all CPUs | own memory, MiB | with pages of the file | of the weights |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for loader, runs in results.items():
        middle = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        own, mapped, kept = (middle[name] / MIB for name in ("own", "mapped", "weights"))
        times = f"{middle['seconds']:.2f} | {middle['cpu']:.2f}"
        lines.append(f"| {loader} | {times} | {own:,.0f} | {mapped:,.0f} | {kept:,.0f} |")
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=list(LOADERS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of all ranks")
    parser.add_argument("--cold", action="store_true", help="put the file out of the page cache before each")
    parser.add_argument("--json", type=Path, help="append each run to this file")
    parser.add_argument("--child", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--shard", nargs=3, default=("0", "1", ""), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    if options.child:
        child(options)
    results: dict[str, list[dict[str, float]]] = {loader: [] for loader in options.loaders}
    for _ in range(options.repeats):
        for loader in options.loaders:
            (forget if options.cold else warm)(options.folder)
            result: dict[str, Any] = measure(loader, options.folder, options.threads)
            results[loader].append(result)
            print(loader, json.dumps(result), file=sys.stderr, flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps({"loader": loader, "folder": str(options.folder), **result}) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
