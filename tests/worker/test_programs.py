"""Programs per bucket give what the CPU's direct way gives, whatever sequences bring."""

import random

import pytest
import torch
from tgi_simulated_gaudi import KVGuard
from tgi_simulated_gaudi.device import CARDS

from tests.compiling import COMPILING, open_compiling
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.device.hpu.host_copies import HostCopies
from tgi.protocol import unpack_floats, unpack_ints
from tgi.testing.driver import make_driver
from tgi.testing.models import make_llama
from tgi.testing.runs import random_prompt
from tgi.worker import launching
from tgi.worker.layout import Sizes, sample_layout

from .rows import pack

VOCAB = 500
TOP = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("llama"), vocab_size=VOCAB)


def params(lane, prompt):
    """Each lane another mixture; 5 and 6 bring more than one run of the program for tables has room for."""
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
        5: {"bias": {token: rng.uniform(-9, 9) for token in range(launching.MAX_ENTRIES + 60)}},
        6: {"min_tokens": 5, "ends": rng.sample(range(VOCAB), launching.MAX_ENTRIES + 40)},
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


@pytest.fixture(params=CARDS)
def card(request):
    """A simulated card's device."""
    with open_compiling(request.param) as opened:
        yield opened


def rounds(folder, device, count, before=None, **load):
    """Two sequences with everything come and go in the same buckets again and again; yields tokens."""
    driver = make_driver(folder, device, range(1, 64), top=TOP, **load)
    before = before or (lambda *_: None)
    before(driver, False)
    for turn in range(count):
        if turn == 1:
            before(driver, True)
        prompts = {lane: random_prompt(VOCAB, 20 + lane, 7 * turn + lane) for lane in (2, 3)}
        driver.free = list(range(1, 64))
        for lane, prompt in prompts.items():
            driver.start(lane, **params(lane, prompt))
        answers = [driver.prefill(prompts, masks={2: MASKS[4]}, top=3)]
        answers += [driver.decode([3, 2], top=2) for _ in range(3)]
        yield [(step[2].token, step[3].token) for step in answers]


