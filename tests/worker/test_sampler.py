"""The sampler against transformers' processors, closed forms and exact distributions; rows on their own."""

import math
import random

import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tgi.device.base import Device
from tgi.device.cpu import open_device
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.testing.driver import lane_params
from tgi.worker.lanes import Lanes
from tgi.worker.sampler import WINDOW, green_list, process

from .rows import DELTA, GAMMA, enter, make_masks, make_rows, make_sampler


def processed(logits, params, **columns):
    """Scores of rows that have all the same parameters but their own history."""
    rows = make_rows(params, lengths=[max(1, len(one.get("history", []))) for one in params], **columns)
    sampler = make_sampler(params, logits.shape[1])
    plain, _ = process(logits, rows, sampler.tables, Device(1), GAMMA, DELTA)
    short, _ = process(logits, rows, sampler.tables, CpuDevice(1), GAMMA, DELTA)
    assert torch.equal(plain, short)
    return plain


def logits_of(rows, vocab, seed=0, spread=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * spread


HISTORIES = [random.Random(i).choices(range(1000), k=20 + i) for i in range(8)]


def each_row(processor, logits):
    """One row at a time, for their own histories; in float64, so that no sum's order moves a cut."""
    rows = [
        processor(torch.tensor([history]), logits[i : i + 1].double()) for i, history in enumerate(HISTORIES)
    ]
    return torch.cat(rows).float()


def chi_square(counts, expected):
    """The probability of counts that are at least so far from what is expected."""
    statistic = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(counts) - 1
    if not freedom:
        return 1.0
    return torch.special.gammaincc(torch.tensor(freedom / 2.0), torch.tensor(statistic / 2)).item()


@pytest.mark.parametrize("vocab", [1000, 5000])
@pytest.mark.parametrize(
    ("params", "processor"),
    [
        ({"repetition_penalty": 1.3}, RepetitionPenaltyLogitsProcessor(1.3)),
        ({"repetition_penalty": 0.7}, RepetitionPenaltyLogitsProcessor(0.7)),
        ({"temperature": 0.3}, TemperatureLogitsWarper(0.3)),
        ({"top_k": 1}, TopKLogitsWarper(1)),
        ({"top_k": 17}, TopKLogitsWarper(17)),
        ({"top_k": 700}, TopKLogitsWarper(700)),
        ({"top_k": 100_000}, TopKLogitsWarper(100_000)),
        ({"top_p": 0.001}, TopPLogitsWarper(0.001)),
        ({"top_p": 0.6}, TopPLogitsWarper(0.6)),
        ({"top_p": 0.999}, TopPLogitsWarper(0.999)),
        ({"min_p": 1e-30}, MinPLogitsWarper(1e-30)),
        ({"min_p": 0.05}, MinPLogitsWarper(0.05)),
        ({"min_p": 1.0}, MinPLogitsWarper(1.0)),
        ({"typical_p": 0.2}, TypicalLogitsWarper(0.2)),
        ({"typical_p": 0.95}, TypicalLogitsWarper(0.95)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_processors_are_those_of_transformers(params, processor, vocab):
    logits = logits_of(len(HISTORIES), vocab)
    got = processed(logits, [{**params, "sample": True, "history": history} for history in HISTORIES])
    wanted = each_row(processor, logits)
    assert_close_but_for_rounding(got, wanted)


def assert_close_but_for_rounding(got, wanted):
    """Where the cut of top-p lies among tokens of less than 1e-6, float32 may move it by one of them."""
    different = got.isneginf() ^ wanted.isneginf()
    assert different.sum(1).max() <= 1
    assert torch.maximum(got, wanted).softmax(-1)[different].sum() < 1e-5
    torch.testing.assert_close(got.masked_fill(different, 0), wanted.masked_fill(different, 0))


def test_processors_follow_one_another():
    logits = logits_of(len(HISTORIES), 1000)
    params = {
        "repetition_penalty": 1.2,
        "temperature": 0.7,
        "top_k": 300,
        "top_p": 0.9,
        "min_p": 0.02,
        "typical_p": 0.8,
        "sample": True,
    }
    got = processed(logits, [{**params, "history": history} for history in HISTORIES])
    wanted = logits
    for processor in (
        RepetitionPenaltyLogitsProcessor(1.2),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(300),
        TopPLogitsWarper(0.9),
        MinPLogitsWarper(0.02),
        TypicalLogitsWarper(0.8),
    ):
        wanted = each_row(processor, wanted)
    assert torch.equal(got.isneginf(), wanted.isneginf())
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("ties", [False, True])
def test_the_window_gives_what_the_whole_vocabulary_gives_or_says_that_it_cannot(ties):
    """Bit for bit; it cannot where its tokens have less than top_p of the probability that top-k leaves."""
    rng = random.Random(0)
    spreads = (0.1, 1.5, 3.0, 8.0)
    logits = torch.cat([logits_of(20, 3 * WINDOW, seed, spread) for seed, spread in enumerate(spreads)])
    logits = logits.round() if ties else logits
    params = [
        {
            "sample": True,
            "temperature": rng.choice([0.7, 1.0, 1.5]),
            "top_k": rng.choice([0, 0, 1, 50, WINDOW]),
            "top_p": rng.choice([1.0, 0.3, 0.9, 0.99, 1 - 1e-7]),
            "min_p": rng.choice([0.0, 0.05]),
        }
        for _ in logits
    ]
    whole, _ = process(logits, make_rows(params), None, Device(1), GAMMA, DELTA)
    part, undecided = process(logits, make_rows(params, windowed=True), None, Device(1), GAMMA, DELTA)
    assert torch.equal(part[~undecided], whole[~undecided])
    assert 5 < undecided.sum() < 40
    for row, one in enumerate(params):
        exact = (logits[row].double() / one["temperature"]).sort(descending=True).values
        if one["top_k"]:
            exact = exact[exact >= exact[one["top_k"] - 1]]
        seen = exact.softmax(0)[:WINDOW].sum().item()
        if abs(seen - one["top_p"]) > 1e-5 or one["top_p"] == 1:
            assert undecided[row].item() == (one["top_p"] < 1 and seen < one["top_p"]), one


def test_top_k_keeps_ties():
    got = processed(torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]]), [{"top_k": 2, "sample": True}])
    assert got.isneginf().tolist() == [[True, False, False, False, True]]


def test_frequency_penalty_is_a_share_of_the_length():
    history = [4, 4, 4, 7, 1]
    logits = logits_of(1, 10)
    got = processed(logits, [{"frequency_penalty": 0.5, "history": history}])
    wanted = logits.clone()
    for token in history:
        wanted[0, token] -= 0.5 / len(history)
    torch.testing.assert_close(got, wanted)


def test_penalties_count_what_is_drawn():
    logits = logits_of(2, 10)
    params = [{"frequency_penalty": 2.0, "repetition_penalty": 1.1, "history": [1, 2]}, {}]
    sampler = make_sampler(params, 10)
    seen = [1, 2]
    for step in range(6):
        row = make_rows(params, lengths=[2 + step, 9])
        wanted = logits[0].clone()
        for token in set(seen):
            wanted[token] = wanted[token] * 1.1 if wanted[token] < 0 else wanted[token] / 1.1
        for token in range(10):
            wanted[token] -= 2.0 * seen.count(token) / len(seen)
        sampled = sampler(logits, row)
        torch.testing.assert_close(sampled.logprobs[0], wanted.log_softmax(-1).max())
        seen.append(int(sampled.tokens[0]))
        assert seen[-1] == wanted.argmax()


def test_presence_and_count_penalties_are_of_generated_tokens():
    """OpenAI's formula: logit - count * frequency_penalty - (count > 0) * presence_penalty."""
    prompt, generated = [4, 4, 5, 6], [4, 7, 7, 7]
    logits = logits_of(1, 10)
    penalties = {"presence_penalty": 0.7, "count_penalty": 0.4}
    one = {**penalties, "history": prompt + generated, "prompt_length": len(prompt)}
    wanted = logits.clone()
    for token in range(10):
        count = generated.count(token)
        wanted[0, token] -= 0.4 * count + 0.7 * (count > 0)
    torch.testing.assert_close(processed(logits, [one]), wanted)
    fresh = {**penalties, "history": prompt, "prompt_length": len(prompt)}
    assert torch.equal(processed(logits, [fresh]), logits)


def test_what_is_drawn_is_penalised_whoever_the_lane_belonged_to():
    """A count penalty so high that no token comes twice; then another sequence enters the lane."""
    vocab = 12
    penalty = {"count_penalty": 1000.0}
    sampler = make_sampler([{"history": [3, 3], "prompt_length": 2, **penalty}], vocab)
    logits = logits_of(1, vocab)
    for prompt in ([3, 3], [5]):
        one = {"history": prompt, "prompt_length": len(prompt), **penalty}
        enter(sampler, lane_params(0, **one))
        tokens = [int(sampler(logits, make_rows([one])).tokens) for _ in range(vocab)]
        assert tokens == logits[0].argsort(descending=True).tolist()


def test_a_sequence_inherits_nothing_from_the_lane_it_enters():
    everything = {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "count_penalty": 0.5,
        "history": [1, 2, 2],
        "prompt_length": 1,
        "bias": {3: 9.0},
        "min_tokens": 9,
        "ends": [4],
    }
    sampler = make_sampler([everything, everything], 10)
    enter(sampler, lane_params(0))
    logits = logits_of(2, 10)
    rows = make_rows([{}, everything], lengths=[3, 3])
    got, _ = process(logits, rows, sampler.tables, Device(1), GAMMA, DELTA)
    assert torch.equal(got[0], logits[0])
    assert (got[1, :5] != logits[1, :5])[1:].all()


def test_the_bias_is_added():
    logits = logits_of(2, 10)
    bias = {3: 1.5, 7: -2.25, 99: 5.0}  # the model has no token 99
    got = processed(logits, [{"bias": bias}, {}])
    wanted = logits.clone()
    wanted[0, 3] += 1.5
    wanted[0, 7] -= 2.25
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("sample", [True, False])
def test_a_bias_of_a_hundred_decides(sample):
    """OpenAI: -100 bans a token, +100 lets no other come; for logits as models have them."""
    vocab = 50
    logits = logits_of(1, vocab).expand(500, -1)
    best = int(logits[0].argmax())
    for bias, expected in (({best: -100.0}, None), ({11: 100.0}, 11)):
        params = [{"bias": bias, "sample": sample, "seed": seed, "temperature": 1.5} for seed in range(500)]
        tokens = set(make_sampler(params, vocab)(logits, make_rows(params)).tokens.tolist())
        assert best not in tokens
        assert expected is None or tokens == {expected}


def test_no_end_before_min_tokens():
    vocab = 30
    ends = [4, 9, 99]
    params = [{"min_tokens": 3, "ends": ends}, {"min_tokens": 2, "ends": ends}, {"ends": ends}, {}]
    logits = logits_of(4, vocab)
    rows = make_rows(params, draws=[2] * 4)
    got, _ = process(logits, rows, make_sampler(params, vocab).tables, Device(1), GAMMA, DELTA)
    assert got[0, [4, 9]].isneginf().all()
    assert got[0].isneginf().sum() == 2
    assert torch.equal(got[1:], logits[1:])


def test_ends_may_come_where_nothing_else_is_left():
    params = [{"min_tokens": 3, "ends": list(range(30))}]
    logits = logits_of(1, 30)
    assert torch.equal(processed(logits, params), logits)


@pytest.mark.parametrize("vocab", [31, 32, 33, 1000])
def test_a_mask_allows_what_it_says_and_leaves_other_rows_alone(vocab):
    logits = logits_of(4, vocab)
    allowed = {1: [0, 7, vocab - 1], 3: [30]}
    params = [{"sample": row < 2, "top_k": 5 * (row < 2)} for row in range(4)]
    sampler = make_sampler(params, vocab)
    free, _ = process(logits, make_rows(params), sampler.tables, Device(1), GAMMA, DELTA)
    rows = make_rows(params, masks=make_masks(allowed, vocab))
    masked, _ = process(logits, rows, sampler.tables, Device(1), GAMMA, DELTA)
    for row in range(4):
        if row in allowed:
            assert masked[row].isfinite().nonzero()[:, 0].tolist() == allowed[row]
            assert torch.equal(masked[row, allowed[row]], logits[row, allowed[row]])
        else:
            assert torch.equal(masked[row], free[row])


def test_a_masked_row_is_drawn_from_what_is_allowed():
    """In proportion to what the tokens have without the mask."""
    vocab, allowed = 40, [3, 8, 21]
    logits = logits_of(1, vocab, spread=1.0)
    params = [{"sample": True, "seed": seed} for seed in range(DRAWS)]
    rows = make_rows(params, masks=make_masks(dict.fromkeys(range(DRAWS), allowed), vocab))
    sampled = make_sampler(params, vocab)(logits.expand(DRAWS, -1), rows)
    counts = np.bincount(sampled.tokens.numpy(), minlength=vocab)
    expected = logits[0, allowed].double().softmax(-1).numpy() * DRAWS
    assert counts.sum() == counts[allowed].sum()
    assert chi_square(counts[allowed], expected) > 1e-4


@pytest.mark.contract("--watermark-gamma", "--watermark-delta")
def test_watermark_favours_a_share_that_the_previous_token_decides():
    logits = torch.zeros(3, 20_000)
    got = processed(logits, [{"watermark": True}, {"watermark": True}, {}], previous=[5, 6, 5])
    assert set(got[:2].unique().tolist()) == {0.0, DELTA}
    green = got[:2] > 0
    assert green.float().mean(1) == pytest.approx([GAMMA, GAMMA], abs=0.02)
    # As often together as independent choices would be.
    assert (green[0] & green[1]).float().mean() == pytest.approx(GAMMA**2, abs=0.02)
    assert torch.equal(green[0], green_list(torch.tensor([5]), 20_000, GAMMA)[0])
    assert not got[2].any()


OPTIONS = [
    {},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.8},
    {"typical_p": 0.7},
    {"repetition_penalty": 1.5, "history": [1, 2, 3]},
    {"frequency_penalty": -3.0, "history": [1, 2, 3]},
    {"watermark": True},
    {"min_p": 0.2},
    {"presence_penalty": 1.0, "count_penalty": 0.5, "history": [1, 2, 3, 3], "prompt_length": 1},
    {"bias": {4: 2.0, 9: -3.0}},
    {
        "temperature": 1.5,
        "top_k": 25,
        "top_p": 0.95,
        "min_p": 0.01,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.5,
        "count_penalty": 0.5,
        "bias": {4: 2.0, 9: -3.0},
        "watermark": True,
        "history": [1, 2, 3],
        "prompt_length": 1,
    },
]
DRAWS = 20_000


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("over", ["draws", "seeds"])
def test_tokens_are_drawn_with_their_probabilities(options, over):
    """Chi-square of 20,000 draws, of one seed or of as many seeds, at a level of 1 in 10,000."""
    vocab = 40
    logits = logits_of(1, vocab, spread=1.0)
    history = options.get("history", [])
    one = {**options, "sample": True, "seed": 42}
    scores = processed(logits, [one], previous=[3])
    expected = scores.double().softmax(-1)[0].numpy() * DRAWS

    seeds = range(DRAWS) if over == "seeds" else [42] * DRAWS
    params = [{**options, "sample": True, "seed": seed * 0x1234567} for seed in seeds]
    draws = list(range(DRAWS)) if over == "draws" else None
    rows = make_rows(params, draws=draws, lengths=[max(1, len(history))] * DRAWS, previous=[3] * DRAWS)
    sampled = make_sampler(params, vocab)(logits.expand(DRAWS, -1), rows)

    counts = np.bincount(sampled.tokens.numpy(), minlength=vocab)
    assert not counts[expected == 0].any()
    possible = expected > 0
    assert chi_square(counts[possible], expected[possible]) > 1e-4
    wanted = scores.log_softmax(-1)[0][sampled.tokens]
    torch.testing.assert_close(sampled.logprobs, wanted)


