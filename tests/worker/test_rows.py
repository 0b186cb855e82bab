"""On the CPU a row's logits do not depend, bit for bit, on its neighbours or on the place of its blocks."""

import random
from pathlib import Path

import pytest
import torch

from tgi.device.cpu.cpu_device import CpuDevice
from tgi.protocol import Bucket, Step, ints, unpack_floats, unpack_ints
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


CHUNK = 16


def run_mixed(folder, lanes):
    """Tokens and logits of lanes that begin one after another; steps decode some and prefill one."""
    driver = make_driver(folder, CpuDevice(1), random.Random(len(lanes)).sample(range(1, 256), 255))
    prompts = {lane: random_prompt(512, 5 + 11 * lane, lane) for lane in lanes}
    seen = {lane: [] for lane in lanes}
    done, waiting = [], list(lanes)
    for lane in lanes:
        driver.start(lane, sample=True, seed=lane, temperature=1.2, prompt_length=len(prompts[lane]))
    while waiting or any(len(seen[lane]) < STEPS for lane in lanes):
        step = {lane: [-1] for lane in done if len(seen[lane]) < STEPS}
        unfinished = []
        if waiting:
            lane, cached = waiting[0], driver.lanes[waiting[0]].cached
            step[lane] = prompts[lane][cached : cached + CHUNK]
            if cached + CHUNK < len(prompts[lane]):
                unfinished = [lane]
            else:
                done.append(waiting.pop(0))
        for lane, answer in driver.prefill(step, unfinished=unfinished).items():
            seen[lane].append((answer.token, answer.logits))
    return seen


def test_decode_rows_and_chunks_of_prompts_in_one_step(tmp_path):
    folder = make_llama(tmp_path)
    company = run_mixed(folder, [4, 0, 2, 1, 3])
    for lane in (0, 3, 4):
        (alone,) = run_mixed(folder, [lane]).values()
        assert [token for token, _ in alone] == [token for token, _ in company[lane]]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(alone, company[lane], strict=True))


def test_a_row_with_several_samples_gives_what_one_token_after_another_does(tmp_path):
    folder, prompt = make_llama(tmp_path), random_prompt(512, 21, 0)

    def start():
        driver = make_driver(folder, CpuDevice(1))
        for lane in (0, 1):
            driver.start(lane, sample=True, seed=5 + lane, temperature=1.3, top_k=40, prompt_length=21)
        driver.prefill({0: prompt, 1: prompt[:7]})
        return driver

    driver = start()
    wanted = [driver.decode([0, 1]) for _ in range(4)]
    guessed = start()
    step = Step(
        number=2,
        bucket=Bucket(2, 3, 2, prefill=True),
        lanes=ints([0, 1]),
        starts=ints([21, 7]),
        lengths=ints([3, 1]),
        samples=ints([3, 1]),
        draws=ints([1, 1]),
        tokens=ints([-1, wanted[0][0].token, wanted[1][0].token, -1]),
        **guessed._grow([0, 1], [3, 1]),
    )
    result = guessed.runner.execute(step)
    rows = [wanted[0][0], wanted[1][0], wanted[2][0], wanted[0][1]]
    assert unpack_ints(result.tokens).tolist() == [row.token for row in rows]
    assert unpack_floats(result.logprobs).tolist() == pytest.approx([row.logprob for row in rows], abs=1e-4)
    guessed.lanes[0].cached, guessed.lanes[0].draws = 24, 4
    assert guessed.decode([0])[0].token == wanted[3][0].token, "the last sample is the next token"
