"""The engine, scheduler and a real rank process, against transformers' `generate`, in float32."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import msgspec
import pytest
import torch
import transformers
import trio

from tgi.errors import ApiError
from tgi.limits import Limits
from tgi.sampling import SamplingParams
from tgi.scheduler import Scheduler, Sequence, Token
from tgi.scheduler.sequence import Matcher
from tgi.testing.builders import generating
from tgi.testing.engine import open_engine
from tgi.testing.models import make_llama
from tgi.text.detokenizer import Detokenizer
from tgi.text.stopping import StoppingCriteria
from tgi.text.tokenizer import Tokenizer

SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "no groups": {"num_key_value_heads": 4},
    "one kv head": {"num_key_value_heads": 1, "num_hidden_layers": 3},
    "wide heads": {"head_dim": 32},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {
        "max_position_embeddings": 512,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "odd sizes": {
        "hidden_size": 48,
        "intermediate_size": 100,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
    },
}
NEW_TOKENS = 12
PROMPTS = 32
LIMITS = Limits(max_total_tokens=256, max_input_tokens=255, max_batch_size=16, max_batch_prefill_tokens=64)


@cache
def reference(folder: Path) -> list[tuple[list[int], list[int], list[float]]]:
    """Prompts with what transformers generates greedily, and the log-probabilities of that."""
    torch.set_num_threads(1)  # tiny matrices; more threads only wait for one another
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rng = random.Random(0)
    common = [rng.randrange(4, 500) for _ in range(100)]
    answers = []
    for _ in range(PROMPTS):
        shared = rng.choice([0, 0, 20, 50, 100])
        prompt = common[:shared] + [rng.randrange(4, 500) for _ in range(rng.randrange(1, 90))]
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0, len(prompt) :].tolist()
        logprobs = [
            step[0].log_softmax(-1)[token].item() for step, token in zip(out.logits, tokens, strict=True)
        ]
        answers.append((prompt, tokens, logprobs))
    return answers


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[tuple[Scheduler, Tokenizer]]:
    async with open_engine(folder, LIMITS, threads=1) as scheduler:
        yield scheduler, Tokenizer.from_folder(folder)


async def generate(
    scheduler: Scheduler,
    tokenizer: Tokenizer,
    prompt: list[int],
    sampling: SamplingParams | None = None,
    leave: int = 0,
    matcher: Matcher | None = None,
) -> list[Token]:
    """The tokens of one sequence; with `leave`, only so many, and then the client is gone."""
    sequence = Sequence(
        matcher=matcher,
        prompt=prompt,
        max_new_tokens=NEW_TOKENS,
        sampling=sampling or SamplingParams(),
        stopping=StoppingCriteria(NEW_TOKENS, tokenizer.eos_ids),
        detokenizer=Detokenizer(tokenizer, prompt),
    )
    tokens: list[Token] = []
    with generating(scheduler, sequence) as events:
        async for item in events:
            assert not isinstance(item, ApiError), item
            tokens.append(item)
            if len(tokens) == leave:
                break
    return tokens


def check(tokens: list[Token], wanted: list[int], logprobs: list[float]) -> None:
    assert [token.id for token in tokens] == wanted[: len(tokens)]
    assert [token.logprob for token in tokens] == pytest.approx(logprobs[: len(tokens)], abs=1e-4)


@pytest.fixture(params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    number = list(SHAPES).index(request.param)
    return make_llama(tmp_path_factory.mktemp("llama"), seed=number, **SHAPES[request.param])


async def test_greedy_text_is_that_of_transformers(folder: Path) -> None:
    """32 prompts: one by one, then 16 at a time that come and go, with the prefix cache cold and warm."""
    async with engine(folder) as (scheduler, tokenizer):
        for prompt, wanted, logprobs in reference(folder):
            check(await generate(scheduler, tokenizer, prompt), wanted, logprobs)
    async with engine(folder) as (scheduler, tokenizer):
        await crowd(scheduler, tokenizer, reference(folder))
        cold = scheduler.statistics().prefix_hit_tokens
        await crowd(scheduler, tokenizer, reference(folder))
        assert scheduler.statistics().prefix_hit_tokens > cold + 1000, "the second time the cache is warm"
        assert scheduler.statistics().blocks.used == 0


async def crowd(
    scheduler: Scheduler, tokenizer: Tokenizer, answers: list[tuple[list[int], list[int], list[float]]]
) -> None:
    """16 clients; every fourth generation is left in the middle, arrivals are spread over the steps."""
    rng = random.Random(1)
    todo = list(answers)

    async def client() -> None:
        while todo:
            prompt, wanted, logprobs = todo.pop()
            leave = rng.choice([0, 0, 0, rng.randrange(1, NEW_TOKENS)])
            tokens = await generate(scheduler, tokenizer, prompt, leave=leave)
            check(tokens, wanted, logprobs)
            assert leave or len(tokens) == len(wanted)
            for _ in range(rng.randrange(50)):
                await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as clients:
        for _ in range(16):
            clients.start_soon(client)


EVERYTHING = SamplingParams(
    sample=True,
    seed=2**63 + 11,
    temperature=0.8,
    top_k=40,
    top_p=0.95,
    typical_p=0.9,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.5,
    count_penalty=0.2,
    logit_bias=((17, 3.0), (300, -4.0)),
    min_p=0.01,
    min_tokens=5,
    ends=(1, 40, 41),
    watermark=True,
    top_n_tokens=3,
)


class OddOrEven:
    """A grammar: an odd token comes after an even one and the other way round; the first is odd."""

    def __init__(self) -> None:
        self.odd = True

    @property
    def mask(self) -> bytes:
        return (b"\xaa" if self.odd else b"\x55") * 64

    def advance(self, token: int) -> None:
        assert token % 2 == self.odd
        self.odd = not self.odd


class Reference(transformers.LogitsProcessor):
    """What the options that transformers does not have do to the scores, by OpenAI's formulas."""

    def __init__(self, sampling: SamplingParams, prompt: int, matched: bool) -> None:
        self.sampling, self.prompt, self.matched = sampling, prompt, matched

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        generated = input_ids[0, self.prompt :].tolist()
        result = scores.clone()
        for token in set(generated):
            penalty = self.sampling.count_penalty * generated.count(token) + self.sampling.presence_penalty
            result[0, token] -= penalty
        for token, bias in self.sampling.logit_bias:
            result[0, token] += bias
        if self.matched:
            result[0, len(generated) % 2 :: 2] = -torch.inf
        elif len(generated) < self.sampling.min_tokens:
            result[0, list(self.sampling.ends)] = -torch.inf
        return result


