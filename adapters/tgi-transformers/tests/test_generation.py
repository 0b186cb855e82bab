"""Five families against transformers' `generate`; two of them through the engine, in a real rank process."""

import random

import pytest
import torch
import transformers
import trio

from tgi.limits import Limits
from tgi.testing import engine
from tgi.testing.check_generation import check_generation
from tgi.text.tokenizer import Tokenizer

from .random_models import FAMILIES, VOCAB, make_model

NEW_TOKENS = 64
ENGINE = ("Gemma 2", "OPT")
"""Families: one with windows and other switches in its layers, one that has learned its positions."""
LIMITS = Limits(max_total_tokens=256, max_input_tokens=192, max_batch_size=8, max_batch_prefill_tokens=48)


def make_prompts():
    """Two thirds begin with the same tokens; most need several chunks, and exceed the window."""
    rng = random.Random(0)
    common = rng.choices(range(4, VOCAB), k=70)
    return [
        common[:shared] + rng.choices(range(4, VOCAB), k=rng.randrange(1, 60))
        for shared in (0, 70, 70, 0, 33, 70)
    ]


def reference(folder, prompts):
    """Greedy, without an end of the text."""
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=torch.float32, attn_implementation="eager"
    )
    for prompt in prompts:
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = out.sequences[0, len(prompt) :]
        logprobs = torch.cat(out.logits).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        yield tokens.tolist(), logprobs.tolist()


async def generate(scheduler, tokenizer, prompt):
    tokens = await engine.generate(scheduler, tokenizer, prompt, NEW_TOKENS)
    return [token.id for token in tokens], [token.logprob for token in tokens]


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(ENGINE)))
def test_text_is_that_of_transformers(tmp_path, family):
    check_generation(make_model(tmp_path, **FAMILIES[family]))


@pytest.mark.skipif(transformers.__version__ < "5", reason="transformers 4 makes masks of its own for OPT")
@pytest.mark.parametrize("family", ENGINE)
async def test_text_of_an_engine_is_that_of_transformers(tmp_path, family):
    """Alone and with the prefix cache cold; then all together, while it is filling; then again, from it."""
    folder = make_model(tmp_path, **FAMILIES[family])
    tokenizer = Tokenizer.from_folder(folder)
    prompts = make_prompts()
    wanted = list(reference(folder, prompts))

    async def check(scheduler, prompt, right):
        tokens, logprobs = await generate(scheduler, tokenizer, prompt)
        assert tokens == right[0]
        assert logprobs == pytest.approx(right[1], abs=1e-4)

    async with engine.open_engine(folder, LIMITS, device="cpu", threads=1) as scheduler:
        await check(scheduler, prompts[0], wanted[0])
        hits = []
        for _ in range(2):
            async with trio.open_nursery() as clients:
                for prompt, right in zip(prompts, wanted, strict=True):
                    clients.start_soon(check, scheduler, prompt, right)
            hits.append(scheduler.statistics().prefix_hit_tokens)
        assert hits[1] - hits[0] > 300, "the second time the cache is warm"
        assert scheduler.statistics().blocks.used == 0
