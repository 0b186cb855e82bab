"""Constrained sampling on the demo model, through scheduler, ranks and detokenizer: finished texts obey."""

import random
from collections.abc import Callable
from functools import partial

import regex
import trio

from tgi.config import DEMO_MODEL
from tgi.limits import Limits
from tgi.sampling import SamplingParams
from tgi.scheduler import Scheduler
from tgi.testing import engine
from tgi.text.grammar import Matcher
from tgi.text.stopping import FinishReason

from .text.matching import byte_tokens, compiled, demo_tokenizer, validate
from .text.random_grammars import random_regex, random_schema

NEW_TOKENS = 150
LIMITS = Limits(max_total_tokens=256, max_input_tokens=55, max_batch_size=64, max_batch_prefill_tokens=512)
PROMPT = "A dictionary of facts:"

CLOSING = tuple((byte_tokens()[mark], 6.0) for mark in (b'"', b",", b"}", b"]"))
"""Left to itself, the demo model tells stories in strings, and numbers that never end."""

Check = Callable[[str], None]


async def generate(scheduler: Scheduler, matcher: Matcher, seed: int) -> str | None:
    """The text of one request at temperature 1; None: it did not finish."""
    tokenizer = demo_tokenizer()
    prompt = tokenizer.encode(PROMPT)
    sampling = SamplingParams(sample=True, seed=seed, logit_bias=CLOSING)
    ends = tokenizer.eos_ids
    tokens = await engine.generate(
        scheduler, tokenizer, prompt, NEW_TOKENS, sampling=sampling, ends=ends, matcher=matcher
    )
    text = "".join(token.text for token in tokens if token.id not in tokenizer.special_ids)
    return text if tokens[-1].finish is FinishReason.EOS_TOKEN else None


async def sample(cases: list[tuple[Matcher, Check]]) -> int:
    """Generate one text for each case and check those that finish; how many do."""
    finished = 0

    async def one(scheduler: Scheduler, seed: int, matcher: Matcher, check: Check) -> None:
        nonlocal finished
        text = await generate(scheduler, matcher, seed)
        if text is not None:
            check(text)
            finished += 1

    async with engine.open_engine(DEMO_MODEL, LIMITS) as scheduler, trio.open_nursery() as nursery:
        for seed, case in enumerate(cases):
            nursery.start_soon(one, scheduler, seed, *case)
    return finished


def test_texts_of_500_random_schemas_validate() -> None:
    cases: list[tuple[Matcher, Check]] = []
    for seed in range(500):
        schema = random_schema(random.Random(seed), closed=True)
        cases.append((compiled("json", schema), partial(validate, schema=schema)))
    assert trio.run(sample, cases) > 350


def test_texts_of_200_random_regexes_match() -> None:
    def matches(text: str, pattern: str) -> None:
        assert regex.fullmatch(pattern, text), (pattern, text)

    cases: list[tuple[Matcher, Check]] = []
    for seed in range(200):
        pattern = random_regex(random.Random(seed))
        cases.append((compiled("regex", pattern), partial(matches, pattern=pattern)))
    assert trio.run(sample, cases) > 170
