"""Replicas of a model under shared prefixes: which policy of routing serves best. On a simulated clock.

Every replica is the product's own schedule, with its blocks, prefix cache, `plan` and `commit`; a step takes
as long as the roofline of `tgi plan` says of Llama-3.1-8B on a Gaudi 3. The policy "prefix-aware" is the
product's `route`. Conversations begin at random (Poisson, or in bursts: three times the rate for a quarter of
each second), share one of many system prompts (the k-th is 1/k as frequent), and go on after the user has
read the answer. All caches are empty at first; the figures are of the second half of the time.

    python benchmarks/replicas.py --replicas 1 10 100 1000 > runs.jsonl
    python benchmarks/replicas.py --replicas 10 --rates 16 28 56 --seconds 8
    python benchmarks/replicas.py --decoding-tokens 0 2 8 32 128 --policies prefix-aware
    python benchmarks/replicas.py --plot docs/images/replicas.png runs.jsonl
"""

import argparse
import heapq
import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from tgi.device.costs import LLAMA_8B, Costs
from tgi.device.hpu import SPEC
from tgi.limits import Limits
from tgi.planning.buckets import Bucketing, make_buckets
from tgi.scheduler import Sequence, Token, router
from tgi.scheduler.blocks import Prefixes
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import plan
from tgi.scheduler.schedule import PlannedStep, Schedule
from tgi.testing.builders import make_allocator, make_sequence
from tgi.testing.fake_executor import FakeExecutor

LIMITS = Limits(
    max_total_tokens=4096, max_batch_prefill_tokens=2048, max_batch_size=64, block_size=SPEC.block_size
)
CARD = SPEC.cards["gaudi3"]
COSTS = Costs.of(LLAMA_8B, CARD, SPEC.block_size)
BLOCKS = 2000
"""KV blocks of a replica: 34 GB, as where other models share the card."""
SYSTEM_PROMPTS_PER_REPLICA = 8
SYSTEM_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 1024, (32, 256), (16, 160)
TURNS, READING_SECONDS = (1, 4), 1.0
VOCABULARY = 128_000
BURST = 3.0
"""Multiple of the rate in a burst; between bursts the rate is so low that the mean is the same."""
BURST_SECONDS, BURST_SHARE = 1.0, 0.25

Policy = Callable[[Sequence, list[Schedule]], int]


@attrs.define
class Conversation:
    """The turns of one user."""

    tokens: list[int]
    turns: int


@attrs.define(eq=False)
class Request:
    """A turn; receives its tokens as a client's channel does."""

    conversation: Conversation
    arrived: float
    clock: "Cluster"
    answer: list[int] = attrs.field(factory=list)
    first: float = 0.0
    """Time of the first token; 0 before it."""
    last: float = 0.0

    def send_nowait(self, value: object) -> None:
        """Take a token."""
        assert isinstance(value, Token)
        self.last = self.clock.now
        self.clock.tokens += 1
        if not self.answer:
            self.first = self.last
        self.answer.append(value.id)

    def close(self) -> None:
        """Let the user read, and ask again."""
        self.clock.finished(self)


