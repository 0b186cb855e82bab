"""Compare strategies that choose buckets, on three generated workloads and two cards.

The real scheduler plans and commits every step; the roofline of tgi/device/costs.py tells the time of a step
from the bucket that it is padded to. So the figures show the policy and the buckets, not a card. The tables
and the picture of README.md come from `python benchmarks/buckets.py --plot benchmarks/buckets.png`.
"""

import argparse
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
from vllm_strategies import STRATEGIES, Range

from tgi.device.costs import LLAMA_8B, Costs
from tgi.device.hpu import SPEC as GAUDI
from tgi.limits import Limits
from tgi.planning.buckets import SECONDS_PER_LAYER, Bucketing, make_buckets
from tgi.planning.shapes import ShapeLimits
from tgi.planning.workload import ShapeCounts
from tgi.protocol import Bucket, Result, floats, ints
from tgi.scheduler.buckets import Buckets
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import plan
from tgi.scheduler.schedule import PlannedStep, Schedule
from tgi.scheduler.sequence import Sequence
from tgi.testing.builders import make_allocator, make_device, make_sequence

LIMITS = Limits(max_batch_size=128, max_total_tokens=4096, max_batch_prefill_tokens=4096, block_size=128)
BLOCKS = 4107
"""Number of KV blocks that fit beside Llama-3.1-8B on a gaudi2."""
DEVICE = make_device(block_size=128, compiles=True, flat=True)
CLIENTS = (128, 12, 64, 3, 96, 32, 1, 48)
"""Numbers of clients, one after the other; each client asks again when it has its answer."""
SYSTEM = list(range(10, 10 + 384))
"""System prompt that half of the chats begin with."""


@attrs.frozen
class Request:
    prompt: list[int]
    answer: int


def chat(rng: random.Random) -> Request:
    """Make a short prompt, perhaps after a long common one, and an answer of a few hundred tokens."""
    prompt = [rng.randrange(1000, 100_000) for _ in range(_between(rng.lognormvariate(5.0, 1.0), 4, 2500))]
    return Request(SYSTEM * (rng.random() < 0.5) + prompt, _between(rng.lognormvariate(5.2, 0.8), 8, 1000))


def long_prompt(rng: random.Random) -> Request:
    """Make a document and a short answer."""
    prompt = [rng.randrange(1000, 100_000) for _ in range(rng.randint(1200, 3900))]
    return Request(prompt, rng.randint(16, 180))


def uniform(rng: random.Random) -> Request:
    """Make a prompt and an answer of any length, all equally likely."""
    prompt = [rng.randrange(1000, 100_000) for _ in range(rng.randint(1, 3000))]
    return Request(prompt, rng.randint(1, 1000))


WORKLOADS: dict[str, Callable[[random.Random], Request]] = {
    "chat": chat,
    "long-prompt": long_prompt,
    "uniform": uniform,
}


def _between(value: float, least: int, most: int) -> int:
    return min(max(int(value), least), most)


@attrs.define
class Run:
    """One workload through the scheduler on simulated time."""

    schedule: Schedule
    costs: Costs
    counts: ShapeCounts = attrs.field(factory=lambda: ShapeCounts(128))
    seconds: float = 0.0
    ideal: float = 0.0
    """Seconds that the same steps would take without padding."""
    steps: int = 0
    generated: int = 0

    def serve(self, requests: Iterator[Request], share: float) -> None:
        """Let each client ask about `share` times, while their number changes."""
        asked: list[Sequence] = []
        for clients in CLIENTS:
            left = math.ceil(share * clients)
            while left > 0:
                asked += [self._ask(next(requests)) for _ in range(clients - len(asked))]
                self._step()
                waiting = [sequence for sequence in asked if sequence.reason is None]
                left -= len(asked) - len(waiting)
                asked = waiting

    def _ask(self, request: Request) -> Sequence:
        sequence = make_sequence(request.prompt, request.answer)
        self.schedule.add(sequence)
        return sequence

    def _step(self) -> None:
        planned = plan(self.schedule)
        assert planned is not None
        sampled = sum(row.draw >= 0 for row in planned.rows)
        self.seconds += self.costs.seconds(planned.bucket)
        self.ideal += unpadded(planned, self.costs)
        self.counts.add(planned.shape)
        self.generated += sampled
        result = Result(
            number=planned.step.number, tokens=ints([5] * sampled), logprobs=floats([-1.0] * sampled)
        )
        commit(self.schedule, planned, result)