OPENAI = [
    SamplingParams(),
    SamplingParams(presence_penalty=1.5),
    SamplingParams(count_penalty=0.8),
    SamplingParams(presence_penalty=-1.0, count_penalty=-0.5),
    SamplingParams(logit_bias=((33, 100.0),), presence_penalty=2.0),
    SamplingParams(logit_bias=tuple((token, -100.0) for token in range(2, 200))),
    SamplingParams(min_tokens=6, ends=tuple(range(100, 500))),
    SamplingParams(min_tokens=4, ends=tuple(range(500)), count_penalty=0.3, logit_bias=((505, 4.0),)),
]


@pytest.mark.parametrize("scarce", [False, True])
def test_penalties_bias_and_masks_are_those_of_the_formulas(tmp_path: Path, scarce: bool) -> None:
    """Greedily, all at once, each with and without a grammar; also when they preempt one another."""
    folder = make_llama(tmp_path)
    rng = random.Random(5)
    cases = [
        ([rng.randrange(4, 500) for _ in range(rng.randrange(3, 31))], sampling, matched)
        for sampling in OPENAI
        for matched in (False, True)
    ]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    got: list[list[Token]] = [[] for _ in cases]
    limits = attrs.evolve(LIMITS, max_total_tokens=64, max_input_tokens=63)
    if scarce:
        limits = attrs.evolve(limits, max_batch_total_tokens=64, block_size=4)

    async def client(scheduler: Scheduler, tokenizer: Tokenizer, index: int) -> None:
        prompt, sampling, matched = cases[index]
        matcher = OddOrEven() if matched else None
        if matched:  # as the API does: the grammar alone says when the text may end
            sampling = msgspec.structs.replace(sampling, min_tokens=0, ends=())
        got[index] = await generate(scheduler, tokenizer, prompt, sampling, matcher=matcher)

    async def main() -> int:
        async with open_engine(folder, limits, threads=1) as scheduler:
            tokenizer = Tokenizer.from_folder(folder)
            async with trio.open_nursery() as clients:
                for index in range(len(cases)):
                    clients.start_soon(client, scheduler, tokenizer, index)
            return scheduler.statistics().preemptions

    preemptions = trio.run(main)

    assert bool(preemptions) == scarce
    for (prompt, sampling, matched), tokens in zip(cases, got, strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            logits_processor=[Reference(sampling, len(prompt), matched)],
            output_scores=True,
            return_dict_in_generate=True,
        )
        wanted = out.sequences[0, len(prompt) :].tolist()
        scores = [
            step[0].log_softmax(-1)[token].item() for step, token in zip(out.scores, wanted, strict=True)
        ]
        assert len(tokens) == len(wanted)
        check(tokens, wanted, scores)


