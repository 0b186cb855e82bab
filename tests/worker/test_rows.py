"""On the CPU a row's logits do not depend, bit for bit, on who runs beside it or where its blocks lie."""

import random
from pathlib import Path

import pytest
import torch

from tgi.device.cpu.cpu_device import CpuDevice
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt

ROWS = 9
STEPS = 8
HAS_TILES = "amx_tile" in Path("/proc/cpuinfo").read_text()
EXACT = pytest.mark.skipif(HAS_TILES, reason="not known of tile kernels")


def run(folder, dtype, lanes, order, together):
    """Logits of every generated token of each lane, [lanes, steps, vocab]."""
    driver = make_driver(folder, CpuDevice(2), order, dtype=dtype)
    prompts = {lane: random_prompt(512, 5 + 7 * lane, lane) for lane in lanes}
    for lane in lanes:
        driver.start(
            lane, sample=True, seed=lane, temperature=1.2, top_p=0.9, prompt_length=len(prompts[lane])
        )
    answers = []
    if together:
        answers.append(driver.prefill(prompts))
    else:
        answers.append({lane: driver.prefill({lane: prompts[lane]})[lane] for lane in lanes})
    answers += [driver.decode(lanes, pad=(len(lanes) % 3, 0, 0)) for _ in range(STEPS)]
    return {
        lane: (torch.stack([a[lane].logits for a in answers]), [a[lane].token for a in answers])
        for lane in lanes
    }


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=EXACT)])
@pytest.mark.parametrize(
    "size", [{}, {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12}]
)
def test_alone_and_in_company(tmp_path, dtype, size):
    folder = make_llama(tmp_path, dtype=dtype, **size)
    order = list(range(1, 256))
    scattered = random.Random(0).sample(order, len(order))
    try:
        company = run(folder, dtype, list(range(ROWS)), scattered, together=True)
        for lane in (0, 4, 8):
            logits, tokens = run(folder, dtype, [lane], order, together=False)[lane]
            assert torch.equal(logits, company[lane][0])
            assert tokens == company[lane][1]
    finally:
        torch.set_num_threads(1)
