"""Compare greedy tokens of mixed traffic with those of the same prompts alone.

Prompts of 2 to 200 random words, a third of which begin alike, are answered one after another; then by 16
clients at once, in chunks of 32 tokens, with guesses, and with a cache that holds about three of them. So
prompts hit the prefix cache and sequences are preempted. Every token and every log-probability must be the
same bits: `python benchmarks/invariance.py --help`.
"""

import argparse
import random
import time
from pathlib import Path

import trio

from tgi.config import DEMO_MODEL
from tgi.limits import Limits
from tgi.scheduler import Scheduler
from tgi.testing.engine import generate, open_engine
from tgi.text.tokenizer import Tokenizer

Answer = list[tuple[int, float]]
"""Ids and log-probabilities."""
CLIENTS = 16
ANSWER = 100
"""Tokens of an answer."""
WORDS = [
    *("river", "town", "bridge", "old", "mill", "music", "string", "small", "house", "light", "sea", "stone"),
    *("bird", "winter", "letter", "king", "road", "field", "book", "glass", "horse", "garden", "paper"),
]


def make_prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    choose = random.Random(0)
    shared = choose.choices(WORDS, k=60)
    prompts = []
    for _ in range(count):
        words = choose.choices(WORDS, k=choose.choice((2, 8, 30, 90, 200)))
        if choose.random() < 1 / 3:
            words = shared[: choose.choice((20, 60))] + words[:90]
        prompts.append(tokenizer.encode(" ".join(words)))
    return prompts


async def ask(scheduler: Scheduler, tokenizer: Tokenizer, prompt: list[int]) -> Answer:
    tokens = await generate(scheduler, tokenizer, prompt, ANSWER)
    return [(token.id, token.logprob) for token in tokens]


async def compare(folder: Path, dtype: str, quantize: str, count: int) -> None:
    tokenizer = Tokenizer.from_folder(folder)
    prompts, began = make_prompts(tokenizer, count), time.perf_counter()
    alone = Limits(max_total_tokens=512, max_batch_size=1, max_batch_prefill_tokens=512)
    crowded = Limits(
        max_total_tokens=512,
        max_batch_size=CLIENTS,
        max_batch_prefill_tokens=32,
        max_batch_total_tokens=1536,
        speculate=4,
    )
    async with open_engine(folder, alone, dtype=dtype, quantize=quantize) as scheduler:
        expected = [await ask(scheduler, tokenizer, prompt) for prompt in prompts]
    differing: list[int] = []
    left = iter(range(count))
    async with open_engine(folder, crowded, dtype=dtype, quantize=quantize) as scheduler:

        async def client() -> None:
            for number in left:
                if await ask(scheduler, tokenizer, prompts[number]) != expected[number]:
                    differing.append(number)

        async with trio.open_nursery() as nursery:
            for _ in range(CLIENTS):
                nursery.start_soon(client)
        statistics = scheduler.statistics()
    tokens = sum(map(len, expected))
    print(
        f"{quantize or dtype}: {tokens:,} tokens of {count} answers, {len(differing)} answers differ; "
        f"{statistics.preemptions} preemptions, {statistics.prefix_hit_tokens:,} cached prompt tokens, "
        f"{statistics.steps:,} steps, {time.perf_counter() - began:.0f} s"
    )
    if differing:
        raise SystemExit(f"prompts that differ: {differing}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantize", default="", choices=["", "int8", "int4"])
    parser.add_argument("--answers", type=int, default=1100)
    options = parser.parse_args()
    trio.run(compare, options.model, options.dtype, options.quantize, options.answers)


if __name__ == "__main__":
    main()
