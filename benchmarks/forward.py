"""Time of a forward pass with sampling in one rank, without a server: `python benchmarks/forward.py --help`.

Random weights in the shape of a model are made in memory. A decode step has `--context` tokens in the cache.
The best of `--repeat` is reported, since other processes only ever add.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from make_checkpoint import COMMON, SHAPES

from tgi.layers import Build
from tgi.layers.loading import LoadedModel
from tgi.plugins import architectures, devices, load_plugins
from tgi.protocol import Bucket, LaneParams, Load, Step, ints
from tgi.sampling import SamplingParams
from tgi.weights import DummyWeights, Shard
from tgi.weights.formats import Dense, WeightFormat
from tgi.worker.runner import Runner, open_device

BENCHMARKED = ("llama-160m", "qwen3-moe-300m", "llama-1b")
BLOCK = 16
LANES = 32
_DENSE = Dense()


def make_runner(shape: str, dtype: str, threads: int, stored: WeightFormat = _DENSE) -> Runner:
    """A model with made-up weights; linear layers are stored in a format."""
    device = open_device("cpu", threads)
    data = COMMON | SHAPES[shape]
    architecture = architectures(load_plugins())[data["architectures"][0]]
    config = architecture.read(data)
    chosen = device.dtype(dtype)
    build = Build(DummyWeights(chosen), Shard(), device, chosen, stored)
    from tgi.layers import LlamaDecoder

    command = Load(
        folder="",
        architecture=architecture.name,
        device="cpu",
        dtype=dtype,
        threads=threads,
        lanes=LANES,
        block_size=BLOCK,
        max_tokens=128 * BLOCK,
        prefill_tokens=1024,
    )
    with torch.inference_mode():
        runner = Runner.of(LoadedModel(LlamaDecoder(config, build).eval(), config, build), command)
    runner.allocate(LANES * 128)
    return runner


def tables(rows: int, tokens: int) -> dict[str, bytes]:
    """Every row in blocks of its own, one after another."""
    count = -(-tokens // BLOCK)
    return {
        "table_lanes": ints(range(rows)),
        "table_starts": ints([0] * rows),
        "table_counts": ints([count] * rows),
        "table_blocks": ints(1 + row * 100 + i for row in range(rows) for i in range(count)),
    }


def decode(rows: int, context: int, sampling: bool) -> Step:
    params = tuple(
        LaneParams(
            lane=lane,
            sampling=SamplingParams(seed=lane, sample=True, temperature=0.8, top_p=0.95)
            if sampling
            else SamplingParams(seed=lane),
        )
        for lane in range(rows)
    )
    return Step(
        number=1,
        bucket=Bucket(rows, 1, -(-(context + 1) // BLOCK)),
        lanes=ints(range(rows)),
        starts=ints([context] * rows),
        lengths=ints([1] * rows),
        samples=ints([1] * rows),
        draws=ints(range(1, rows + 1)),
        tokens=ints([-1] * rows),
        params=params,
        **tables(rows, context + 1),
    )


def prefill(rows: int, tokens: int, cached: int = 0) -> Step:
    total = rows * tokens
    return Step(
        number=1,
        bucket=Bucket(rows, tokens, -(-(cached + tokens) // BLOCK), prefill=True),
        lanes=ints(range(rows)),
        starts=ints([cached] * rows),
        lengths=ints([tokens] * rows),
        samples=ints([1] * rows),
        draws=ints([0] * rows),
        tokens=ints(i * 7 % 31000 for i in range(total)),
        **tables(rows, cached + tokens),
    )


def best(call: Callable[[], object], repeat: int) -> float:
    """Milliseconds."""
    call()
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times) * 1e3


def use_environment_of_device() -> None:
    """Start again with the variables that a server would give its ranks; OpenMP reads them only once."""
    wanted = devices(load_plugins())["cpu"].environment
    if not wanted.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=[*BENCHMARKED, "all"], default="all")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--context", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--sampling", action="store_true", help="temperature and top-p instead of greedy")
    parser.add_argument("--profile", type=Path, help="write a table of operators for decode 16 there")
    options = parser.parse_args()
    use_environment_of_device()
    for shape in BENCHMARKED if options.shape == "all" else [options.shape]:
        runner = make_runner(shape, options.dtype, options.threads)
        steps = {f"decode {n}": decode(n, options.context, options.sampling) for n in (1, 4, 16)}
        steps |= {f"prefill {n}": prefill(1, n) for n in (128, 1024)}
        steps["prefill 16 + 1000 cached"] = prefill(1, 16, 1000)
        print(f"{shape} {runner.loaded.dtype} {runner.device.threads} threads, context {options.context}")
        for name, step in steps.items():
            repeat = 3 if name == "prefill 1024" else options.repeat
            print(f"  {name:26} {best(functools.partial(runner.execute, step), repeat):9.1f} ms", flush=True)
        if options.profile:
            step = steps["decode 16"]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(5):
                    runner.execute(step)
            table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
            options.profile.write_text(table)


if __name__ == "__main__":
    main()
