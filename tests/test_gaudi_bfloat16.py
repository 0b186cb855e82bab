"""On every simulated Gaudi logits in bfloat16 are as far from those in float32 as roundings make them.

The unit roundoff is u = 2^-8. Independent roundings add up to u times the root of their number (Higham and
Mary 2019, doi 10.1137/18M1226312), and with random weights all of the model keeps the relative error of what
it is given, but for softmax: an absolute error of a score is a relative one of a weight, so that there errors
grow by the size of the scores. These have a standard deviation of 1.5^2, the gains that `make_llama` gives to
queries and keys.
"""

import random
from collections.abc import Iterator
from math import sqrt
from pathlib import Path

import pytest
import torch

from tests.compiling import COMPILING, open_compiling
from tgi.device.base import Device
from tgi.testing.driver import Driver, make_driver
from tgi.testing.models import make_llama

VOCAB, LAYERS, WORKLOADS = 320, 2, 6
NORM = 2  # normalised, times the weight
ATTENTION = NORM + 1 + 3 + 1 + 1 + 1 + 2 + 1 + 1 + 1
"""Projection; cosine and sine, products, and sum of the rotation; scores; weights; their products with
values; the share of a block and its product; the sum of blocks; projection; residual."""
MLP = NORM + 1 + 2 + 1 + 1
"""Projection; SiLU and product; projection; residual."""
ROUNDINGS = LAYERS * (ATTENTION + MLP) + NORM + 1
SCORES = 1.5**2
BOUND = 2**-8 * sqrt(ROUNDINGS) * SCORES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"), dtype="bfloat16", vocab_size=VOCAB)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> list[torch.Tensor]:
    driver = make_driver(folder, Device(1), range(1, 999), dtype="float32")
    return [logits for number in range(WORKLOADS) for logits in workload(driver, number)]


def workload(driver: Driver, number: int) -> Iterator[torch.Tensor]:
    """Logits of some sequences whose tokens are given by masks: in chunks, sharing a prefix, in any order."""
    rng = random.Random(number)
    texts = {lane: rng.choices(range(VOCAB), k=rng.randrange(24, 80)) for lane in range(6)}
    texts[5][:16] = texts[4][:16]

    def mask(lane: int, tokens: int) -> bytes:
        following = texts[lane][driver.lanes[lane].cached + tokens]
        return (1 << following).to_bytes(VOCAB // 8, "little")

    for lane, text in texts.items():
        driver.start(lane)
        if lane == 5:
            driver.share(lane, 4, 16)
        end = len(text) - 5
        cut = rng.randrange(driver.lanes[lane].cached + 1, end)
        driver.prefill({lane: text[driver.lanes[lane].cached : cut]}, unfinished=[lane], pad=(1, 3, 1))
        masks = {lane: mask(lane, end - cut)}
        yield driver.prefill({lane: text[cut:end]}, masks=masks)[lane].logits
    for _ in range(4):
        lanes = rng.sample(range(6), 6)
        answers = driver.decode(lanes, masks={lane: mask(lane, 1) for lane in lanes}, pad=(2, 0, 5))
        yield from (answers[lane].logits for lane in range(6))


@pytest.mark.parametrize("name", COMPILING)
def test_logits_are_within_the_bound(folder: Path, wanted: list[torch.Tensor], name: str) -> None:
    with open_compiling(name) as device:
        driver = make_driver(folder, device, range(1, 999), dtype="bfloat16")
        got = [logits for number in range(WORKLOADS) for logits in workload(driver, number)]
    errors = [float((mine - theirs).norm() / theirs.norm()) for mine, theirs in zip(got, wanted, strict=True)]
    assert sqrt(sum(error**2 for error in errors) / len(errors)) < BOUND
    assert max(errors) < 2 * BOUND, "the rows' errors vary about their mean"
    assert min(errors) > 2**-10, "it was computed in bfloat16"