@pytest.mark.parametrize("device", [Device, open_device], ids=["torch", "kernels"])
def test_rare_tokens_come_with_their_probability(device):
    """Forty of them in all once in 2^12 draws; what has no probability never."""
    count = 1 << 18
    logits = torch.full((1, 60), -torch.inf)
    logits[0, [3, 10]] = 10.0
    logits[0, 20:] = 10.0 + math.log(2 / (2**12 - 1) / 40)
    keys = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(1)).int()
    logprobs = logits.log_softmax(-1).expand(1 << 14, -1)
    drawn = torch.cat([device(1).draw(logprobs, part) for part in keys.split(1 << 14)])
    counts = np.bincount(drawn.numpy(), minlength=60)
    common = counts[[3, 10]]
    assert common.sum() + counts[20:].sum() == count
    expected = np.array([1 - 2**-12, 1 - 2**-12, 2**-11]) * count / 2
    assert chi_square(np.array([*common, counts[20:].sum()]), expected) > 1e-4


@pytest.mark.parametrize("device", [Device, open_device], ids=["torch", "kernels"])
def test_rounding_hardly_ever_changes_what_is_drawn(device):
    """By at most 2 d / (1 + d), where the distributions differ by d: the inverse of a cumulative distribution
    gives another token for a tenth of these rows."""
    count, vocab = 4000, 2000
    logits = logits_of(count, vocab)
    rounded = logits + torch.randn(count, vocab, generator=torch.Generator().manual_seed(5)) * 2**-8
    keys = torch.randint(-(2**31), 2**31, (count,), generator=torch.Generator().manual_seed(1)).int()
    one, other = (device(1).draw(x.log_softmax(-1), keys) for x in (logits, rounded))
    distances = (logits.double().softmax(-1) - rounded.double().softmax(-1)).abs().sum(-1) / 2
    wanted = float((2 * distances / (1 + distances)).sum())
    assert 0 < int((one != other).sum()) < wanted + 4 * math.sqrt(wanted)


