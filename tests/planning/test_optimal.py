"""The default buckets: as few as asked for, none missing, and nearly as good as any search can make them."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.invariants import dominates
from tgi.device.costs import Costs
from tgi.planning.optimal import TooFewGraphs, optimal
from tgi.planning.shapes import ShapeLimits
from tgi.planning.workload import Workload
from tgi.protocol import Bucket

from .shape_limits import shapes, spaces

COSTS = Costs.of()
SERVER = ShapeLimits(max_batch_size=128, max_batch_prefill_tokens=8192, max_total_tokens=4096, block_size=128)
LONG = ShapeLimits(max_batch_size=128, max_batch_prefill_tokens=32768, max_total_tokens=32768, block_size=128)


class DecodeOnly(ShapeLimits):
    """Prompts of one token, without context: a single bucket is enough for them."""

    contexts = False


def cheapest(buckets: list[Bucket], shape: Bucket) -> float:
    return min((COSTS.seconds(b) for b in buckets if dominates(b, shape)), default=math.inf)


@settings(deadline=None)
@given(spaces, st.integers(4, 60), st.data())
def test_every_step_has_a_bucket(of: ShapeLimits, most: int, data: st.DataObject) -> None:
    shape = data.draw(shapes(of))

    buckets = optimal(of, Workload.uniform(of), COSTS, most)

    assert len(buckets) <= most
    assert len(set(buckets)) == len(buckets)
    assert all(of.clipped(bucket) == bucket for bucket in buckets)
    assert any(dominates(bucket, shape) for bucket in buckets)


@settings(deadline=None, max_examples=40)
@given(spaces, st.sampled_from([0.5, 1.0, 2.0]), st.data())
def test_no_step_is_padded_beyond_the_bound(of: ShapeLimits, waste: float, data: st.DataObject) -> None:
    shape = data.draw(shapes(of))

    buckets = optimal(of, Workload.uniform(of), COSTS, 400, waste)

    assert cheapest(buckets, shape) <= (1 + waste) * COSTS.seconds(shape)


def test_a_bound_that_takes_more_graphs_is_refused() -> None:
    with pytest.raises(TooFewGraphs) as caught:
        optimal(SERVER, Workload.uniform(SERVER), COSTS, 8, 0.5)

    needed = caught.value.needed
    assert needed > 8
    assert len(optimal(SERVER, Workload.uniform(SERVER), COSTS, needed, 0.5)) <= needed


@pytest.mark.parametrize("of", [SERVER, LONG])
def test_choosing_is_fast_and_repeatable(of: ShapeLimits) -> None:
    began = time.process_time()
    buckets = optimal(of, Workload.uniform(of), COSTS, 100, 1.0)

    assert time.process_time() - began < 2
    assert buckets == optimal(of, Workload.uniform(of), COSTS, 100, 1.0)
    assert 90 <= len(buckets) <= 100


def small(seed: int) -> tuple[ShapeLimits, Workload]:
    """Up to 4 rows of up to 3 blocks, in any frequency, and a single prefill."""
    rng = np.random.default_rng(seed)
    of = DecodeOnly(max_batch_size=4, max_batch_prefill_tokens=1, max_total_tokens=3, block_size=1)
    shapes = np.array([(rows, blocks) for rows in range(1, 5) for blocks in range(rows, 3 * rows + 1)])
    return of, Workload(shapes, rng.exponential(size=len(shapes)) ** 3, np.array([[1, 1, 0]]), np.ones(1))


def expected(buckets: list[Bucket], workload: Workload, costs: Costs) -> float:
    return sum(
        weight
        * min(costs.seconds(b) for b in buckets if not b.prefill and b.rows >= rows and b.blocks >= blocks)
        for (rows, blocks), weight in zip(workload.decode.tolist(), workload.decode_weights, strict=True)
    )


@pytest.mark.parametrize("seed", range(8))
def test_few_shapes_are_served_nearly_as_well_as_possible(seed: int) -> None:
    """Against all sets of three decode buckets and the largest."""
    costs = Costs(
        start=0.2, weights=1.0, token=0.3, pair=0.01, mapping=0.01, block=0.5, row=0.2, block_size=1
    )
    of, workload = small(seed)
    every = [Bucket(r, 1, b) for r in range(1, 5) for b in range(r, 3 * r + 1)][:-1]
    largest = Bucket(4, 1, 12)
    best = min(expected([*some, largest], workload, costs) for some in itertools.combinations(every, 3))

    found = optimal(of, workload, costs, 5)

    assert sum(not bucket.prefill for bucket in found) <= 4
    assert expected(found, workload, costs) <= 1.05 * best


def without_the_least_missed(buckets: list[Bucket], workload: Workload, keep: int) -> float:
    """Expected cost of a decode step after removing buckets one by one, each time the one missed least."""
    sizes = np.array([[bucket.rows, bucket.blocks] for bucket in buckets])
    costs = np.array([COSTS.seconds(bucket) for bucket in buckets])
    order = costs.argsort(kind="stable")
    sizes, costs, chosen = sizes[order], costs[order], np.ones(len(buckets), bool)
    fits = (workload.decode[None, :, :] <= sizes[:, None, :]).all(2)
    while chosen.sum() > keep:
        places = [np.flatnonzero(chosen & column)[:2] for column in fits.T]
        missed = np.zeros(len(buckets))
        for place, weight in zip(places, workload.decode_weights, strict=True):
            missed[place[0]] += weight * (costs[place[1]] - costs[place[0]] if len(place) > 1 else np.inf)
        chosen[np.where(chosen, missed, np.inf).argmin()] = False
    first = np.where(chosen[:, None] & fits, costs[:, None], np.inf).min(0)
    return float(first @ workload.decode_weights)


def test_another_method_finds_nothing_better() -> None:
    of = DecodeOnly(max_batch_size=16, max_batch_prefill_tokens=1, max_total_tokens=1024, block_size=128)
    workload = Workload.uniform(of)
    every = sorted({of.clipped(Bucket(r, 1, b)) for r in range(1, 17) for b in range(r, 129, 4)})
    every.append(Bucket(16, 1, 128))
    other = without_the_least_missed(sorted(set(every)), workload, 12)

    found = [bucket for bucket in optimal(of, workload, COSTS, 13) if not bucket.prefill]

    ours = sum(
        cheapest(found, Bucket(rows, 1, blocks)) * weight
        for (rows, blocks), weight in zip(workload.decode.tolist(), workload.decode_weights, strict=True)
    )
    assert len(found) <= 12
    assert ours <= 1.005 * other
