"""Two engines with real ranks under shared prefixes: prefix-aware routing beside round robin, as ratios.

Clients take turns at a few long prefixes with a question of their own behind each. The caches of both engines
together hold all prefixes, one alone does not. The policies alternate, each round with new prefixes.

    python benchmarks/prefixes.py                     # the demo model, two engines with one thread each
    python benchmarks/prefixes.py --rounds 8 --clients 6
"""

import argparse
import itertools
import json
import random
import statistics
from pathlib import Path

import attrs
import trio

from tgi.config import DEMO_MODEL
from tgi.errors import ApiError
from tgi.limits import Limits
from tgi.scheduler import Router, Scheduler, Sequence
from tgi.scheduler.blocks import Prefixes
from tgi.testing.builders import make_sequence
from tgi.testing.engine import open_engine

PREFIXES, PREFIX_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 12, 640, 24, 8
LIMITS = Limits(
    max_input_tokens=1000, max_total_tokens=1024, max_batch_size=4, max_batch_total_tokens=12 * 640
)
VOCABULARY = 500


class RoundRobin(Router):
    """Replicas that take turns."""

    def __init__(self, *schedulers: Scheduler) -> None:
        super().__init__(*schedulers)
        self._turns = itertools.cycle(schedulers)

    def _choose(self, _sequence: Sequence) -> Scheduler:
        return next(self._turns)


@attrs.frozen
class Round:
    """One policy with prefixes that no cache has seen."""

    hit_rate: float
    first_token_seconds: list[float]
    seconds: float


async def measure(router: Router, rng: random.Random, clients: int, requests: int) -> Round:
    """Serve the requests of one round."""
    prefixes = [[rng.randrange(9, VOCABULARY) for _ in range(PREFIX_TOKENS)] for _ in range(PREFIXES)]
    questions = [
        [*rng.choice(prefixes), *(rng.randrange(9, VOCABULARY) for _ in range(QUESTION_TOKENS))]
        for _ in range(requests)
    ]
    waits: list[float] = []

    async def ask() -> None:
        while questions:
            sequence = make_sequence(questions.pop(), ANSWER_TOKENS)
            asked, first = trio.current_time(), 0.0
            with router.generating([sequence]) as items:
                async for _, item in items:
                    assert not isinstance(item, ApiError)
                    first = first or trio.current_time()
            waits.append(first - asked)

    before, began = router.statistics(), trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(ask)
    after = router.statistics()
    queries = after.prefix_query_tokens - before.prefix_query_tokens
    hits = after.prefix_hit_tokens - before.prefix_hit_tokens
    return Round(hits / queries, waits, trio.current_time() - began)


async def run(folder: Path, rounds: int, clients: int, requests: int) -> None:
    """Print a line of JSON for each pair of rounds, and the medians of the ratios."""
    rng, ratios, prefixes = random.Random(0), [], Prefixes()
    async with (
        open_engine(folder, LIMITS, dtype="bfloat16", threads=1, prefixes=prefixes) as one,
        open_engine(folder, LIMITS, dtype="bfloat16", threads=1, prefixes=prefixes) as other,
    ):
        routers = {"round robin": RoundRobin(one, other), "prefix-aware": Router(one, other)}
        for number in range(rounds):
            order = list(routers)[:: 1 if number % 2 else -1]
            found = {name: await measure(routers[name], rng, clients, requests) for name in order}
            aware, turns = found["prefix-aware"], found["round robin"]
            row = {
                "hit_rate": {name: round(one.hit_rate, 3) for name, one in found.items()},
                "first_token_ms": {
                    name: round(1e3 * statistics.median(one.first_token_seconds), 1)
                    for name, one in found.items()
                },
                "first_token": statistics.mean(turns.first_token_seconds)
                / statistics.mean(aware.first_token_seconds),
                "throughput": turns.seconds / aware.seconds,
            }
            ratios.append(row)
            print(json.dumps(row), flush=True)
    for name in ("first_token", "throughput"):
        values = sorted(row[name] for row in ratios)  # type: ignore[type-var]
        print(f"{name}: {statistics.median(values):.2f} times as good ({values[0]:.2f} to {values[-1]:.2f})")


def main() -> None:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=96)
    options = parser.parse_args()
    trio.run(run, options.model, options.rounds, options.clients, options.requests)


if __name__ == "__main__":
    main()
