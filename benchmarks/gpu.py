"""Whether a GPU computes what the CPU does, and how fast: `python benchmarks/gpu.py --help`.

    python benchmarks/gpu.py equality        # float32: random mixed workloads, and the test of model packages
    python benchmarks/gpu.py speed           # an 8B-shaped model with made-up weights, beside transformers

*speed* drives one rank without a server, each step launched before the result of the one before is waited
for, as a server does. A decode step must read the weights and what is cached: the share of the bandwidth
limit is the time that this takes at the bandwidth of a large copy, measured at once, over the time of the
step. A prefill step must multiply: likewise with the rate of a large product. *Idle* is the share of the wall
time in which no kernel and no copy runs. Then the same requests are generated here, all rows together from
the first token to the last, and by transformers' continuous batching. `--device hpu-sim --shape tiny` tries
the program itself on a CPU.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from make_checkpoint import COMMON, SHAPES

from tgi.layers.loading import describe
from tgi.plugins import devices, load_plugins
from tgi.protocol import Bucket, Describe, Load, Result, Step, ints
from tgi.testing.check_architecture import check_architecture
from tgi.testing.driver import lane_params
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.worker.runner import Runner, open_device

REPOSITORY = Path(__file__).parents[1]
Waiting = Callable[[], Result]


def equality(options: argparse.Namespace) -> None:
    """Raise AssertionError where a token or a log-probability is another one."""
    sys.path.insert(0, str(REPOSITORY))
    from tests import gaudi_workloads as workloads
    from tests.test_gaudi_workloads import check

    workloads.LIMITS = attrs.evolve(workloads.LIMITS, block_size=16)
    workloads.BLOCKS = workloads.LIMITS.max_batch_size * workloads.LIMITS.max_total_tokens // 16

    class Ahead(workloads.Engine):
        """Which waits for a result after the next step has been launched."""

        def _launch(self, planned: Any) -> Waiting:
            if not self.runner.device.asynchronous:
                return super()._launch(planned)
            self.seen["steps"] += 1
            return self.runner.launch(planned.step)

    with tempfile.TemporaryDirectory() as folder:
        make_llama(Path(folder), vocab_size=workloads.VOCAB)
        reference = workloads.Engine.open(Path(folder), open_device("cpu", 1))
        engine = Ahead.open(Path(folder), open_device(options.device, 0))
        for number in range(options.workloads):
            workload = workloads.random_workload(number)
            for got, wanted in zip(engine.run(workload), reference.run(workload), strict=True):
                check(got, wanted)
        print(f"{options.workloads} workloads, {engine.seen['steps']} steps: alike")
    with tempfile.TemporaryDirectory() as folder:
        make_llama(Path(folder))
        check_architecture(folder, cards=(), ranks=0, devices=[open_device(options.device, 0)])
        print("check_architecture: alike")


@attrs.frozen
class Work:
    """Steps of `rows` rows with room for `most` tokens each, whose blocks follow one another."""

    rows: int
    most: int
    block: int

    @property
    def blocks(self) -> int:
        """Of a row."""
        return -(-self.most // self.block)

    def prefill(self, first: int, tokens: Sequence[Sequence[int]]) -> Step:
        """Whole prompts of the rows from `first` on."""
        lanes, length = range(first, first + len(tokens)), len(tokens[0])
        return Step(
            number=1,
            bucket=Bucket(len(tokens), length, 0, prefill=True),
            lanes=ints(lanes),
            starts=ints([0] * len(tokens)),
            lengths=ints([length] * len(tokens)),
            samples=ints([1] * len(tokens)),
            draws=ints([0] * len(tokens)),
            tokens=ints(token for prompt in tokens for token in prompt),
            params=tuple(lane_params(lane) for lane in lanes),
            **self.tables(lanes),
        )

    def decode(self, position: int, new: bool = False) -> Step:
        """A token at that position of every row; `new`: of rows that no step has had."""
        lanes = range(self.rows)
        more: dict[str, Any] = self.tables(lanes) if new else {}
        return Step(
            number=1,
            bucket=Bucket(self.rows, 1, self.rows * self.blocks),
            lanes=ints(lanes),
            starts=ints([position] * self.rows),
            lengths=ints([1] * self.rows),
            samples=ints([1] * self.rows),
            draws=ints([1 + position] * self.rows),
            tokens=ints([-1] * self.rows),
            params=tuple(lane_params(lane) for lane in lanes) if new else (),
            **more,
        )

    def tables(self, lanes: range) -> dict[str, Any]:
        """Block 0 is the padding's."""
        return {
            "table_lanes": ints(lanes),
            "table_starts": ints([0] * len(lanes)),
            "table_counts": ints([self.blocks] * len(lanes)),
            "table_blocks": ints(1 + lane * self.blocks + i for lane in lanes for i in range(self.blocks)),
        }


