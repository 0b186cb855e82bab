"""The sampler against transformers' processors, closed forms and exact distributions; rows on their own."""

import random

import numpy as np
import pytest
import torch
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from tgi.device import Device
from tgi.device.cpu import CpuDevice
from tgi.protocol import Step
from tgi.testing.driver import lane_params
from tgi.worker.lanes import FLOATS, INTS, Lanes
from tgi.worker.sampler import Needs, Sampler, SamplerInputs, green_list, most_likely, process

GAMMA, DELTA = 0.25, 1.5


def make_rows(params, *, draws=None, lengths=None, previous=None, top=0):
    """Row i has params[i] in lane i."""
    lanes = Lanes(len(params))
    changed = tuple(lane_params(lane, **one) for lane, one in enumerate(params))
    lanes.update(
        Step(number=1, prefill=False, bucket_rows=1, bucket_tokens=1, bucket_blocks=1, lanes=b"", starts=b"",
             draws=b"", params=changed)
    )  # fmt: skip
    count = len(params)
    index = np.arange(count, dtype=np.int32)
    high, low = lanes.draw(index, np.array(draws if draws is not None else [0] * count, np.int32))
    columns = {name: lanes.ints[:count, i] for i, name in enumerate(INTS)}
    columns |= {name: lanes.floats[:count, i] for i, name in enumerate(FLOATS)}
    return SamplerInputs(
        needs=Needs.of(columns, top),
        lanes=torch.arange(count),
        lengths=torch.tensor(lengths or [1] * count),
        previous=torch.tensor(previous or [0] * count),
        draw_high=torch.from_numpy(high).long(),
        draw_low=torch.from_numpy(low).long(),
        **{name: torch.from_numpy(values.copy()) for name, values in columns.items()},
    )


def make_sampler(params, vocab, device=None):
    sampler = Sampler(len(params) + 1, vocab, device or CpuDevice(1), GAMMA, DELTA)
    for lane, one in enumerate(params):
        sampler.start(lane, np.array(one.get("history", []), np.int32))
    return sampler


def processed(logits, params, **columns):
    """Scores of rows that have all the same parameters but their own history."""
    rows = make_rows(params, lengths=[max(1, len(one.get("history", []))) for one in params], **columns)
    sampler = make_sampler(params, logits.shape[1])
    plain = process(logits, rows, sampler._counts, GAMMA, DELTA, False)
    short = process(logits, rows, sampler._counts, GAMMA, DELTA, True)
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
        ({"typical_p": 0.2}, TypicalLogitsWarper(0.2)),
        ({"typical_p": 0.95}, TypicalLogitsWarper(0.95)),
    ],
    ids=str,
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
        TypicalLogitsWarper(0.8),
    ):
        wanted = each_row(processor, wanted)
    assert torch.equal(got.isneginf(), wanted.isneginf())
    torch.testing.assert_close(got, wanted)


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


def test_most_likely_breaks_ties_by_id_and_leaves_out_the_impossible():
    logprobs = torch.tensor([[-1.0, -torch.inf, -1.0, -0.5, -torch.inf]])
    for count in (1, 2, 3, 5, 7):
        ids, values = most_likely(logprobs, count)
        assert ids[0].tolist() == [3, 0, 2, -1, -1, -1, -1][:count]
        wanted = [-0.5, -1.0, -1.0] + 4 * [-torch.inf]
        assert values[0].tolist() == wanted[:count]


OPTIONS = [
    {},
    {"temperature": 2.0},
    {"top_k": 5},
    {"top_p": 0.8},
    {"typical_p": 0.7},
    {"repetition_penalty": 1.5, "history": [1, 2, 3]},
    {"frequency_penalty": -3.0, "history": [1, 2, 3]},
    {"watermark": True},
    {
        "temperature": 1.5,
        "top_k": 25,
        "top_p": 0.95,
        "typical_p": 0.9,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.5,
        "watermark": True,
        "history": [1, 2, 3],
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
        "frequency_penalty": [0.0, 0.8],
        "watermark": [False, False, True],
    }
    params = {name: rng.choice(values) for name, values in choices.items()}
    if not params["sample"]:
        params |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0}
    return {**params, "history": rng.choices(range(500), k=rng.randint(1, 50))}


@pytest.mark.parametrize("vocab", [500, 40_000])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(vocab, threads, dtype):
    """Bit for bit: alone, in any order, on a device with static shapes or without."""
    count = 16
    params = [random_params(seed) for seed in range(count)]
    logits = logits_of(count, vocab).to(dtype)
    devices = [CpuDevice(threads), Device(threads)]
    results = {}
    shuffled = random.Random(1).sample(range(count), count)
    try:
        for device in devices:
            for group in [list(range(count)), shuffled, *([i] for i in range(count))]:
                chosen = [params[i] for i in group]
                rows = make_rows(
                    chosen,
                    draws=group,
                    lengths=[len(one["history"]) for one in chosen],
                    previous=[one["history"][-1] for one in chosen],
                    top=3 if len(group) > 1 else 5,
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
    lanes = Lanes(4)
    lanes.seeds[:4] = [0, 1, 2, 2**63]
    numbers = []
    for lane in range(4):
        index = np.full(10_000, lane, np.int32)
        high, low = lanes.draw(index, np.arange(10_000, dtype=np.int32))
        numbers.append((high * 2.0**26 + low) / 2.0**52)
    for column in numbers:
        counts, _ = np.histogram(column, 100, (0, 1))
        assert chi_square(counts, np.full(100, 100.0)) > 1e-3
        assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.04
    assert np.abs(np.corrcoef(numbers) - np.eye(4)).max() < 0.04
