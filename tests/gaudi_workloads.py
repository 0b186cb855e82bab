"""Random mixed workloads, and an engine in this process that carries them out the same way on every device.

What arrives, leaves and is aborted when is counted in turns of the engine, not in seconds, so that two
devices that give the same tokens get the very same steps.
"""

import random
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import msgspec
from tgi_simulated_gaudi import Card, KVGuard
from tgi_simulated_gaudi.device import SimulatedHpu

from tgi.device.base import Device
from tgi.device.costs import PROMPT_SLICE
from tgi.limits import Limits
from tgi.planning.buckets import Bucketing, make_buckets
from tgi.plugins import devices, load_plugins
from tgi.protocol import Result, Step, unpack_ints
from tgi.sampling import SamplingParams
from tgi.scheduler import Buckets, Sequence, State
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import plan
from tgi.scheduler.schedule import TIES, PlannedStep, Schedule
from tgi.scheduler.warming import warm_up_steps
from tgi.testing.builders import make_allocator
from tgi.testing.driver import load_command
from tgi.text.detokenizer import Detokenizer
from tgi.text.grammar import GrammarCompiler, GrammarSpec, Matcher
from tgi.text.stopping import StoppingCriteria
from tgi.text.tokenizer import Tokenizer
from tgi.weights import Shard
from tgi.worker import launching
from tgi.worker.lanes import entries_of
from tgi.worker.runner import Runner

