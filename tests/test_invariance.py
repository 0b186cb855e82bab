"""With the kernels for CPUs, a token's result depends on its context alone, bit for bit."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import trio
from safetensors.torch import load_file, save_file
from transformers import PhiConfig, Qwen2MoeConfig

from tests.peft_adapters import make_adapter
from tgi.config import DEMO_MODEL
from tgi.limits import Limits
from tgi.protocol import LoraSlots
from tgi.sampling import SamplingParams
from tgi.scheduler import Scheduler, Token
from tgi.testing.checkpoints import make_checkpoint
from tgi.testing.driver import Driver, load_command, make_driver
from tgi.testing.engine import generate, open_engine
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt
from tgi.text.tokenizer import Tokenizer
from tgi.weights import Shard
from tgi.worker.runner import Runner, open_device


def kernels_are_used() -> bool:
    """Return whether linear layers and attention run on tgi-cpu-kernels here."""
    kernels = pytest.importorskip("tgi_cpu_kernels")
    try:
        kernels.load()
    except kernels.Unavailable:
        return False
    return True


pytestmark = pytest.mark.skipif(not kernels_are_used(), reason="tgi-cpu-kernels is not used here")

WORDS = "the river of a small town that is known for its bridges and mills and old music of strings".split()
PROMPTS = [" ".join((WORDS[start:] + 5 * WORDS)[: 6 + 9 * start]) for start in range(8)]
SAMPLING = [
    SamplingParams() if n % 2 == 0 else SamplingParams(sample=True, seed=n, temperature=1.2, top_p=0.95)
    for n in range(len(PROMPTS))
]
TOKENS = 40
ADAPTER = "adapter"
"""Name of the LoRA adapter that two of three requests have."""
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES = {"vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 2, **HEADS}
EXPERTS = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    "config",
    [Qwen2MoeConfig(**SIZES, **EXPERTS, num_experts_per_tok=2), PhiConfig(**SIZES, intermediate_size=40)],
    ids=["experts", "gelu"],
)
def test_experts_and_gelu_depend_on_the_token_alone(tmp_path: Path, config: Any, dtype: str) -> None:
    """In one piece, in chunks, and between others, also where rows are no multiples of a vector."""
    driver = make_driver(make_checkpoint(tmp_path, config), open_device("cpu", 1), dtype=dtype)
    prompt, *others = (random_prompt(320, length, length) for length in (45, 7, 33))
    for lane in range(5):
        driver.start(lane)
    alone = [driver.prefill({0: prompt})[0], driver.decode([0])[0]]
    driver.prefill({1: prompt[:16]}, unfinished=[1])
    chunks = [driver.prefill({1: prompt[16:]})[1], driver.decode([1])[1]]
    company = [driver.prefill({3: others[0], 2: prompt, 4: others[1]})[2], driver.decode([3, 4, 2])[2]]
    for row, part, among in zip(alone, chunks, company, strict=True):
        assert torch.equal(part.logits, row.logits)
        assert torch.equal(among.logits, row.logits)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_row_depends_on_its_own_adapter_alone(tmp_path: Path, dtype: str) -> None:
    """In one piece, in chunks, and between rows with the same adapter, another, or none."""
    model = make_llama(tmp_path / "model", vocab_size=320)
    driver = make_driver(model, open_device("cpu", 1), dtype=dtype, loras=LoraSlots(2, 16))
    for slot, rank in enumerate((3, 16)):
        assert not driver.load_lora(slot, make_adapter(tmp_path / str(slot), model, slot, r=rank))
    prompt, *others = (random_prompt(320, length, length) for length in (45, 7, 33, 20))
    for own in (-1, 0, 1):
        driver.start(0, lora=own)
        alone = [driver.prefill({0: prompt})[0], driver.decode([0])[0]]
        driver.start(1, lora=own)
        driver.prefill({1: prompt[:16]}, unfinished=[1])
        chunks = [driver.prefill({1: prompt[16:]})[1], driver.decode([1])[1]]
        for lane, slot in {2: own, 3: 0, 4: 1, 5: -1}.items():
            driver.start(lane, lora=slot)
        first = driver.prefill({3: others[0], 2: prompt, 4: others[1], 5: others[2]})[2]
        company = [first, driver.decode([3, 4, 2, 5])[2]]
        for row, part, among in zip(alone, chunks, company, strict=True):
            assert torch.equal(part.logits, row.logits)
            assert torch.equal(among.logits, row.logits)


@pytest.mark.parametrize(("dtype", "quantize"), [("bfloat16", ""), ("float32", ""), ("bfloat16", "int8")])
def test_a_tied_head_that_is_kept_once_changes_no_bit(tmp_path: Path, dtype: str, quantize: str) -> None:
    """The same numbers twice in a checkpoint that is not tied are the comparison."""
    tied = make_llama(tmp_path / "tied", vocab_size=331, tie_word_embeddings=True)
    apart = make_llama(tmp_path / "apart", vocab_size=331)
    numbers = load_file(tied / "model.safetensors")
    numbers["lm_head.weight"] = numbers["model.embed_tokens.weight"].clone()
    save_file(numbers, apart / "model.safetensors")
    found = []
    for folder in (tied, apart):
        command = load_command(folder, dtype=dtype, quantize=quantize)
        model: Any = (runner := Runner.load(command, Shard(), open_device("cpu", 1))).model
        driver = Driver(runner)
        driver.start(0)
        driver.prefill({0: random_prompt(331, 40, 0)})
        found.append((driver.decode([0])[0].logits, model.embed._head is model.head._weight))
    (logits, once), (expected, _) = found
    assert torch.equal(logits, expected)
    assert once == (not quantize)


async def ask(scheduler: Scheduler, tokenizer: Tokenizer, number: int) -> list[tuple[int, float]]:
    prompt = tokenizer.encode(PROMPTS[number])
    lora = scheduler.loras.get(ADAPTER) if number % 3 else None
    tokens: list[Token] = await generate(
        scheduler, tokenizer, prompt, TOKENS, sampling=SAMPLING[number], lora=lora
    )
    return [(token.id, token.logprob) for token in tokens]


@pytest.mark.seconds(300)
@pytest.mark.parametrize(
    ("dtype", "quantize"), [("bfloat16", ""), ("float32", ""), ("bfloat16", "int8"), ("bfloat16", "int4")]
)
async def test_company_chunks_cache_and_preemption_change_no_bit(
    tmp_path: Path, dtype: str, quantize: str
) -> None:
    loras = [make_adapter(tmp_path / ADAPTER, DEMO_MODEL, 0, r=16)]
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    alone, crowded = (
        Limits(
            max_total_tokens=256,
            max_batch_size=8,
            max_batch_prefill_tokens=chunk,
            max_batch_total_tokens=cache,
            speculate=speculate,
        )
        for chunk, cache, speculate in ((512, None, 0), (32, 480, 4))
    )
    async with open_engine(DEMO_MODEL, alone, dtype=dtype, quantize=quantize, loras=loras) as scheduler:
        expected = [await ask(scheduler, tokenizer, number) for number in range(len(PROMPTS))]
    async with open_engine(DEMO_MODEL, crowded, dtype=dtype, quantize=quantize, loras=loras) as scheduler:
        for _ in range(3):

            async def check(number: int) -> None:
                assert await ask(scheduler, tokenizer, number) == expected[number]

            async with trio.open_nursery() as nursery:
                for number in range(len(PROMPTS)):
                    nursery.start_soon(check, number)
        statistics = scheduler.statistics()
    assert statistics.preemptions > 0
    assert statistics.prefix_hit_tokens > 0


@pytest.mark.parametrize("number", [0, 1], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_guesses_save_steps_and_change_no_bit(tmp_path: Path, dtype: str, number: int) -> None:
    """A random model whose embeddings are tied goes on with what it read, at a low temperature too."""
    make_llama(tmp_path, tie_word_embeddings=True)
    tokenizer = Tokenizer.from_folder(DEMO_MODEL)
    sampling = msgspec.structs.replace(SAMPLING[number], temperature=0.05) if number else SAMPLING[number]
    found, steps = [], []
    for speculate in (0, 6):
        limits = Limits(max_total_tokens=256, max_batch_size=2, speculate=speculate)
        async with open_engine(tmp_path, limits, dtype=dtype) as scheduler:
            tokens = await generate(scheduler, tokenizer, [7] * 20, 200, sampling=sampling)
            found.append([(token.id, token.logprob) for token in tokens])
            steps.append(scheduler.statistics().steps)
    assert found[0] == found[1]
    assert len(found[0]) == 200
    assert steps[1] < 0.95 * steps[0]