def unpadded(planned: PlannedStep, costs: Costs) -> float:
    """Return the seconds of a step that computes every row by itself, and nothing else."""
    if not planned.bucket.prefill:
        return costs.seconds(planned.shape)
    linear = max(costs.weights, sum(row.length for row in planned.rows) * costs.token)
    alone = [Bucket(1, row.length, -(-row.start // costs.block_size), prefill=True) for row in planned.rows]
    return (
        costs.start
        + linear
        + sum(costs.seconds(shape) - costs.prefill(1, shape.tokens, 0) for shape in alone)
    )


@attrs.frozen
class Figures:
    """Figures of one strategy under one workload on one card."""

    strategy: str
    graphs: int
    waste: float
    """Time that padding adds to the steps, as a share of the time without it."""
    rate: float
    """Generated tokens per second."""


def measure(workload: str, card: str, strategy: str, buckets: Buckets, share: float) -> Figures:
    """Serve a workload."""
    run = serve(workload, card, buckets, share, seed=1)
    waste, rate = run.seconds / run.ideal - 1, run.generated / run.seconds
    return Figures(strategy, len(list(buckets)), waste, rate)


def serve(workload: str, card: str, buckets: Buckets, share: float, seed: int) -> Run:
    rng, make = random.Random(seed), WORKLOADS[workload]
    run = Run(Schedule(LIMITS, buckets, make_allocator(LIMITS, BLOCKS)), costs_of(card))
    run.serve(iter(lambda: make(rng), None), share)
    return run


def costs_of(card: str) -> Costs:
    return Costs.of(LLAMA_8B, GAUDI.cards[card])


def buckets_of(card: str, **bucketing: Any) -> Buckets:
    chosen = Bucketing(costs=costs_of(card), **bucketing)
    return make_buckets(LIMITS, DEVICE, chosen, blocks=BLOCKS)


class NoPadding(Buckets):
    """A graph for every shape, which no strategy can reach."""

    def find(self, shape: Bucket) -> Bucket:
        return shape


def others(card: str) -> Iterator[tuple[str, Buckets]]:
    """Yield the strategies of TGI-Gaudi and vLLM, with up to one and up to 16 rows in a prefill."""
    limits = ShapeLimits.from_limits(LIMITS, blocks=BLOCKS)
    for name, rows in itertools.product(STRATEGIES, (1, 16)):
        if (name, rows) != ("linear", 16):  # thousands of graphs
            chosen = STRATEGIES[name](limits, {"PROMPT_BS": Range(last=rows)}, BLOCKS)
            buckets = Buckets(LIMITS, limits.closed(chosen), costs_of(card).seconds, flat=True)
            yield f"{name}, {rows}", buckets


def ours(card: str, counts: Mapping[Bucket, int]) -> Iterator[tuple[str, Buckets]]:
    """Yield our buckets for any workload, and for one that was recorded before."""
    for graphs in (32, 64, 122, 256, 512):
        yield "optimal", buckets_of(card, max_graphs=graphs)
    for graphs in (32, 64, 122, 256):
        yield "optimal, recorded", buckets_of(card, max_graphs=graphs, counts=counts)


def compare(workload: str, card: str, share: float) -> list[Figures]:
    """Measure every strategy, and steps without padding last. Shapes are recorded with other requests."""
    counts = serve(workload, card, buckets_of(card), share, seed=2).counts.counts
    every = [*others(card), *ours(card, counts)]
    figures = [measure(workload, card, name, buckets, share) for name, buckets in every]
    exact = NoPadding(LIMITS, [], costs_of(card).seconds, flat=True)
    return [*figures, measure(workload, card, "a graph for every shape", exact, share)]


def table(results: Mapping[tuple[str, str], list[Figures]], workload: str) -> Iterator[str]:
    """Yield the lines of a table of both cards, in Markdown."""
    yield f"| {workload} | graphs | warm-up, min | padded / real, gaudi2 | tokens/s | gaudi3 | tokens/s |"
    yield "| --- " * 7 + "|"
    for two, three in zip(results[workload, "gaudi2"], results[workload, "gaudi3"], strict=True):
        graphs = f"{two.graphs:,} | {two.graphs * 32 * SECONDS_PER_LAYER / 60:.1f}" if two.graphs else "| "
        cells = [f"{1 + f.waste:.3f} | {f.rate:,.0f}" for f in (two, three)]
        yield " | ".join(["", two.strategy, graphs, *cells, ""]).strip()


def draw(results: Mapping[tuple[str, str], list[Figures]], path: Path) -> None:
    """Draw the padding by the number of graphs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(WORKLOADS), figsize=(11, 6), sharex=True, layout="constrained")
    for (workload, card), figures in results.items():
        axis = axes[sorted(GAUDI.cards).index(card), list(WORKLOADS).index(workload)]
        for name in dict.fromkeys(f.strategy for f in figures[:-1]):
            points = [(f.graphs, 100 * f.waste) for f in figures if f.strategy == name]
            axis.plot(*zip(*points, strict=True), "o-" if len(points) > 1 else "s", label=name, markersize=4)
        axis.set(xscale="log", ylim=(0, None), title=f"{workload}, {card}")
        axis.grid(alpha=0.3)
    figure.supxlabel("graphs")
    figure.supylabel("seconds that padding adds, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=7, fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=2, help="how often each client asks (default: 2)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw a picture")
    options = parser.parse_args()
    results = {
        (workload, card): compare(workload, card, options.share)
        for workload in WORKLOADS
        for card in GAUDI.cards
    }
    for workload in WORKLOADS:
        print(*table(results, workload), "", sep="\n")
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
