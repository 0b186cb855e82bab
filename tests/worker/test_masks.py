"""Masks in whole steps: of the rows they are for, whatever else is in the step and however it is padded."""

import pytest
import torch

from tgi.device.base import Device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt

from .rows import pack

VOCAB = 500  # no multiple of 32
PROMPTS = {lane: random_prompt(VOCAB, 5 + 7 * lane, lane) for lane in range(6)}
ALLOWED = {1: [4, 77, 499], 2: [0], 4: list(range(250, 500))}
MASKS = {lane: pack(tokens, VOCAB) for lane, tokens in ALLOWED.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), vocab_size=VOCAB)


def is_drawn(lane):
    return lane % 2 == 0


def temperature(lane):
    return 1.3 if is_drawn(lane) else 1.0


def run(folder, device, masks, pad=(0, 0, 0)):
    """Answers of five steps by lane; lane 5 is in the middle of its prompt during the first."""
    driver = make_driver(folder, device)
    for lane, prompt in PROMPTS.items():
        driver.start(
            lane, sample=is_drawn(lane), seed=lane, temperature=temperature(lane), prompt_length=len(prompt)
        )
    order = [5, 3, 4, 1, 0, 2]
    prompts = {lane: PROMPTS[lane][:9] if lane == 5 else PROMPTS[lane] for lane in order}
    answers = [driver.prefill(prompts, unfinished=[5], masks=masks, pad=pad)]
    answers.append(driver.prefill({5: PROMPTS[5][9:]}, pad=pad))
    for step in range(3):
        lanes = [4, 0, 3, 1, 2, 5] if step % 2 else list(range(6))
        answers.append(driver.decode(lanes, masks=masks, pad=pad))
    return {lane: [step[lane] for step in answers if lane in step] for lane in PROMPTS}


@pytest.mark.parametrize("device", [Device, CpuDevice])
def test_a_mask_is_for_its_row_alone(folder, device):
    for pad in ((0, 0, 0), (3, 0, 1)):
        free = run(folder, device(1), {}, pad)
        masked = run(folder, device(1), MASKS, pad)
        for lane, answers in masked.items():
            if lane in ALLOWED:
                for answer in answers:
                    logprobs = (answer.logits[ALLOWED[lane]] / temperature(lane)).log_softmax(-1)
                    assert answer.token in ALLOWED[lane]
                    wanted = logprobs[ALLOWED[lane].index(answer.token)].item()
                    assert answer.logprob == pytest.approx(wanted, abs=1e-5)
                    assert is_drawn(lane) or answer.logprob == pytest.approx(logprobs.max().item(), abs=1e-5)
            else:
                for mine, other in zip(answers, free[lane], strict=True):
                    assert (mine.token, mine.logprob) == (other.token, other.logprob)
                    assert torch.equal(mine.logits, other.logits)


def test_devices_agree(folder):
    plain, fast = run(folder, Device(1), MASKS), run(folder, CpuDevice(1), MASKS)
    for lane, answers in plain.items():
        assert [answer.token for answer in answers] == [answer.token for answer in fast[lane]]
