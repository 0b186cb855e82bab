"""The roofline against published rates and against times worked out by hand."""

import numpy as np
import pytest

from tgi.device import cuda, hpu
from tgi.device.costs import LLAMA_8B, Costs, ModelSize
from tgi.protocol import Bucket

# optimum-habana's CI, bfloat16, one row: parameters, tokens a second on gaudi2 and on gaudi3.
PUBLISHED = [
    ("Llama-2-7B", 6.74e9, 141, 174),
    ("Llama-3-8B", 8.03e9, 129, 162),
    ("Mistral-7B", 7.25e9, 135, 160),
    ("Falcon-40B", 41.8e9, 25.2, 34.0),
]


@pytest.mark.parametrize(("name", "parameters", "gaudi2", "gaudi3"), PUBLISHED)
def test_one_row_is_as_fast_as_published(name: str, parameters: float, gaudi2: float, gaudi3: float) -> None:
    size = ModelSize(
        parameters=parameters, weight_bytes=2 * parameters, kv_bytes=0, width=0, vocabulary=32_000
    )
    for card, rate in (("gaudi2", gaudi2), ("gaudi3", gaudi3)):
        seconds = hpu.SPEC.step_costs(size, hpu.SPEC.cards[card], 128).seconds(Bucket(1, 1, 1))
        assert 1 / seconds == pytest.approx(rate, rel=0.08), (name, card)


def test_a_long_prefill_is_bound_by_multiplying() -> None:
    costs = Costs.of(LLAMA_8B, hpu.SPEC.cards["gaudi2"])
    linear = 2 * 8.03e9 * 4096 / 432e12 / 0.87
    attention = 4 * 32 * 4096 * (4096 * 4096 / 2) / 432e12 / 0.87
    assert costs.seconds(Bucket(1, 4096, 0, prefill=True)) == pytest.approx(
        0.8e-3 + linear + attention, rel=1e-3
    )


def test_a_decode_step_reads_weights_and_blocks() -> None:
    """Blocks of 128 tokens of Llama-3.1-8B have 16 MiB."""
    costs = Costs.of(LLAMA_8B, hpu.SPEC.cards["gaudi3"])
    more = costs.seconds(Bucket(1, 1, 1001)) - costs.seconds(Bucket(1, 1, 1))
    assert more == pytest.approx(1000 * 2**24 / 3.67e12 / 0.87, rel=1e-3)


def test_larger_steps_cost_more() -> None:
    costs = Costs.of()
    sizes = np.arange(1, 50)
    for grown in (costs.decode(sizes, 60), costs.decode(2, sizes), costs.prefill(1, sizes * 40, 3)):
        assert (np.diff(grown) > 0).all()
    assert (np.diff(costs.prefill(sizes, 300, 0)) > 0).all()
    assert (np.diff(costs.prefill(2, 300, sizes)) > 0).all()


def test_attention_that_reads_blocks_where_they_are_costs_no_mapping() -> None:
    """More rows over the same blocks then cost their linear layers and sampling alone."""
    costs = cuda.SPEC.step_costs(LLAMA_8B, cuda.SPEC.cards["h100"], 32)
    alone, among_many = (costs.decode(64, blocks) for blocks in (0, 1000))
    assert among_many - alone == pytest.approx(1000 * 2**22 / 3.35e12 / 0.87, rel=1e-3)
