"""Time of a forward pass with sampling in one rank, without a server: `python benchmarks/forward.py --help`.

Random weights in the shape of a model are made in memory. A decode step has `--context` tokens in the cache.
The best of `--repeat` is reported, since other processes only ever add.

With tgi-cpu-kernels it also says how long a decode step spends outside the kernels of the model: in Python
and in the sampler. And for a decode step of one row, how much of the speed at which the same threads read a
large array it reaches with weights, keys and values.
"""

import argparse
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from make_checkpoint import COMMON, SHAPES

from tgi.layers import Build
from tgi.layers.loading import LoadedModel
from tgi.plugins import JsonReader, architectures, devices, load_plugins
from tgi.protocol import Bucket, LaneParams, Load, Step, TensorInfo, encode, ints
from tgi.sampling import SamplingParams
from tgi.weights import DummyWeights, Shard
from tgi.weights.formats import Dense, WeightFormat, read_format
from tgi.worker.runner import Runner, open_device

BENCHMARKED = ("llama-160m", "qwen3-moe-300m", "llama-1b")
BLOCK = 16
LANES = 32
SAMPLING = {"tgi_greedy", "tgi_log_softmax", "tgi_draw", "tgi_top_cut"}
_DENSE = Dense()


def make_runner(shape: str, dtype: str, threads: int, stored: WeightFormat = _DENSE) -> Runner:
    """A model with made-up weights; linear layers are stored in a format."""
    return make_model(shape, dtype, threads, stored)[0]


def make_model(
    shape: str, dtype: str, threads: int, stored: WeightFormat = _DENSE
) -> tuple[Runner, Sequence[TensorInfo]]:
    """The same, and its weights."""
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
    return runner, build.tensors


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


class TimedKernels:
    """The functions of the kernels' library, with the time that those of the model take."""

    def __init__(self, functions: Any) -> None:
        self.functions, self.seconds = functions, 0.0

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.functions, name)
        if name in SAMPLING:
            return function

        def timed(*arguments: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments)
            self.seconds += time.perf_counter() - began
            return result

        return timed


def outside_kernels(runner: Runner, step: Step, repeat: int) -> float:
    """Milliseconds of a step outside the kernels of the model, the least."""
    kernels = runner.device._kernels  # type: ignore[attr-defined]
    plain, timed, least = kernels._functions, TimedKernels(kernels._functions), math.inf
    kernels._functions = timed
    for _ in range(repeat):
        timed.seconds, began = 0.0, time.perf_counter()
        encode(runner.execute(step))
        least = min(least, time.perf_counter() - began - timed.seconds)
    kernels._functions = plain
    return 1e3 * least


def read_speed() -> float:
    """GB/s at which torch's threads read two halves of a large array."""
    left, right = torch.zeros(1 << 28).chunk(2)
    return 4 * (1 << 28) / 1e6 / best(lambda: torch.dot(left, right), 8)


def read_bytes(runner: Runner, tensors: Sequence[TensorInfo], context: int) -> int:
    """Bytes that a decode step of one row reads: all weights but the embedding, and what is cached."""
    weights = sum(info.bytes for info in tensors if "embed_tokens" not in info.name)
    return weights + context * sum(group.token_bytes for group in runner.groups)


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
    parser.add_argument("--quantize", choices=["int8", "int4"], help="round the linear layers to that")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--context", type=int, default=160)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--sampling", action="store_true", help="temperature and top-p instead of greedy")
    parser.add_argument("--profile", type=Path, help="write a table of operators for decode 16 there")
    options = parser.parse_args()
    use_environment_of_device()
    for shape in BENCHMARKED if options.shape == "all" else [options.shape]:
        stored = read_format(JsonReader({}), options.quantize) if options.quantize else _DENSE
        runner, tensors = make_model(shape, options.dtype, options.threads, stored)
        steps = {f"decode {n}": decode(n, options.context, options.sampling) for n in (1, 4, 16)}
        steps |= {f"prefill {n}": prefill(1, n) for n in (128, 1024)}
        steps["prefill 16 + 1000 cached"] = prefill(1, 16, 1000)
        print(f"{shape} {runner.loaded.dtype} {runner.device.threads} threads, context {options.context}")
        times = {}
        for name, step in steps.items():
            repeat = 3 if name == "prefill 1024" else options.repeat
            times[name] = best(functools.partial(runner.execute, step), repeat)
            print(f"  {name:26} {times[name]:9.1f} ms", flush=True)
        if hasattr(runner.device, "_kernels"):
            for name in ("decode 1", "decode 16"):
                host = outside_kernels(runner, steps[name], options.repeat)
                print(f"  {name + ', Python and sampler':26} {host:9.2f} ms", flush=True)
        if "moe" not in shape:  # of experts a step reads some
            reached = read_bytes(runner, tensors, options.context) / 1e6 / times["decode 1"]
            speed = read_speed()
            print(
                f"  decode 1 reads {reached:.1f} GB/s, {reached / speed:.0%} of {speed:.1f} GB/s", flush=True
            )
        if options.profile:
            step = steps["decode 16"]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
                for _ in range(5):
                    runner.execute(step)
            table = profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
            options.profile.write_text(table)


if __name__ == "__main__":
    main()
