"""Llama-3.1-405B on two boxes of 8 cards: two stages of 8 cards beside 16 cards that share every layer.

The scheduler is the server's own, on a simulated clock; the ranks are the roofline of `tgi plan`, with the
network between the boxes in it. Clients are a closed loop: each sends its next request when its last answer
has ended. The bubble is the share of their time in which stages have no step.

    python benchmarks/stages.py
    python benchmarks/stages.py --card gaudi2 --clients 32 --prompt 4096
"""

import argparse
import json
import tempfile
from collections import deque
from pathlib import Path
from statistics import mean, median
from typing import Any

import attrs
import msgspec
import trio
from trio.testing import MockClock

from tgi.config import Options
from tgi.layers.loading import describe
from tgi.metrics import Metrics
from tgi.planning.plan import find_card, make_plan
from tgi.planning.setup import read_setup
from tgi.planning.speeds import Roofline
from tgi.plugins import devices, load_plugins
from tgi.protocol import Result, Step
from tgi.scheduler import Scheduler
from tgi.testing.builders import generating, make_allocator, make_sequence
from tgi.testing.fake_executor import FakeExecutor, counting

LLAMA_31_405B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
HOP_SECONDS = 0.4e-3
"""Time between the server and a rank, one way: half of what the server takes for a step of 256 rows."""
LAYOUTS = {"16 ranks": (16, 1), "2 stages of 8 ranks": (8, 2)}


class SimulatedStages(FakeExecutor):
    """Ranks that take as long for a step as a roofline says, on trio's clock."""

    def __init__(self, roofline: Roofline, vocab_size: int) -> None:
        super().__init__(counting(vocab_size))
        self.roofline = roofline
        self.busy = [0.0] * len(roofline.stages)
        """Time that each stage has computed."""
        self._free = [0.0] * len(roofline.stages)
        self._ends: deque[tuple[float, float]] = deque()
        """When the result of each step is at the server, and how long the last stage took for it."""

    async def send(self, step: Step) -> None:
        """Begin in the first stage as soon as that is free."""
        await super().send(step)
        sent = ready = trio.current_time() + HOP_SECONDS
        before = self._free[-1]
        for number, stage in enumerate(self.roofline.stages):
            begin, seconds = max(ready, self._free[number]), stage.seconds(step.bucket)
            self._free[number] = begin + seconds
            self.busy[number] += seconds
            ready = begin + seconds + self.roofline.sending(step.bucket)
        end = self._free[-1]
        self._ends.append((end + HOP_SECONDS, end - max(sent, before)))

    async def receive(self) -> Result:
        """Wait for the oldest step's end."""
        end, seconds = self._ends[0]
        await trio.sleep_until(end)
        self._ends.popleft()
        return msgspec.structs.replace(await super().receive(), seconds=seconds)


@attrs.frozen
class Measured:
    """What clients and cards have seen."""

    tokens_per_second: float
    first_token: float
    """Median seconds to the first token."""
    gap: float
    """Mean seconds between two tokens."""
    bubble: float
    """Share of the time in which a stage has no step."""


async def measure(
    scheduler: Scheduler, ranks: SimulatedStages, clients: int, requests: int, prompt: int, answer: int
) -> Measured:
    """Let every client send that many requests, one after another."""
    firsts: list[float] = []
    gaps: list[float] = []
    number = 0

    async def live() -> None:
        nonlocal number
        for _ in range(requests):
            number += 1
            tokens = [number % 1000 + 5, *range(5, prompt + 4)]  # no two prompts share a block
            began, times = trio.current_time(), []
            with generating(scheduler, make_sequence(tokens, answer)) as events:
                async for _ in events:
                    times.append(trio.current_time())
            firsts.append(times[0] - began)
            gaps.append((times[-1] - times[0]) / (len(times) - 1))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scheduler.run)
        async with trio.open_nursery() as living:
            for _ in range(clients):
                living.start_soon(live)
        nursery.cancel_scope.cancel()
    elapsed = trio.current_time() - began
    return Measured(
        tokens_per_second=clients * requests * answer / elapsed,
        first_token=median(firsts),
        gap=mean(gaps),
        bubble=1 - mean(ranks.busy) / elapsed,
    )


def run(
    card: str, shards: int, stages: int, clients: int, requests: int, prompt: int, answer: int
) -> Measured:
    """Plan as the server does, and measure."""
    options = Options(
        device=card,
        num_shard=shards,
        pipeline_parallel_size=stages,
        max_total_tokens=prompt + answer,
        max_batch_size=128,
        max_concurrent_requests=clients,
    )
    device, rates = find_card(card, devices(load_plugins()).values())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA_31_405B))
        setup = read_setup(Path(folder), options, device, {})
        plan = make_plan("Llama-3.1-405B", setup, describe(setup.describe_command()), rates)
    assert plan.roofline is not None
    planner, limits = plan.planner, plan.planner.limits
    buckets = planner.choose_again(planner.choose(), plan.memory, planner.attention(planner.choose()))
    ranks = SimulatedStages(plan.roofline, LLAMA_31_405B["vocab_size"])
    allocator = make_allocator(limits, plan.memory.widest.blocks)
    scheduler = Scheduler(
        ranks, limits, buckets, allocator, Metrics(limits.max_input_tokens, prompt + answer)
    )
    clock = MockClock(autojump_threshold=0)
    return trio.run(measure, scheduler, ranks, clients, requests, prompt, answer, clock=clock)


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--card", default="gaudi3")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--requests", type=int, default=3, help="by each client")
    parser.add_argument("--prompt", type=int, default=1024, help="tokens")
    parser.add_argument("--answer", type=int, default=256, help="tokens")
    options = parser.parse_args()
    print("| clients | layout | tokens/s | time to first token, s | between tokens, ms | bubble |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for clients in options.clients:
        for name, (shards, stages) in LAYOUTS.items():
            measured = run(
                options.card, shards, stages, clients, options.requests, options.prompt, options.answer
            )
            print(
                f"| {clients} | {name} | {measured.tokens_per_second:,.0f} | {measured.first_token:.2f} | "
                f"{1e3 * measured.gap:.1f} | {measured.bubble:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