VOCAB = 384
LIMITS = Limits(
    max_total_tokens=96,
    max_input_tokens=95,
    max_batch_size=5,
    max_batch_prefill_tokens=48,
    block_size=8,
    max_waiting_tokens=3,
)
BLOCKS = LIMITS.max_batch_size * LIMITS.max_total_tokens // LIMITS.block_size
GRAPHS = 16
MOST_TOP = 5
GRAMMARS = (
    GrammarSpec("regex", "[a-f]{3,12}"),
    GrammarSpec("regex", "(yes|no|maybe), (yes|no)+"),
    GrammarSpec("json", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
)


@attrs.frozen
class Request:
    """One generation of a workload."""

    turn: int
    """Turn in which it arrives."""
    prompt: list[int]
    new_tokens: int
    sampling: SamplingParams
    grammar: GrammarSpec | None
    prompt_top: int | None
    """Number of most likely tokens per position of the prompt; None for no log-probabilities of it."""
    leaves: int | None
    """Number of tokens after which the client leaves, 0 for soon after its arrival; None if it stays."""


@attrs.frozen
class Workload:
    """Requests, and the size of the KV cache."""

    requests: list[Request]
    blocks: int
    warm: bool
    """Whether the cache still holds the blocks of the workload before."""


@attrs.define
class Trace:
    """Results of a request."""

    tokens: list[int] = attrs.field(factory=list)
    logprobs: list[float] = attrs.field(factory=list)
    tops: list[list[tuple[int, float]]] = attrs.field(factory=list)
    prompt_logprobs: list[float] = attrs.field(factory=list)
    prompt_tops: list[list[tuple[int, float]]] = attrs.field(factory=list)


def random_sampling(rng: random.Random) -> SamplingParams:
    """Draw parameters: each option is on in one of three, sampling in two of three."""

    def some(value: Any, off: Any) -> Any:
        return value if rng.random() < 1 / 3 else off

    sample = rng.random() < 2 / 3
    biased = rng.sample(range(2, VOCAB), some(launching.MAX_ENTRIES + 30, 12))
    ends = tuple(rng.sample(range(2, VOCAB), some(launching.MAX_ENTRIES + 40, 9)))
    drawing = {
        "temperature": some(rng.uniform(0.3, 2), 1.0),
        "top_k": some(rng.randrange(1, 80), 0),
        "top_p": some(rng.uniform(0.3, 0.99), 1.0),
        "min_p": some(rng.uniform(0.001, 0.2), 0.0),
        "typical_p": some(rng.uniform(0.3, 0.99), 1.0),
    }
    return SamplingParams(
        sample=sample,
        seed=rng.getrandbits(64),
        **(drawing if sample else {}),
        repetition_penalty=some(rng.uniform(0.8, 1.6), 1.0),
        frequency_penalty=some(rng.uniform(-1, 2), 0.0),
        presence_penalty=some(rng.uniform(-1, 2), 0.0),
        count_penalty=some(rng.uniform(-1, 1), 0.0),
        logit_bias=some(tuple((token, rng.uniform(-6, 6)) for token in biased), ()),
        min_tokens=some(rng.randrange(1, 6), 0),
        ends=(1, *ends),
        watermark=some(True, False),
        top_n_tokens=some(rng.randrange(1, MOST_TOP + 1), 0),
    )


def plain_sampling(rng: random.Random) -> SamplingParams:
    """Draw parameters for which the sampler does not need everything, in two of three."""
    if rng.random() < 1 / 3:
        return random_sampling(rng)
    if rng.random() < 1 / 2:
        return SamplingParams(ends=(1,))
    return SamplingParams(
        sample=True,
        seed=rng.getrandbits(64),
        temperature=rng.uniform(0.3, 9),
        top_p=rng.uniform(0.3, 0.99),
        ends=(1,),
    )


def random_workload(number: int) -> Workload:
    """Draw up to eight requests; some prompts share a beginning, within a workload and beyond."""
    rng = random.Random(number)
    common = random.Random(number // 5).choices(range(4, VOCAB), k=80)
    scarce = number % 3 == 0
    requests = []
    for _ in range(rng.randrange(3, 9)):
        prompt = rng.choices(range(4, VOCAB), k=rng.randrange(1, 16))
        if not scarce:
            prompt = common[: rng.choice([0, 0, 17, 40, 70])] + prompt
        sampling = plain_sampling(rng) if number % 2 else random_sampling(rng)
        requests.append(
            Request(
                turn=rng.choice([0, 0, rng.randrange(12)]),
                prompt=prompt,
                new_tokens=rng.randrange(12, 30) if scarce else rng.randrange(1, 10),
                sampling=msgspec.structs.replace(sampling, ends=sampling.ends[:1]) if scarce else sampling,
                grammar=rng.choice([None, None, None, *GRAMMARS]),
                prompt_top=rng.choice([None, None, None, 0, MOST_TOP]),
                leaves=rng.choice([None, None, None, 0, rng.randrange(1, 4)]),
            )
        )
    blocks = 8 if scarce else BLOCKS
    return Workload(requests, blocks, warm=rng.random() < 0.5)


@attrs.define(eq=False)
class Engine:
    """The turns of a scheduler without a clock. Made by `Engine.open`."""

    runner: Runner
    tokenizer: Tokenizer
    buckets: Buckets
    schedule: Schedule
    matchers: dict[GrammarSpec, Matcher]
    card: Card | None
    guard: KVGuard | None
    seen: Counter[str] = attrs.field(factory=Counter)
    """Number of events by name, by which a test sees that they happened."""
    _in_flight: deque[tuple[PlannedStep, Callable[[], Result]]] = attrs.field(factory=deque)

    @classmethod
    def open(cls, folder: Path, device: Device, dtype: str = "float32") -> "Engine":
        """Load, warm up as a server does, and seal."""
        spec = devices(load_plugins())["hpu-sim"]
        buckets = make_buckets(LIMITS, spec, Bucketing(max_graphs=GRAPHS))
        most = max(bucket.rows * bucket.tokens for bucket in buckets if bucket.prefill)
        command = msgspec.structs.replace(
            load_command(folder, dtype=dtype, lanes=LIMITS.max_batch_size, top=MOST_TOP + TIES),
            prefill_tokens=most,
            block_size=LIMITS.block_size,
        )
        runner = Runner.load(command, Shard(), device)
        runner.allocate(BLOCKS + 1)
        card = device.card if isinstance(device, SimulatedHpu) else None
        guard = None
        if card is not None:
            assert runner.cache is not None
            parts = [part for layer in runner.cache.layers for part in layer.tensors]
            guard = KVGuard.watch(card, parts, LIMITS.block_size, pad_block=0)
        for bucket in buckets.to_warm_up() if device.compiles else []:
            for step in warm_up_steps(bucket):
                runner.execute(step)
        runner.seal()
        tokenizer = Tokenizer.from_folder(folder)
        compiler = GrammarCompiler(tokenizer, VOCAB)
        return cls(
            runner=runner,
            tokenizer=tokenizer,
            buckets=buckets,
            schedule=Schedule(LIMITS, buckets, make_allocator(LIMITS, BLOCKS)),
            matchers={spec: compiler.compile(spec) for spec in GRAMMARS},
            card=card,
            guard=guard,
        )

    def run(self, workload: Workload) -> list[Trace]:
        """Run a workload to the end; return one trace per request."""
        if not workload.warm or workload.blocks != self.schedule.allocator.widest.total:
            self.schedule = Schedule(LIMITS, self.buckets, make_allocator(LIMITS, workload.blocks))
        before = attrs.evolve(self.schedule)
        traces = [Trace() for _ in workload.requests]
        sequences = [self._sequence(*pair) for pair in zip(workload.requests, traces, strict=True)]
        pairs = list(zip(workload.requests, sequences, strict=True))
        turn = 0
        while turn <= max(request.turn for request in workload.requests) or self._busy():
            for request, sequence in pairs:
                if request.turn == turn:
                    self.schedule.add(sequence)
            self._turn()
            self._abort(pairs, turn)
            turn += 1
        for sequence, trace in zip(sequences, traces, strict=True):
            trace.prompt_logprobs, trace.prompt_tops = sequence.prompt_logprobs, sequence.prompt_tops
        self.seen["preemptions"] += self.schedule.preemptions - before.preemptions
        self.seen["hits"] += self.schedule.prefix_hit_tokens - before.prefix_hit_tokens
        assert self.schedule.allocator.widest.statistics().used == 0
        return traces

    def _sequence(self, request: Request, trace: Trace) -> Sequence:
        sampling, ends = request.sampling, frozenset(request.sampling.ends)
        if request.grammar:  # as the API does: the grammar alone says when the text may end
            sampling = msgspec.structs.replace(sampling, min_tokens=0, ends=())
        sequence = Sequence(
            prompt=request.prompt,
            max_new_tokens=request.new_tokens,
            sampling=sampling,
            stopping=StoppingCriteria(request.new_tokens, ends, min_tokens=sampling.min_tokens),
            detokenizer=Detokenizer(self.tokenizer, request.prompt),
            matcher=self.matchers[request.grammar].fork() if request.grammar else None,
            prompt_top=request.prompt_top,
        )
        sequence.events = _Into(trace)
        return sequence

    def _busy(self) -> bool:
        return bool(self.schedule.running or self.schedule.waiting or self._in_flight)

    def _abort(self, pairs: list[tuple[Request, Sequence]], turn: int) -> None:
        for request, sequence in pairs:
            gone = request.leaves is not None and turn > request.turn and sequence.generated >= request.leaves
            if gone and sequence.state in (State.WAITING, State.RUNNING):
                self.schedule.remove(sequence, State.ABORTED)
                self.seen["aborts"] += 1

    def _turn(self) -> None:
        """Launch the next step, then commit the one before, as the server does."""
        planned = plan(self.schedule)
        if planned is not None:
            self._in_flight.append((planned, self._launch(planned)))
        if self._in_flight and (planned is None or len(self._in_flight) > 1):
            earlier, wait = self._in_flight.popleft()
            for sequence in commit(self.schedule, earlier, self._wait(wait)):
                assert sequence.matcher is not None
                sequence.matcher.advance(sequence.tokens[-1])
                sequence.matched += 1

    def _launch(self, planned: PlannedStep) -> Callable[[], Result]:
        step = planned.step
        self.seen["steps"] += 1
        self.seen["chunks"] += sum(row.draw < 0 for row in planned.rows)
        self.seen["masks"] += bool(step.masks)
        self.seen["questions"] += bool(step.targets)
        if self.card is None:
            result = self.runner.execute(self._direct(planned))  # what is left of the prompt is not kept
            return lambda: result
        self._tell_owners(planned)
        before = self.card.ledger.counters.copy()
        launched = self.runner.launch(step)
        done = self.card.ledger.counters - before
        questions = (unpack_ints(step.targets) >= 0).sum()
        slices = -(-int(questions) // PROMPT_SLICE)
        assert done["h2d"] == 3 + 2 * _table_writes(step) + slices, (done, step)
        assert done["d2h"] == 2 + 2 * slices, (done, step)
        assert done["host_sync"] == 0, (done, step)
        return launched

    def _direct(self, planned: PlannedStep) -> Step:
        """Devices with shapes as they come count the blocks of each row, those of the step included."""
        if self.runner.device.compiles:
            return planned.step
        reached = max(row.start + row.length for row in planned.rows)
        bucket = msgspec.structs.replace(planned.bucket, blocks=-(-reached // LIMITS.block_size))
        return msgspec.structs.replace(planned.step, bucket=bucket)

    def _wait(self, wait: Callable[[], Result]) -> Result:
        before = self.card.ledger.counters.copy() if self.card else Counter[str]()
        result = wait()
        if self.card:
            done = self.card.ledger.counters - before
            assert not set(done) - {"host_sync"}, done
        assert result.statistics.keys() <= {"device_memory_bytes"}, "compilations, fallbacks or misses"
        self.seen["undecided"] += int((unpack_ints(result.tokens) < 0).sum())
        return result

    def _tell_owners(self, planned: PlannedStep) -> None:
        """Let only a row write its blocks, from its first new token on; fill free blocks with rubbish."""
        assert self.guard is not None
        held = {block for sequence in self.schedule.running for block in sequence.tables[0].blocks}
        cached = self.schedule.allocator.widest._cached
        self.guard.own({}, shared=[*held, *cached])
        self.guard.scramble()
        size = LIMITS.block_size
        self.guard.own(
            {row.sequence.number: row.sequence.tables[0].blocks[row.start // size :] for row in planned.rows},
            shared=[
                block for row in planned.rows for block in row.sequence.tables[0].blocks[: row.start // size]
            ],
        )


def _table_writes(step: Step) -> int:
    """Runs of the program that writes what the sequences of a step bring into the sampler's tables."""
    return sum(-(-len(entries_of(params, VOCAB)[0]) // launching.MAX_ENTRIES) for params in step.params)


@attrs.frozen
class _Into:
    """Receiver of a sequence's events, which fill its trace."""

    trace: Trace

    def send_nowait(self, value: Any) -> None:
        self.trace.tokens.append(value.id)
        self.trace.logprobs.append(value.logprob)
        self.trace.tops.append(value.top)

    def close(self) -> None:
        pass