@pytest.mark.parametrize("device", [Device, CpuDevice])
@pytest.mark.parametrize("count", [0, 1, 7, 30, 40])
def test_the_most_likely_are_in_the_order_of_their_ids_where_equal(device, count):
    rng = random.Random(count)
    values = [[rng.choice([0.0, 1.5, -2.0, float("-inf"), 3.25]) for _ in range(30)] for _ in range(50)]
    values += [[1.0] * 30, [float("-inf")] * 29 + [0.5]]
    ids, found = device(1).most_likely(torch.tensor(values), count)
    for row, row_ids, row_values in zip(values, ids.tolist(), found.tolist(), strict=True):
        order = sorted(range(30), key=lambda i: (-row[i], i))[:count]
        kept = [i for i in order if row[i] > float("-inf")]
        assert row_ids == kept + [-1] * (count - len(kept))
        assert row_values == [row[i] for i in kept] + [float("-inf")] * (count - len(kept))


@pytest.mark.parametrize("device", [Device, CpuDevice])
def test_descending_values_are_those_of_python(device):
    rng = random.Random(0)
    values = [[rng.choice([0.0, 1.5, float("-inf"), rng.random()]) for _ in range(1000)] for _ in range(9)]
    descending = device(1).descending(torch.tensor(values, dtype=torch.float32))
    assert descending.tolist() == [sorted(row, reverse=True) for row in torch.tensor(values).tolist()]


