"""A model with a window, served from a KV cache that does not hold whole sequences, against transformers."""

import random
from pathlib import Path

import attrs
import pytest
import torch
import transformers
import trio

from tgi.limits import Limits
from tgi.sampling import SamplingParams
from tgi.scheduler import Scheduler
from tgi.testing import engine
from tgi.testing.models import make_mistral
from tgi.text.tokenizer import Tokenizer

NEW_TOKENS = 30
LIMITS = {
    "cpu": Limits(
        max_total_tokens=256, max_batch_size=4, max_batch_prefill_tokens=32, block_size=16, window=24
    ),
    "hpu-sim": Limits(
        max_total_tokens=1024, max_batch_size=2, max_batch_prefill_tokens=128, block_size=128, window=130
    ),
}


def reference(folder: Path, *prompts: list[int]) -> list[list[int]]:
    torch.set_num_threads(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    found = []
    for prompt in prompts:
        every = torch.ones(1, len(prompt), dtype=torch.long)
        given = {"attention_mask": every, "do_sample": False, "pad_token_id": 0}
        out = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, **given)
        found.append(out[0, len(prompt) :].tolist())
    return found


async def generate(
    scheduler: Scheduler, tokenizer: Tokenizer, prompt: list[int], penalty: float
) -> list[int]:
    sampling = SamplingParams(presence_penalty=penalty)
    tokens = await engine.generate(scheduler, tokenizer, prompt, NEW_TOKENS, sampling=sampling)
    return [token.id for token in tokens]


@pytest.mark.parametrize("device", LIMITS)
async def test_sequences_longer_than_the_cache(device: str, tmp_path: Path) -> None:
    """At once; then once more, with a penalty so small that it changes nothing but that their tokens are
    counted; then what follows the longest, of which the end is still cached."""
    limits = LIMITS[device]
    folder = make_mistral(tmp_path, sliding_window=limits.window)
    blocks = limits.sequence_blocks + 1
    rng = random.Random(3)
    longest = limits.max_total_tokens - 2 * NEW_TOKENS - 1
    assert longest > blocks * limits.block_size + limits.block_size
    prompts = [[rng.randrange(4, 500) for _ in range(length)] for length in (longest, 5, 100, longest // 2)]
    wanted = reference(folder, *prompts)
    next_prompt = [*prompts[0], *wanted[0], 7]
    [next_answer] = reference(folder, next_prompt)
    scarce = attrs.evolve(limits, max_batch_total_tokens=blocks * limits.block_size)
    async with engine.open_engine(folder, scarce, device=device, threads=1) as scheduler:
        tokenizer = Tokenizer.from_folder(folder)
        got: list[list[int]] = [[] for _ in prompts]

        async def client(index: int, penalty: float) -> None:
            got[index] = await generate(scheduler, tokenizer, prompts[index], penalty)

        for penalty in (0.0, 1e-7):
            async with trio.open_nursery() as clients:
                for index in range(len(prompts)):
                    clients.start_soon(client, index, penalty)
            assert got == wanted
        await client(0, 1e-7)
        hits = scheduler.statistics().prefix_hit_tokens
        assert await generate(scheduler, tokenizer, next_prompt, 1e-7) == next_answer
        assert scheduler.statistics().prefix_hit_tokens - hits > len(next_prompt) - 2 * limits.block_size
        assert scheduler.statistics().blocks.used == 0