def run(runner: Runner, steps: Iterator[Step]) -> list[float]:
    """When each result was there, from the beginning; one step is always launched ahead."""
    waiting: Waiting | None = None
    began, times = time.perf_counter(), []
    for step in steps:
        launched = runner.launch(step)
        if waiting is not None:
            waiting()
            times.append(time.perf_counter() - began)
        waiting = launched
    if waiting is not None:
        waiting()
        times.append(time.perf_counter() - began)
    return times


def open_runner(options: argparse.Namespace, folder: Path, work: Work) -> Runner:
    """With weights that are made up."""
    command = Load(
        folder=str(folder),
        architecture="LlamaForCausalLM",
        device=options.device,
        dtype="auto",
        threads=0,
        lanes=work.rows,
        block_size=work.block,
        max_tokens=work.most,
        prefill_tokens=options.prefill,
        top=8,
        dummy=True,
    )
    runner = Runner.load(command, Shard(), open_device(options.device, 0))
    runner.allocate(1 + work.rows * work.blocks)
    return runner


def bandwidth(runner: Runner) -> float:
    """Bytes read or written a second by a large copy."""
    size = min(4 << 30, runner.device.free_bytes() // 4)
    source = torch.empty(size, dtype=torch.uint8, device=runner.device.torch_device)
    target = torch.empty_like(source)
    return 2 * size / best(runner, lambda: target.copy_(source))


def multiplications(runner: Runner, size: int) -> float:
    """Floating-point operations a second of a large product."""
    a, b = (torch.ones(size, size, dtype=runner.dtype, device=runner.device.torch_device) for _ in range(2))
    return 2 * size**3 / best(runner, lambda: a @ b)


def best(runner: Runner, call: Callable[[], object], repeat: int = 10) -> float:
    """Seconds."""
    times = []
    for _ in range(repeat + 2):
        synchronize(runner)
        began = time.perf_counter()
        call()
        synchronize(runner)
        times.append(time.perf_counter() - began)
    return min(times[2:])


def synchronize(runner: Runner) -> None:
    if runner.device.torch_device.type == "cuda":
        torch.cuda.synchronize()


def idle(runner: Runner, steps: Iterator[Step]) -> float | None:
    """Share of the time from the first kernel to the last in which none runs; None: not on this device."""
    if runner.device.torch_device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(runner, steps)
        torch.cuda.synchronize()
    events = [event for event in profile.events() if str(event.device_type).endswith("CUDA")]
    spans = sorted((event.time_range.start, event.time_range.end) for event in events)
    busy, reached = 0.0, spans[0][0]
    for start, end in spans:
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return float(1 - busy / (reached - spans[0][0]))


def measure_decode(options: argparse.Namespace, folder: Path, rows: int, block: int) -> None:
    """Milliseconds of a step, and what limits it."""
    steps = 64
    work = Work(rows, options.context + 2 * steps + 8, block)
    runner = open_runner(options, folder, work)
    positions = iter(range(options.context, work.most))
    run(runner, (work.decode(next(positions), new=i == 0) for i in range(4)))
    times = run(runner, (work.decode(next(positions)) for _ in range(steps)))
    seconds = statistics.median(b - a for a, b in itertools.pairwise(times[2:]))
    config = runner.config
    weights = parameters(folder) - config.vocab_size * config.hidden_size
    token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    cached = rows * (options.context + steps // 2) * token
    least = (weights + cached) * runner.dtype.itemsize / bandwidth(runner)
    resting = idle(runner, (work.decode(next(positions)) for _ in range(16)))
    print(
        f"| decode, {rows} rows after {options.context} tokens | {seconds * 1e3:.2f} | "
        f"{least / seconds:.0%} of the bandwidth | {'' if resting is None else f'{resting:.1%}'} |",
        flush=True,
    )


def measure_prefill(options: argparse.Namespace, folder: Path, rows: int, block: int) -> None:
    """A prefill step of `options.prefill` tokens in all."""
    length = options.prefill // rows
    work = Work(rows, length + 1, block)
    runner = open_runner(options, folder, work)
    prompts = random_prompts(rows, length, runner.config.vocab_size)
    step = work.prefill(0, prompts)
    run(runner, (step for _ in range(3)))
    times = run(runner, (step for _ in range(12)))
    seconds = statistics.median(b - a for a, b in itertools.pairwise(times[2:]))
    config = runner.config
    numbers = parameters(folder) - 2 * config.vocab_size * config.hidden_size
    attention = 2 * config.num_layers * config.num_heads * config.head_dim * length * length * rows
    work_done = 2 * numbers * rows * length + attention
    least = work_done / multiplications(runner, 8192 if options.device == "cuda" else 512)
    resting = idle(runner, (step for _ in range(8)))
    print(
        f"| prefill, {rows} rows of {length} | {seconds * 1e3:.2f} | {least / seconds:.0%} of the products | "
        f"{'' if resting is None else f'{resting:.1%}'} |",
        flush=True,
    )


def parameters(folder: Path) -> int:
    """Numbers in the weights, those of the head apart from those of the embedding."""
    command = Describe(folder=str(folder), architecture="LlamaForCausalLM", ranks=1, dtype="auto", dummy=True)
    return describe(command).parameters


def random_prompts(rows: int, length: int, vocab: int) -> list[list[int]]:
    rng = random.Random(0)
    return [rng.choices(range(vocab), k=length) for _ in range(rows)]


def generate(options: argparse.Namespace, folder: Path, block: int) -> float:
    """Tokens a second, prompts included in the time, by one rank."""
    rows, length, new = options.requests, options.prompt, options.new
    work = Work(rows, length + new, block)
    runner = open_runner(options, folder, work)
    prompts = random_prompts(rows, length, runner.config.vocab_size)
    together = max(1, options.prefill // length)

    def steps() -> Iterator[Step]:
        for first in range(0, rows, together):
            yield work.prefill(first, prompts[first : first + together])
        for position in range(length, length + new - 1):
            yield work.decode(position)

    run(runner, steps())  # which captures the graphs
    return float(rows * new / run(runner, steps())[-1])


def generate_by_transformers(options: argparse.Namespace, folder: Path) -> float:
    """The same requests by its continuous batching, on random weights of the same shape."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    torch.set_default_device("cuda")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()  # type: ignore[no-untyped-call]
    torch.set_default_device(None)
    prompts = random_prompts(options.requests, options.prompt, config.vocab_size)
    wanted = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=options.new, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cuda_graph=True
    )
    rates = []
    for _ in range(2):
        began = time.perf_counter()
        answers = model.generate_batch(inputs=prompts, generation_config=wanted)
        torch.cuda.synchronize()
        rates.append(sum(len(a.generated_tokens) for a in answers.values()) / (time.perf_counter() - began))
    return float(max(rates))


def speed(options: argparse.Namespace) -> None:
    """Print a table."""
    block = devices(load_plugins())[options.device].block_size
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape = COMMON | SHAPES[options.shape]
        (folder / "config.json").write_text(json.dumps(shape))
        print("| step | ms | share of the limit | idle |\n| --- | --- | --- | --- |")
        for rows in options.rows:
            measure_decode(options, folder, rows, block)
        for rows in (1, 4):
            measure_prefill(options, folder, rows, block)
        print(f"\n{options.requests} requests, {options.prompt} tokens each and {options.new} more:")
        mine = generate(options, folder, block)
        print(f"tgi {mine:,.0f} tokens/s", flush=True)
        if options.device == "cuda":
            theirs = generate_by_transformers(options, folder)
            print(f"transformers {theirs:,.0f} tokens/s; ratio {mine / theirs:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("equality", "speed"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--workloads", type=int, default=200)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-8b")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--prefill", type=int, default=4096, help="tokens of a step")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    options = parser.parse_args()
    if options.device == "cuda" and torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    (equality if options.what == "equality" else speed)(options)


if __name__ == "__main__":
    main()
