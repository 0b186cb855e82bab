"""Programs per bucket give what the CPU's direct way gives, whatever sequences bring."""

import random

import pytest

from tgi.device.cpu import CpuDevice
from tgi.protocol import unpack_floats, unpack_ints
from tgi.testing.check_architecture import random_prompt
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.simulated_hpu import COMPILING, open_compiling
from tgi.worker.layout import INLINE_BIAS, INLINE_ENDS

from .rows import pack

VOCAB = 500
TOP = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), vocab_size=VOCAB)


def params(lane, prompt):
    """Each lane another mixture; 5 and 6 bring more than their first step has room for."""
    rng = random.Random(lane)
    everything = {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.7,
        "presence_penalty": 0.4,
        "count_penalty": 0.3,
        "history": prompt,
        "watermark": True,
        "bias": {rng.randrange(VOCAB): rng.uniform(-9, 9) for _ in range(20)},
        "min_tokens": 4,
        "ends": rng.sample(range(VOCAB), 8),
    }
    drawn = {"sample": True, "temperature": 1.4, "top_k": 60, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95}
    return {
        0: {},
        1: drawn,
        2: everything,
        3: everything | drawn,
        4: {"repetition_penalty": 1.5, "history": prompt},
        5: {"bias": {token: rng.uniform(-9, 9) for token in range(INLINE_BIAS + 200)}},
        6: {"min_tokens": 5, "ends": rng.sample(range(VOCAB), INLINE_ENDS + 100)},
        7: {"presence_penalty": 2.0, "count_penalty": 1.0, "history": prompt},
    }[lane] | {"seed": lane, "prompt_length": len(prompt)}


PROMPTS = {lane: random_prompt(VOCAB, 5 + 9 * lane, lane) for lane in range(8)}
MASKS = {4: pack(range(100, 400), VOCAB), 1: pack([3, 77, 200, 499], VOCAB)}


def workload(folder, device):
    """What the rows give; lane 7 comes in three chunks, and lanes 2 and 4 are taken twice."""
    driver = make_driver(folder, device, random.Random(0).sample(range(1, 256), 255), top=TOP)
    for lane, prompt in PROMPTS.items():
        driver.start(lane, **params(lane, prompt))
    seen = []

    def note(answers):
        seen.extend((lane, a.token, a.logprob, a.top) for lane, a in answers.items())

    note(driver.prefill({7: PROMPTS[7][:30], 0: PROMPTS[0]}, unfinished=[7], top=TOP, pad=(1, 6, 0)))
    note(
        driver.prefill(
            {7: PROMPTS[7][30:41], 1: PROMPTS[1], 2: PROMPTS[2]}, unfinished=[7], masks=MASKS_OF[1]
        )
    )
    note(driver.prefill({7: PROMPTS[7][41:], 3: PROMPTS[3]}, pad=(2, 0, 1)))
    note(driver.prefill({5: PROMPTS[5], 6: PROMPTS[6], 4: PROMPTS[4]}, top=2, masks=MASKS_OF[4]))
    for step in range(6):
        lanes = random.Random(step).sample(range(8), 8)
        note(driver.decode(lanes, top=step % 3, pad=(step % 2, 0, 3), masks=MASKS))
    # A sequence that shares a prefix, and one that goes on with what it had generated before.
    for lane, prompt in ((2, PROMPTS[7]), (4, PROMPTS[7] + [9, 9, 11])):
        driver.start(lane, **(params(3, prompt) | {"prompt_length": len(PROMPTS[7])}))
        driver.lanes[lane].draws = len(prompt) - len(PROMPTS[7])
        driver.share(lane, 7, 32)
        note(driver.prefill({lane: prompt[32:]}))
    for _ in range(5):
        note(driver.decode([4, 2, 0]))
    return seen


MASKS_OF = {lane: {lane: MASKS[lane]} for lane in MASKS}


@pytest.fixture(params=COMPILING)
def device(request):
    with open_compiling(request.param) as opened:
        yield opened


def test_a_workload_is_the_same_as_on_the_cpu(folder, device):
    wanted, got = workload(folder, CpuDevice(1)), workload(folder, device)
    assert [(lane, token) for lane, token, _, _ in got] == [(lane, token) for lane, token, _, _ in wanted]
    for (lane, _, logprob, top), (_, _, other, others) in zip(got, wanted, strict=True):
        assert logprob == pytest.approx(other, abs=1e-4), lane
        assert [token for token, _ in top] == [token for token, _ in others]
        assert [value for _, value in top] == pytest.approx([value for _, value in others], abs=1e-4)


def prompt_answers(folder, device, top):
    driver = make_driver(folder, device, top=TOP)
    prompts = {1: random_prompt(VOCAB, 150, 1), 0: random_prompt(VOCAB, 70, 2)}
    for lane in prompts:
        driver.start(lane)
    found = []
    for begin, end in ((0, 70), (70, 90), (90, 150)):
        chunk = {lane: prompt[begin:end] for lane, prompt in prompts.items() if prompt[begin:end]}
        targets = {
            lane: [*prompts[lane][begin + 1 : end + 1], -1][: len(part)] for lane, part in chunk.items()
        }
        unfinished = [lane for lane in chunk if end < len(prompts[lane])]
        driver.prefill(chunk, targets=targets, unfinished=unfinished, prompt_top=top, pad=(1, 7, 0))
        result = driver.result
        found.append(
            (
                unpack_floats(result.prompt_logprobs).tolist(),
                unpack_ints(result.prompt_top_tokens).tolist(),
                unpack_floats(result.prompt_top_logprobs).tolist(),
            )
        )
    return found


@pytest.mark.parametrize("top", [0, 3])
def test_questions_about_the_prompt_are_answered(folder, device, top):
    for mine, theirs in zip(
        prompt_answers(folder, device, top), prompt_answers(folder, CpuDevice(1), top), strict=True
    ):
        assert mine[0] == pytest.approx(theirs[0], abs=1e-4, nan_ok=True)
        assert mine[1] == theirs[1]
        assert mine[2] == pytest.approx(theirs[2], abs=1e-4)
        assert len(mine[1]) == top * len(mine[0])
