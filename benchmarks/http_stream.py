"""How much streaming the server process can carry, with a fake executor in place of a device.

    python benchmarks/http_stream.py                      # both parts
    python benchmarks/http_stream.py http --clients 256 --seconds 10
    python benchmarks/http_stream.py engine --rows 256

*http*: clients stream `/generate_stream` over real connections from a server in a process of its own, whose
executor answers every step at once or after --step-ms. Reported: tokens streamed per second of wall time, and
per second of the server process's CPU time ("per core": the server process runs on one).

*engine*: the host's share of one decode step without HTTP: `plan`, encoding the step, decoding the result,
`commit` with a real tokenizer; median and best of --steps steps of --rows running rows.
"""

import argparse
import multiprocessing
import random
import selectors
import socket
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from tgi.api import transport
from tgi.api.app import create_app
from tgi.api.grammars import Grammars
from tgi.api.service import Engine, ModelInfo, Service
from tgi.lifecycle import Lifecycle, Phase
from tgi.limits import Limits
from tgi.metrics import Metrics
from tgi.plugins import DeviceSpec
from tgi.protocol import LaneParams, Result, Step, decode_report, encode, floats, frame, ints, unpack_ints
from tgi.sampling import SamplingParams
from tgi.scheduler import Buckets, Scheduler, Sequence, Token
from tgi.scheduler.commit import commit
from tgi.scheduler.policy import plan
from tgi.scheduler.schedule import Schedule
from tgi.testing.builders import make_allocator
from tgi.testing.fake_executor import FakeExecutor
from tgi.testing.models import make_tokenizer
from tgi.text.chat_template import ChatTemplates
from tgi.text.detokenizer import Detokenizer
from tgi.text.grammar import GrammarCompiler
from tgi.text.stopping import StoppingCriteria
from tgi.text.tokenizer import Tokenizer

VOCABULARY = 512
DEVICE = DeviceSpec(
    name="fake", implementation="", block_size=128, batch_size=256, prefill_tokens=4096, compiles=False
)


def limits(rows: int) -> Limits:
    return Limits(
        max_concurrent_requests=2 * rows,
        max_batch_size=rows,
        max_total_tokens=4096,
        max_batch_prefill_tokens=4096,
        block_size=DEVICE.block_size,
    )


def token_of(params: LaneParams, draw: int) -> int:
    """A token that is text and ends none."""
    return 4 + (params.sampling.seed + draw) % 250


def answer(step: Step, rng: random.Random) -> Result:
    rows = int(unpack_ints(step.samples).sum())
    tokens = ints([rng.randrange(4, 260) for _ in range(rows)])
    result = Result(number=step.number, tokens=tokens, logprobs=floats([-rng.random() for _ in range(rows)]))
    decoded = decode_report(encode(result))
    assert isinstance(decoded, Result)
    return decoded


def run_server(ready: Connection, clients: int, step_seconds: float) -> None:
    """Serve on a free port, which is sent through `ready`, until killed."""

    async def main() -> None:
        tokenizer = Tokenizer.from_folder(Path(folder))
        lifecycle = Lifecycle(phase=Phase.READY)
        of = limits(clients)
        scheduler = Scheduler(
            FakeExecutor(token_of, step_seconds), of, Buckets(of), make_allocator(of, 40 * clients), Metrics()
        )
        info = ModelInfo(
            model_id="fake", served_name="fake", dtype="none", device="fake", vocab_size=VOCABULARY
        )
        service = Service(limits=of, lifecycle=lifecycle, metrics=Metrics())
        service.engine = Engine(
            scheduler=scheduler,
            tokenizer=tokenizer,
            templates=ChatTemplates({}, {}),
            grammars=Grammars(GrammarCompiler(tokenizer, VOCABULARY)),
            limits=of,
            model=info,
        )
        config = Config()
        config.bind = ["127.0.0.1:0"]
        transport.configure(config, keep_alive_seconds=75)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scheduler.run)
            bound = await nursery.start(serve, create_app(service), config)
            ready.send(int(bound[0].rsplit(":", 1)[1]))

    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder), VOCABULARY)
        trio.run(main)


