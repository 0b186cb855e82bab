"""Steps of a model with a window, whose old blocks belong to others by then."""

import random

import pytest

from tests.compiling import COMPILING, open_compiling
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.testing.driver import make_driver
from tgi.testing.models import make_mistral
from tgi.testing.runs import random_prompt

VOCAB, TOP = 500, 5
COUNTING = {"repetition_penalty": 1.4, "presence_penalty": 0.6, "frequency_penalty": 0.5}


@pytest.fixture(params=COMPILING)
def device(request):
    with open_compiling(request.param) as opened:
        yield opened


@pytest.fixture(scope="module", params=[24, 1])
def folder(request, tmp_path_factory):
    return make_mistral(tmp_path_factory.mktemp("mistral"), vocab_size=VOCAB, sliding_window=request.param)


def workload(folder, device, blocks):
    """A long prompt in chunks, a short one beside it, and one that begins with most of the long one's: then
    the history that it brings is longer than what it sees."""
    driver = make_driver(folder, device, random.Random(0).sample(range(1, blocks), blocks - 1), top=TOP)
    long, short = random_prompt(VOCAB, 150, 0), random_prompt(VOCAB, 21, 1)
    driver.start(0, seed=3, sample=True, history=long, prompt_length=150, **COUNTING)
    driver.start(1)
    driver.start(2, history=long, prompt_length=150, **COUNTING)
    seen = []

    def note(answers):
        seen.extend((lane, a.token, a.logprob, a.top) for lane, a in answers.items())
        driver.release(0)

    for begin, end in ((0, 30), (30, 41), (41, 100), (100, 129)):
        note(driver.prefill({0: long[begin:end]}, unfinished=[0], pad=(1, 3, 1)))
    note(driver.prefill({1: short, 0: long[129:145]}, unfinished=[0], top=TOP))
    note(driver.prefill({0: long[145:]}))
    driver.share(2, 0, 144)
    note(driver.prefill({2: long[144:]}, top=TOP))
    for step in range(20):
        note(driver.decode([0, 1] if step % 2 else [1, 0], top=TOP, pad=(0, 0, step % 3)))
    return seen


def test_a_workload_is_the_same_as_on_the_cpu(folder, device):
    """On the card with as few blocks as are in use at a time, on the CPU with one of its own for each."""
    wanted, got = workload(folder, CpuDevice(1), 64), workload(folder, device, 13)
    assert [(lane, token) for lane, token, _, _ in got] == [(lane, token) for lane, token, _, _ in wanted]
    for (lane, _, logprob, top), (_, _, other, others) in zip(got, wanted, strict=True):
        assert logprob == pytest.approx(other, abs=1e-4), lane
        assert [token for token, _ in top] == [token for token, _ in others]
        assert [value for _, value in top] == pytest.approx([value for _, value in others], abs=1e-4)