def texts(folder, device, least, monkeypatch):
    """Tokens of greedy and drawn rows in turn, with the sampler that each step gets."""
    used = []
    variant = launching.Programs._variant

    def noted(self, step, samples, needs):
        made = variant(self, step, samples, needs)
        used.append(launching.COMPILED_NEEDS.index(made.needs))
        return made

    monkeypatch.setattr(launching.Programs, "_variant", noted)
    driver = make_driver(folder, device)
    drawn = {"sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 50, "min_p": 0.01}
    for lane, prompt in ((0, PROMPTS[0]), (1, PROMPTS[1])):
        driver.start(lane, seed=3, prompt_length=len(prompt), **(drawn if lane else {}))
    answers = [driver.prefill({lane: PROMPTS[lane]}, least_sampler=least) for lane in (0, 1)]
    answers += [driver.decode([0], least_sampler=least) for _ in range(4)]
    answers += [driver.decode([0, 1], least_sampler=least) for _ in range(6)]
    return [(lane, a.token, a.logprob) for step in answers for lane, a in step.items()], used


def test_the_text_is_the_same_whatever_program_of_the_sampler_runs(folder, device, monkeypatch):
    monkeypatch.setattr("tgi.worker.sampler.WINDOW", 100)
    wanted, used = texts(folder, device, 0, monkeypatch)
    assert used == [0, 1] + [0] * 4 + [1] * 6
    for least in (1, 2):
        got, used = texts(folder, device, least, monkeypatch)
        assert got == wanted
        assert set(used) == {least}


def test_only_the_last_program_of_the_sampler_has_masks_and_sorts(folder, device, monkeypatch):
    def refuse(*_):
        raise AssertionError("the vocabulary is sorted")

    monkeypatch.setattr("tgi.worker.sampler.WINDOW", 100)
    monkeypatch.setattr(type(device), "descending", refuse)
    texts(folder, device, 0, monkeypatch)
    with pytest.raises(AssertionError, match="sorted"):
        texts(folder, device, 2, monkeypatch)
    sizes = Sizes(16, 4, VOCAB, (None,))
    words = [sample_layout(4, masks, sizes).ints.size for masks in (0, 4)]
    assert words[1] - words[0] == 4 * -(-VOCAB // 32)


def test_a_row_that_the_window_does_not_decide_gets_no_token(folder, device, monkeypatch):
    monkeypatch.setattr("tgi.worker.sampler.WINDOW", 20)
    driver = make_driver(folder, device)
    for lane, top_p in ((1, 0.999), (2, 0.001)):
        driver.start(lane, sample=True, temperature=20.0, top_p=top_p)
    answers = driver.prefill({lane: PROMPTS[lane] for lane in (1, 2)})
    assert answers[1].token == -1
    assert answers[2].token >= 0
    assert driver.decode([2, 1])[2].token >= 0  # the step that was on its way is no harm
    driver.start(1, sample=True, temperature=20.0, top_p=0.999)
    assert driver.prefill({1: PROMPTS[1]}, least_sampler=2)[1].token >= 0


def test_a_step_is_three_copies_in_and_two_out_and_compiles_nothing(folder, card):
    counters = card.card.ledger.counters
    names = ("h2d", "d2h", "graph_compilation", "cpu_fallback", "dynamic_shapes", "int64_truncations")
    seen = []

    def watch(driver, seal):
        if not seal:
            return
        driver.runner.seal()
        execute = driver.runner.execute

        def counted(step):
            begun = [counters[name] for name in names]
            with card.card.step(copies_in=3 + 4 * bool(step.params), copies_out=2):
                result = execute(step)
            seen.append([counters[name] - number for name, number in zip(names, begun, strict=True)])
            assert result.statistics.keys() <= {"device_memory_bytes"}, "compilations, fallbacks or misses"
            return result

        driver.runner = Executing(driver.runner, counted)

    wanted = list(rounds(folder, CpuDevice(1), 3))
    assert list(rounds(folder, card, 3, watch)) == wanted
    assert seen == [[7, 2, 0, 0, 0, 0], *[[3, 2, 0, 0, 0, 0]] * 3] * 2
    assert not card.card.ledger.violations


class Executing:
    """A runner that does more at each step."""

    def __init__(self, runner, execute):
        self._runner, self.execute = runner, execute

    def __getattr__(self, name):
        return getattr(self._runner, name)


def test_results_arrive_where_memory_cannot_be_pinned(folder, card, monkeypatch):
    monkeypatch.setattr(HostCopies, "pinned", False)

    def seal(driver, seal):
        if seal:
            driver.runner.seal()

    assert list(rounds(folder, card, 3, seal)) == list(rounds(folder, CpuDevice(1), 3))
    assert not card.card.ledger.violations
    (remark,) = card.remarks()
    assert "pin" in remark


def test_a_step_reads_and_writes_the_blocks_of_its_sequences_only(folder, card):
    """Other blocks, the padding's too, are full of rubbish."""

    def guard(driver, seal):
        if seal:
            return
        tensors = [part for layer in driver.runner.cache.layers for part in layer.tensors]
        kv = KVGuard.watch(card.card, tensors, 16, 0)
        execute = driver.runner.execute

        def guarded(step):
            lanes = unpack_ints(step.lanes).tolist()
            kv.own({lane: driver.lanes[lane].table for lane in lanes})
            kv.scramble()
            return execute(step)

        driver.runner = Executing(driver.runner, guarded)

    assert list(rounds(folder, card, 3, guard)) == list(rounds(folder, CpuDevice(1), 3))


@pytest.mark.parametrize("load", [{"dtype": "bfloat16"}, {"kv_cache_dtype": "fp8_e4m3fn"}], ids=str)
def test_other_dtypes_give_about_the_same(folder, card, load):
    """A token after a prompt whose beginning is in the cache, and one after another, from the cache alone."""

    def logits(device, **load):
        driver = make_driver(folder, device, **load)
        for turn in range(2):
            if turn:
                driver.runner.seal()
            driver.start(1, prompt_length=32)
            driver.start(2)
            driver.prefill({1: PROMPTS[7][:32]})
            driver.share(2, 1, 32)
            answers = [driver.prefill({2: PROMPTS[7][32:]})[2], driver.decode([1])[1]]
        return torch.stack([answer.logits for answer in answers])

    wanted = logits(CpuDevice(1))
    error = (logits(card, **load) - wanted).std() / wanted.std()
    assert 0.001 < error < 0.1
    assert not card.card.ledger.violations