def stream_tokens(
    port: int, clients: int, seconds: float, server: psutil.Process
) -> tuple[int, float, float]:
    """Read `clients` streams; (tokens, wall seconds, server's CPU seconds), after a second to get going."""
    body = b'{"inputs":"What is Deep Learning?","parameters":{"max_new_tokens":4000}}'
    head = "POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    selector = selectors.DefaultSelector()

    def open_stream() -> None:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(head.encode() + body)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ)

    for _ in range(clients):
        open_stream()
    tokens, begin = 0, time.perf_counter()
    started: tuple[float, float] | None = None
    while (now := time.perf_counter()) - begin < seconds + 1:
        if started is None and now - begin >= 1:
            tokens, started = 0, (now, sum(server.cpu_times()[:2]))
        for key, _ in selector.select(timeout=0.1):
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            data = connection.recv(1 << 16)
            tokens += data.count(b"data:")
            if not data or b'"generated_text":"' in data:
                selector.unregister(connection)
                connection.close()
                open_stream()
    assert started is not None
    return tokens, time.perf_counter() - started[0], sum(server.cpu_times()[:2]) - started[1]


def measure_http(clients: int, seconds: float, step_ms: float) -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=run_server, args=(theirs, clients, step_ms / 1000), daemon=True)
    process.start()
    try:
        port = ours.recv()
        tokens, wall, cpu = stream_tokens(port, clients, seconds, psutil.Process(process.pid))
    finally:
        process.kill()
        process.join()
    print(
        f"http: {clients} clients, {step_ms} ms a step: {tokens / wall:,.0f} tokens/s of wall time, "
        f"{tokens / cpu:,.0f} per CPU second of the server ({cpu / wall:.0%} of a core; "
        f"{1e3 * clients * cpu / tokens:.2f} ms for a token of each client)"
    )


class Sink:
    """A client that takes everything and keeps nothing."""

    def send_nowait(self, value: object) -> None:
        assert isinstance(value, Token)

    def close(self) -> None:
        raise AssertionError("no sequence ends here")


def running_schedule(rows: int, tokenizer: Tokenizer) -> Schedule:
    of = limits(rows)
    schedule = Schedule(of, Buckets(of), make_allocator(of, 40 * rows))
    rng = random.Random(0)
    for _ in range(rows):
        prompt = [rng.randrange(4, 260) for _ in range(100)]
        sequence = Sequence(
            prompt=prompt,
            max_new_tokens=3900,
            sampling=SamplingParams(),
            stopping=StoppingCriteria(3900, tokenizer.eos_ids),
            detokenizer=Detokenizer(tokenizer, prompt),
        )
        sequence.events = Sink()
        schedule.add(sequence)
    return schedule


def measure_engine(rows: int, steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer(Path(folder), VOCABULARY)
        tokenizer = Tokenizer.from_folder(Path(folder))
    schedule = running_schedule(rows, tokenizer)
    rng = random.Random(0)
    clock = time.perf_counter
    parts: dict[str, list[float]] = {"plan": [], "codec": [], "commit": [], "all": []}
    while len(parts["all"]) < steps:
        t0 = clock()
        planned = plan(schedule)
        t1 = clock()
        assert planned is not None
        frame(encode(planned.step))
        t2 = clock()
        report = encode(answer(planned.step, rng))
        t3 = clock()
        result = decode_report(report)
        assert isinstance(result, Result)
        t4 = clock()
        commit(schedule, planned, result)
        t5 = clock()
        if not planned.bucket.prefill and len(planned.rows) == rows:
            for name, seconds in zip(
                parts, (t1 - t0, t2 - t1 + t4 - t3, t5 - t4, t2 - t0 + t5 - t3), strict=True
            ):
                parts[name].append(1000 * seconds)
    for name, times in parts.items():
        print(
            f"engine: {rows} rows, {name}: median {statistics.median(times):.3f} ms, best {min(times):.3f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["http", "engine", "both"], default="both")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--step-ms", type=float, default=0.0)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    if options.part in ("engine", "both"):
        measure_engine(options.rows, options.steps)
    if options.part in ("http", "both"):
        measure_http(options.clients, options.seconds, options.step_ms)


if __name__ == "__main__":
    main()
