"""Kernels that choose tokens against their definition in float64, and each row bit for bit alone."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tgi_cpu_kernels import Kernels

from .comparing import BOTH, random


@BOTH
@pytest.mark.parametrize("size", [1, 15, 16, 100, 32003])
def test_greedy_and_log_softmax(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    scores = 30 * random(9, size, dtype=dtype)
    scores[0] = 3
    scores[1, size // 2 :] = -math.inf
    scores[1, 0] = 0
    scores[2, size - 1] = scores[2].max()
    expected = scores.double().log_softmax(-1)
    best, logprobs = kernels.greedy(scores)
    assert torch.equal(best, scores.argmax(-1))
    assert (logprobs - expected.amax(-1)).abs().max() < 1e-5
    every = kernels.log_softmax(scores.float())
    assert (every - expected).nan_to_num(0).abs().max() < 3e-5
    assert torch.equal(every.gather(1, best[:, None])[:, 0], logprobs)
    alone = [kernels.greedy(row[None])[1] for row in scores]
    assert torch.equal(torch.cat(alone), logprobs)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_scores_without_a_softmax_give_nan(kernels: Kernels, wrong: float) -> None:
    scores = random(3, 40, dtype=torch.float32)
    scores[1] = wrong
    scores[2, 39] = wrong
    best, logprobs = kernels.greedy(scores)
    assert logprobs.isnan().tolist() == [False, True, wrong != -math.inf]
    assert ((best >= 0) & (best < 40)).all()
    assert kernels.log_softmax(scores)[1].isnan().all()


def least_kept(row: torch.Tensor, k: int, p: float) -> float:
    """Take the best scores one by one, as sampling with top-k and top-p is defined."""
    best = row.double().sort(descending=True).values
    best = best[best >= best[k - 1]] if 0 < k < len(best) else best
    before = best.softmax(0).cumsum(0) - best.softmax(0)
    return best[before < p][-1].item() if p < 1 else best[-1].item()


@pytest.mark.parametrize("size", [5, 100, 3001])
@pytest.mark.parametrize("spread", [0.01, 1.0, 10.0])
def test_the_least_score_that_stays(kernels: Kernels, size: int, spread: float) -> None:
    """Scores are whole steps apart in some rows, so that there are equals at the border."""
    scores = spread * random(12, size, dtype=torch.float32)
    scores[6:] = scores[6:].round()
    top_k = torch.tensor([0, 1, 2, 3, 50, 4000] * 2, dtype=torch.int32)
    top_p = torch.tensor([0.1, 0.5, 0.9, 1.0, 0.95, 0.999, 1.0, 0.3, 0.7, 0.8, 0.2, 0.01])
    for k, p in ((top_k, top_p), (top_k, None), (None, top_p)):
        cut = kernels.top_cut(scores, k, p)
        for row in range(12):
            least = least_kept(
                scores[row], 0 if k is None else int(k[row]), 1 if p is None else float(p[row])
            )
            assert torch.equal(scores[row] >= cut[row], scores[row] >= least)
        alone = [
            kernels.top_cut(
                scores[n : n + 1], None if k is None else k[n : n + 1], None if p is None else p[n : n + 1]
            )
            for n in range(12)
        ]
        assert torch.equal(torch.cat(alone), cut)


def mixed(x: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    for _ in range(2):
        x = ((x >> np.uint32(16)) ^ x) * np.uint32(0x45D9F3B)
    return (x >> np.uint32(16)) ^ x


@pytest.mark.parametrize("size", [1, 15, 16, 1025, 5000])
def test_the_winner_of_a_race_is_drawn(kernels: Kernels, size: int) -> None:
    """Whoever comes first after an exponentially distributed time, at the rate of its probability."""
    logprobs = random(64, size, dtype=torch.float32).log_softmax(-1)
    logprobs[:, size // 3 + 1 :: 2] = -math.inf
    keys = torch.randint(-(2**31), 2**31, (64,), generator=torch.Generator().manual_seed(size)).int()
    drawn = kernels.draw(logprobs, keys)
    bits = mixed(mixed(np.arange(size, dtype=np.uint32)) ^ keys.numpy().view(np.uint32)[:, None])
    uniform = np.minimum(((bits & 0x7FFFFFFF) + 0.5) / 2**31, 1 - 2**-24)
    scores = logprobs.double().numpy() - np.log(-np.log1p(-uniform))
    chosen = np.take_along_axis(scores, drawn[:, None].numpy(), 1)[:, 0]
    assert (chosen >= scores.max(1) - 1e-5).all()
    alone = [kernels.draw(logprobs[n : n + 1], keys[n : n + 1]) for n in range(64)]
    assert torch.equal(torch.cat(alone), drawn)


def test_the_only_number_that_has_a_probability_is_drawn(kernels: Kernels) -> None:
    logprobs = torch.full((200, 100), -math.inf)
    logprobs[:, 77] = 0
    keys = torch.arange(-100, 100, dtype=torch.int32) * 21_474_836
    assert set(kernels.draw(logprobs, keys).tolist()) == {77}