def random_params(seed):
    rng = random.Random(seed)
    choices = {
        "sample": [True, False],
        "seed": [0, 1, 2**64 - 1, rng.getrandbits(64)],
        "temperature": [1.0, 0.5, 1.7],
        "top_k": [0, 0, 40, 3000],
        "top_p": [1.0, 1.0, 0.3, 0.97],
        "typical_p": [1.0, 1.0, 0.6],
        "repetition_penalty": [1.0, 1.3],
        "min_p": [0.0, 0.0, 0.1],
        "frequency_penalty": [0.0, 0.8],
        "presence_penalty": [0.0, 0.0, 1.1],
        "count_penalty": [0.0, 0.0, -0.3],
        "bias": [{}, {}, {7: 5.0, 450: -5.0}],
        "min_tokens": [0, 0, 20],
        "watermark": [False, False, True],
    }
    params = {name: rng.choice(values) for name, values in choices.items()}
    if not params["sample"]:
        params |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}
    history = rng.choices(range(500), k=rng.randint(1, 50))
    return {**params, "ends": [3, 77, 200], "history": history, "prompt_length": rng.randint(1, len(history))}


@pytest.mark.parametrize("vocab", [500, 40_000])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(vocab, threads, dtype):
    """Bit for bit: alone, in any order, on a device with static shapes or without."""
    count = 16
    params = [random_params(seed) for seed in range(count)]
    allowed = {i: random.Random(i).sample(range(vocab), 1 + i * vocab // 20) for i in range(0, count, 3)}
    logits = logits_of(count, vocab).to(dtype)
    devices = [CpuDevice(threads), Device(threads)]
    results = {}
    shuffled = random.Random(1).sample(range(count), count)
    try:
        for device in devices:
            for group in [list(range(count)), shuffled, *([i] for i in range(count))]:
                chosen = [params[i] for i in group]
                masked = {place: allowed[i] for place, i in enumerate(group) if i in allowed}
                rows = make_rows(
                    chosen,
                    draws=group,
                    lengths=[len(one["history"]) for one in chosen],
                    previous=[one["history"][-1] for one in chosen],
                    top=3 if len(group) > 1 else 5,
                    masks=make_masks(masked, vocab) if masked else None,
                )
                sampled = make_sampler(chosen, vocab, device)(logits[group], rows)
                for place, i in enumerate(group):
                    result = (
                        sampled.tokens[place].item(),
                        sampled.logprobs[place].item(),
                        sampled.top_tokens[place, :3].tolist(),
                        sampled.top_logprobs[place, :3].tolist(),
                    )
                    assert results.setdefault(i, result) == result
    finally:
        torch.set_num_threads(1)


def test_the_random_numbers_of_two_draws_are_unrelated():
    """Neighbouring seeds and neighbouring draws: uniform, and without correlation."""
    lanes = Lanes(4, 1)
    lanes.seeds[:4] = [0, 1, 2, 2**63]
    numbers = []
    for lane in range(4):
        index = np.full(10_000, lane, np.int32)
        bits = lanes.draw(index, np.arange(10_000, dtype=np.int32))
        numbers.append(bits.view(np.uint32) / 2.0**32)
    for column in numbers:
        counts, _ = np.histogram(column, 100, (0, 1))
        assert chi_square(counts, np.full(100, 100.0)) > 1e-3
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.04
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.04