@attrs.define(eq=False)
class Cluster:
    """Schedules, a policy, and one simulated clock."""

    policy: Policy
    rng: random.Random
    schedules: list[Schedule]
    ranks: list[FakeExecutor]
    now: float = 0.0
    tokens: int = 0
    """Number of tokens generated."""
    requests: list[Request] = attrs.field(factory=list)
    _events: list[tuple[float, int, Callable[[], None]]] = attrs.field(factory=list)
    _order: Iterator[int] = attrs.field(factory=itertools.count)
    _busy: set[int] = attrs.field(factory=set)

    @classmethod
    def of(cls, replicas: int, policy: Policy, seed: int) -> "Cluster":
        """Make replicas that have computed nothing."""
        buckets = make_buckets(LIMITS, SPEC, Bucketing(costs=COSTS))
        rng, prefixes = random.Random(seed), Prefixes()
        return cls(
            policy,
            rng,
            [
                Schedule(LIMITS, buckets, make_allocator(LIMITS, BLOCKS, prefixes=prefixes))
                for _ in range(replicas)
            ],
            [FakeExecutor(lambda params, draw: draw + params.sampling.seed) for _ in range(replicas)],
        )

    def at(self, time: float, event: Callable[[], None]) -> None:
        """Let something happen."""
        heapq.heappush(self._events, (time, next(self._order), event))

    def run(self, end: float) -> None:
        """Run until a time."""
        while self._events and self._events[0][0] < end:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def ask(self, conversation: Conversation) -> None:
        """Route the next turn of a conversation."""
        question = [self.rng.randrange(VOCABULARY) for _ in range(self.rng.randint(*QUESTION_TOKENS))]
        conversation.tokens += question
        sequence = make_sequence(list(conversation.tokens), self.rng.randint(*ANSWER_TOKENS))
        self.requests.append(request := Request(conversation, self.now, self))
        sequence.events = request
        replica = self.policy(sequence, self.schedules)
        self.schedules[replica].add(sequence)
        if replica not in self._busy:
            self._step(replica)

    def finished(self, request: Request) -> None:
        """Let a user who has got an answer ask again."""
        conversation = request.conversation
        conversation.tokens += request.answer
        conversation.turns -= 1
        room = LIMITS.max_total_tokens - QUESTION_TOKENS[1] - ANSWER_TOKENS[1]
        if conversation.turns and len(conversation.tokens) < room:
            self.at(self.now + self.rng.expovariate(1 / READING_SECONDS), lambda: self.ask(conversation))

    def _step(self, replica: int) -> None:
        planned = plan(self.schedules[replica])
        if planned is None:
            self._busy.discard(replica)
            return
        self._busy.add(replica)
        self.at(self.now + COSTS.seconds(planned.bucket), lambda: self._commit(replica, planned))

    def _commit(self, replica: int, planned: PlannedStep) -> None:
        commit(self.schedules[replica], planned, self.ranks[replica].execute(planned.step))
        self._step(replica)


def arrivals(rng: random.Random, rate: float, seconds: float, bursty: bool) -> Iterator[float]:
    """Yield times at which conversations begin."""
    now = 0.0
    calm = (1 - BURST * BURST_SHARE) / (1 - BURST_SHARE)
    while True:
        factor = 1.0
        if bursty:
            factor = BURST if now % BURST_SECONDS < BURST_SHARE * BURST_SECONDS else calm
        now += rng.expovariate(rate * BURST)  # thinned to the rate of the moment
        if now > seconds:
            return
        if rng.random() < factor / BURST:
            yield now


def round_robin() -> Policy:
    """Take turns."""
    turn = itertools.count()
    return lambda _sequence, schedules: next(turn) % len(schedules)


def least_load(_sequence: Sequence, schedules: list[Schedule]) -> int:
    """Choose where the fewest sequences are."""
    loads = [len(schedule.running) + len(schedule.waiting) for schedule in schedules]
    return loads.index(min(loads))


def longest_prefix(sequence: Sequence, schedules: list[Schedule]) -> int:
    """Choose where most is cached, however much is to do there."""
    return max(
        range(len(schedules)),
        key=lambda index: (
            schedules[index].allocator.cached_tokens(sequence),
            -len(schedules[index].running) - len(schedules[index].waiting),
        ),
    )


POLICIES: dict[str, Callable[[], Policy]] = {
    "round robin": round_robin,
    "least load": lambda: least_load,
    "longest prefix": lambda: longest_prefix,
    "prefix-aware": lambda: router.route,
}