def test_a_seed_gives_the_same_text_alone_in_company_and_after_a_restart(tmp_path: Path) -> None:
    """With every sampling option at once, and neighbours of all kinds, some with a grammar."""
    folder = make_llama(tmp_path)
    prompt = [5, 80, 300, 41, 7]
    neighbours = [
        SamplingParams(
            sample=bool(n % 3),
            seed=n,
            temperature=1 + n / 10 if n % 3 else 1.0,
            top_k=n if n % 3 else 0,
            repetition_penalty=1 + n % 2,
            count_penalty=n % 4,
        )
        for n in range(15)
    ]
    texts: list[list[tuple[int, list[tuple[int, float]]]]] = []

    async def main() -> None:
        async with engine(folder) as (scheduler, tokenizer):
            alone = await generate(scheduler, tokenizer, prompt, EVERYTHING)
            texts.append([(token.id, token.top) for token in alone])
        async with engine(folder) as (scheduler, tokenizer), trio.open_nursery() as clients:
            for n, sampling in enumerate(neighbours):
                matcher = OddOrEven() if n % 5 == 0 else None
                clients.start_soon(generate, scheduler, tokenizer, [n + 4] * (n + 1), sampling, 0, matcher)
            crowded = await generate(scheduler, tokenizer, prompt, EVERYTHING)
            texts.append([(token.id, token.top) for token in crowded])

    trio.run(main)

    alone, crowded = texts
    assert [token for token, _ in alone] == [token for token, _ in crowded]
    assert len(alone) == NEW_TOKENS
    for (_, one), (_, other) in zip(alone, crowded, strict=True):
        assert [token for token, _ in one] == [token for token, _ in other]
        assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-4)


def test_other_seeds_give_other_texts(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)

    async def main() -> set[tuple[int, ...]]:
        async with engine(folder) as (scheduler, tokenizer):
            texts = [
                await generate(scheduler, tokenizer, [9, 10, 11], SamplingParams(sample=True, seed=seed))
                for seed in range(8)
            ]
        return {tuple(token.id for token in text) for text in texts}

    assert len(trio.run(main)) == 8


def test_prompt_log_probabilities_are_those_of_transformers(tmp_path: Path) -> None:
    """Over several chunks of a long prompt, and although the prefix cache knows the prompt already.

    The prompt's own token has the very number that it has among the most likely: clients compare with ==.
    """
    folder = make_llama(tmp_path)
    rng = random.Random(3)
    prompt = [rng.randrange(4, 500) for _ in range(200)]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        scores = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    for at in (5, 70, 150):  # so that some are among the most likely
        prompt[at + 1] = int(scores[at].argmax())
        with torch.inference_mode():
            scores = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    wanted = [scores[position, token].item() for position, token in enumerate(prompt[1:])]

    async def main() -> Sequence:
        async with engine(folder) as (scheduler, tokenizer):
            await generate(scheduler, tokenizer, prompt)
            sequence = Sequence(
                prompt=prompt,
                max_new_tokens=1,
                sampling=SamplingParams(),
                stopping=StoppingCriteria(1, frozenset()),
                detokenizer=Detokenizer(tokenizer, prompt),
                prompt_top=3,
            )
            with generating(scheduler, sequence) as events:
                async for _ in events:
                    pass
            return sequence

    sequence = trio.run(main)

    assert sequence.prompt_logprobs == pytest.approx(wanted, abs=1e-4)
    best = scores[:-1].topk(3)
    assert [[token for token, _ in top] for top in sequence.prompt_tops] == best.indices.tolist()
    values = [value for top in sequence.prompt_tops for _, value in top]
    assert values == pytest.approx(best.values.flatten().tolist(), abs=1e-4)
    among = [
        dict(top)[token] == logprob
        for token, logprob, top in zip(
            prompt[1:], sequence.prompt_logprobs, sequence.prompt_tops, strict=True
        )
        if token in dict(top)
    ]
    assert len(among) >= 3
    assert all(among)
