"""What a grammar costs: the row that obeys it, and the rows beside it.

    python benchmarks/constrained.py                              # the demo model
    python benchmarks/constrained.py /tmp/llama-160m --rows 16    # a checkpoint of make_checkpoint.py

*grammar*: time to compile a schema (the vocabulary read before; "trial": in a process of its own first, as
the server does), and for the mask after each token of a random text; median, 99th percentile and worst.

*rows*: a real rank decodes --rows rows for --tokens tokens: none of them constrained, half, and all. Reported
is the time per token of each kind while all rows run. What a free row pays is the second against the first.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import trio

from tgi.api.grammars import Grammars
from tgi.config import DEMO_MODEL
from tgi.limits import Limits
from tgi.sampling import SamplingParams
from tgi.scheduler import Scheduler, Sequence, Token
from tgi.testing.builders import generating
from tgi.testing.engine import open_engine
from tgi.text.detokenizer import Detokenizer
from tgi.text.grammar import GrammarCompiler, GrammarSpec, Matcher
from tgi.text.stopping import StoppingCriteria
from tgi.text.tokenizer import Tokenizer

ENDLESS = """{
  "type": "array", "minItems": 100000,
  "items": {
    "type": "object",
    "properties": {
      "name": {"type": "string", "maxLength": 40},
      "age": {"type": "integer", "minimum": 0, "maximum": 120},
      "kind": {"enum": ["cat", "dog", "violin"]},
      "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z ]{1,20}$"}, "maxItems": 4}
    },
    "required": ["name", "age"]
  }
}"""
SPEC = GrammarSpec("json", ENDLESS)
PROMPT = "What is Deep Learning?"


def milliseconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - began)


async def measure_grammar(compiler: GrammarCompiler, tokens: int) -> None:
    load = milliseconds(compiler.load)
    compiling = min(milliseconds(lambda: compiler.compile(SPEC)) for _ in range(5))
    async with aclosing(Grammars(compiler)) as grammars:
        await grammars.matcher(GrammarSpec("regex", "x"))
        began = time.perf_counter()
        matcher = await grammars.matcher(SPEC)
        trial = 1000 * (time.perf_counter() - began)
        forking = milliseconds(matcher.fork)
    rng = random.Random(0)
    times = []
    for _ in range(tokens):
        token = random_token(matcher, rng)
        times.append(milliseconds(lambda token=token: matcher.advance(token)))  # type: ignore[misc]
    times.sort()
    print(
        f"grammar: vocabulary of {compiler.vocab_size} read in {load:.0f} ms; compile {compiling:.2f} ms, "
        f"with its trial {trial:.1f} ms, fork {forking:.3f} ms\n"
        f"grammar: mask after a token: median {statistics.median(times):.3f} ms, "
        f"p99 {times[int(0.99 * len(times))]:.3f} ms, worst {times[-1]:.3f} ms"
    )


def random_token(matcher: Matcher, rng: random.Random) -> int:
    """Some allowed token."""
    allowed = int.from_bytes(matcher.mask, "little")
    start = rng.randrange(allowed.bit_length())
    rest = allowed >> start
    return (rest & -rest).bit_length() - 1 + start


async def receive(scheduler: Scheduler, sequence: Sequence, times: list[float]) -> None:
    with generating(scheduler, sequence) as tokens:
        async for token in tokens:
            assert isinstance(token, Token), token
            times.append(time.perf_counter())


async def measure_rows(
    scheduler: Scheduler, tokenizer: Tokenizer, matcher: Matcher, rows: int, constrained: int, tokens: int
) -> None:
    prompt = tokenizer.encode(PROMPT)
    arrivals: list[list[float]] = [[] for _ in range(rows)]
    async with trio.open_nursery() as nursery:
        for row in range(rows):
            sequence = Sequence(
                prompt=prompt,
                max_new_tokens=tokens,
                sampling=SamplingParams(sample=True, seed=row),
                stopping=StoppingCriteria(tokens, ()),
                detokenizer=Detokenizer(tokenizer, prompt),
                matcher=matcher.fork() if row < constrained else None,
            )
            nursery.start_soon(receive, scheduler, sequence, arrivals[row])
    begin, end = max(times[1] for times in arrivals), min(times[-1] for times in arrivals)
    line = f"rows: {constrained} of {rows} constrained:"
    for name, some in (("constrained", arrivals[:constrained]), ("free", arrivals[constrained:])):
        if some:
            count = sum(begin < at <= end for times in some for at in times)
            line += f" {name} {1000 * len(some) * (end - begin) / count:.2f} ms a token;"
    print(line.rstrip(";"))


async def measure(folder: Path, rows: int, tokens: int, dtype: str, repeats: int) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size)
    await measure_grammar(compiler, tokens)
    matcher = compiler.compile(SPEC)
    limits = Limits(
        max_total_tokens=tokens + 32,
        max_input_tokens=31,
        max_batch_size=rows,
        max_batch_prefill_tokens=512,
    )
    async with open_engine(folder, limits, dtype=dtype) as scheduler:
        await measure_rows(scheduler, tokenizer, matcher, rows, 0, tokens)  # to warm up
        print("-- warmed up")
        for _ in range(repeats):
            for constrained in (0, rows // 2, rows):
                await measure_rows(scheduler, tokenizer, matcher, rows, constrained, tokens)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=DEMO_MODEL)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    trio.run(measure, options.folder, options.rows, options.tokens, options.dtype, options.repeats)


if __name__ == "__main__":
    main()