def simulate(
    name: str, replicas: int, rate: float, seconds: float, bursty: bool, seed: int
) -> dict[str, object]:
    """Serve for a time, and return the figures of its second half.

    `rate` is of conversations a second for each replica.
    """
    cluster = Cluster.of(replicas, POLICIES[name](), seed)
    rng = random.Random(seed)  # the same conversations for each policy
    prompts = [
        [rng.randrange(VOCABULARY) for _ in range(SYSTEM_TOKENS)]
        for _ in range(SYSTEM_PROMPTS_PER_REPLICA * replicas)
    ]
    weights = list(itertools.accumulate(1 / (rank + 1) for rank in range(len(prompts))))
    for time in arrivals(rng, rate * replicas, seconds, bursty):
        (prompt,) = rng.choices(prompts, cum_weights=weights)
        conversation = Conversation(list(prompt), rng.randint(*TURNS))
        cluster.at(time, lambda one=conversation: cluster.ask(one))  # type: ignore[misc]
    cluster.run(seconds / 2)
    before, tokens = _looked_up(cluster), cluster.tokens
    cluster.run(seconds)
    hits, queries = _looked_up(cluster) - before
    asked = [request for request in cluster.requests if request.arrived >= seconds / 2]
    # Whoever still waits has waited for as long as this, at least.
    first = np.array([(request.first or seconds) - request.arrived for request in asked])
    going = [one for one in asked if len(one.answer) > 1]
    each = np.array([(one.last - one.first) / (len(one.answer) - 1) for one in going])
    return {
        "policy": name,
        "replicas": replicas,
        "traffic": "bursty" if bursty else "poisson",
        "rate": rate,
        "requests": len(asked),
        "tokens_per_second": round((cluster.tokens - tokens) / (seconds / 2) / replicas),
        "hit_rate": round(hits / queries, 3),
        "first_token_ms": [round(1e3 * float(np.percentile(first, share))) for share in (50, 90, 99)],
        "between_tokens_ms": [round(1e3 * float(np.percentile(each, share)), 1) for share in (50, 99)],
    }


def _looked_up(cluster: Cluster) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Return how many prompt tokens were found in caches, and how many were looked up."""
    return np.sum([(one.prefix_hit_tokens, one.prefix_query_tokens) for one in cluster.schedules], axis=0)


FIGURES: dict[str, Callable[[dict[str, Any]], float]] = {
    "share of prompt tokens\nfound in a cache": lambda run: float(run["hit_rate"]),
    "tokens a second\nfor each replica": lambda run: float(run["tokens_per_second"]),
    "first token: median, ms": lambda run: float(run["first_token_ms"][0]),
    "first token: 99th percentile, ms": lambda run: float(run["first_token_ms"][2]),
}


def draw(runs: list[dict[str, Any]], file: Path) -> None:
    """Draw the figures of each policy by the number of replicas, for each kind of traffic."""
    import matplotlib.pyplot as plt

    kinds = sorted({run["traffic"] for run in runs}, reverse=True)
    figure, axes = plt.subplots(
        len(FIGURES),
        len(kinds),
        figsize=(9, 10),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, kind in enumerate(kinds):
        axes[0][column].set_title(kind)
        axes[-1][column].set_xlabel("replicas")
        for (title, figure_of), axis in zip(FIGURES.items(), axes[:, column], strict=True):
            for policy in POLICIES:
                found = [run for run in runs if (run["policy"], run["traffic"]) == (policy, kind)]
                found.sort(key=lambda run: int(run["replicas"]))
                places = [run["replicas"] for run in found]
                axis.plot(places, [figure_of(run) for run in found], marker="o", label=policy)
            axis.grid(alpha=0.3)
            if not column:
                axis.set_ylabel(title)
    numbers = sorted({run["replicas"] for run in runs})
    for axis in axes.flat:
        axis.set_ylim(bottom=0)
        axis.set_xscale("log")
        axis.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axis.minorticks_off()
    figure.legend(*axes[0][0].get_legend_handles_labels(), ncols=len(POLICIES), loc="outside upper center")
    figure.savefig(file, dpi=110)


def main() -> None:
    """Simulate what the command line says and print a line of JSON for each run, or draw such lines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", type=int, nargs="+", default=[10])
    parser.add_argument("--rates", type=float, nargs="+", default=[28.0], help="for each replica")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--traffic", nargs="+", choices=["poisson", "bursty"], default=["poisson", "bursty"])
    parser.add_argument("--decoding-tokens", type=int, nargs="+", default=[router.DECODING_TOKENS])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the runs of a file instead")
    parser.add_argument("runs", type=Path, nargs="?", help="the file, with a line of JSON for each run")
    options = parser.parse_args()
    if options.plot is not None:
        draw([json.loads(line) for line in options.runs.read_text().splitlines()], options.plot)
        return
    for replicas, rate, traffic, cost, name in itertools.product(
        options.replicas, options.rates, options.traffic, options.decoding_tokens, options.policies
    ):
        router.DECODING_TOKENS = cost
        row = simulate(name, replicas, rate, options.seconds, traffic == "bursty", options.seed)
        print(json.dumps(row | {"decoding_tokens": cost}), flush=True)


if __name__ == "__main__":
    main()
