"""Every step that can be planned has a bucket that dominates it, and of those the cheapest."""

import itertools
import sys
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.invariants import dominates
from tgi.config import OptionError
from tgi.device.costs import Costs
from tgi.limits import Limits
from tgi.planning.buckets import (
    MAX_GRAPHS,
    Bucketing,
    attention_workspace,
    doubling,
    make_buckets,
)
from tgi.planning.shapes import AttentionWorkspace, ShapeLimits
from tgi.plugins import DeviceSpec
from tgi.protocol import Bucket
from tgi.scheduler.buckets import Buckets
from tgi.testing.builders import make_device

from .shape_limits import limits, shapes

COSTS = Costs.of()
SMALL = Limits(max_total_tokens=512, max_batch_size=5, max_batch_prefill_tokens=128, block_size=16)


def device(of: Limits, *, compiles: bool = True, flat: bool = False) -> DeviceSpec:
    return make_device(block_size=of.block_size, compiles=compiles, flat=flat)


def make(of: Limits, *, flat: bool = True, prefixes: bool = True, **how: object) -> Buckets:
    """Buckets of a device with flat block lists, or with a block table per row."""
    bucketing = Bucketing(costs=COSTS, **how)  # type: ignore[arg-type]
    return make_buckets(of, device(of, flat=flat), bucketing, prefixes=prefixes)


def find_decode(buckets: Buckets, rows: int, blocks: int) -> Bucket:
    bucket = buckets.find(Bucket(rows, 1, blocks))
    assert bucket is not None
    return bucket


def find_prefill(buckets: Buckets, rows: int, tokens: int, blocks: int) -> Bucket | None:
    return buckets.find(Bucket(rows, tokens, blocks, prefill=True))


def cheapest(buckets: Buckets, shape: Bucket) -> float:
    return min(COSTS.seconds(bucket) for bucket in buckets if dominates(bucket, shape))


@settings(deadline=None, max_examples=60)
@given(limits, st.booleans(), st.data())
def test_every_step_gets_the_cheapest_bucket_that_dominates_it(
    of: Limits, prefixes: bool, data: st.DataObject
) -> None:
    buckets = make(of, prefixes=prefixes)
    shape = data.draw(shapes(ShapeLimits.from_limits(of, prefixes=prefixes)))

    bucket = buckets.find(shape)

    assert bucket is not None
    assert dominates(bucket, shape)
    assert COSTS.seconds(bucket) == cheapest(buckets, shape)


@settings(deadline=None, max_examples=60)
@given(limits, st.booleans(), st.data())
def test_several_rows_of_a_prefill_have_a_bucket_within_the_budget_or_none(
    of: Limits, flat: bool, data: st.DataObject
) -> None:
    buckets = make(of, flat=flat)
    rows, tokens = data.draw(st.integers(2, 50)), data.draw(st.integers(1, of.longest_chunk))
    shape = Bucket(rows, tokens, data.draw(st.integers(0, 20)), prefill=True)

    bucket = buckets.find(shape)

    if bucket is None:
        assert not any(dominates(other, shape) for other in buckets)
    else:
        assert bucket.rows * bucket.tokens <= of.max_batch_prefill_tokens
        assert COSTS.seconds(bucket) == cheapest(buckets, shape)


@given(limits, st.data())
def test_a_table_per_row_has_sizes_that_double(of: Limits, data: st.DataObject) -> None:
    buckets = make(of, flat=False)
    rows = data.draw(st.integers(1, of.max_batch_size))
    blocks = data.draw(st.integers(1, of.seen_blocks(1)))
    tokens = data.draw(st.integers(1, of.longest_chunk))

    decode, prefill = find_decode(buckets, rows, blocks), find_prefill(buckets, 1, tokens, blocks)

    assert rows <= decode.rows < 2 * rows
    assert blocks <= decode.blocks < 2 * blocks
    assert prefill is not None
    assert tokens <= prefill.tokens < 2 * max(tokens, of.block_size)


def test_a_device_that_does_not_compile_has_every_shape() -> None:
    buckets = make_buckets(SMALL, device(SMALL, compiles=False, flat=True))

    assert not buckets.padded
    assert not buckets.flat
    assert find_decode(buckets, 3, 7) == Bucket(3, 1, 7)
    assert find_prefill(buckets, 5, 17, 7) == Bucket(5, 17, 7, prefill=True)
    assert buckets.to_warm_up() == [Bucket(1, 64, 32, prefill=True), Bucket(5, 1, 32)]


@pytest.mark.parametrize("flat", [True, False])
def test_the_largest_come_first_and_all_are_warmed_up(flat: bool) -> None:
    buckets = make(SMALL, flat=flat)
    everything = list(buckets)

    assert len(set(everything)) == len(everything)
    assert buckets.to_warm_up() == everything
    first, last = (next(b for b in everything if b.prefill is kind) for kind in (True, False))
    assert buckets.to_warm_up(everything=False) == buckets.largest() == [first, last]
    assert first.rows * first.tokens == max(b.rows * b.tokens for b in everything if b.prefill)
    assert (last.rows, last.blocks) == (5, 160 if flat else 32)
    kinds = [bucket.prefill for bucket in everything]
    assert kinds == sorted(kinds, reverse=True)


def test_rows_are_joined_where_that_is_cheaper() -> None:
    """Two short rows cost one reading of the weights less together; padding a short one to a long one more
    than that."""
    buckets = make(Limits(max_batch_prefill_tokens=4096, block_size=128), flat=False)
    short, long = find_prefill(buckets, 1, 64, 1), find_prefill(buckets, 1, 2048, 16)

    assert buckets.worth_joining(find_prefill(buckets, 2, 64, 1), (short, short))
    assert not buckets.worth_joining(find_prefill(buckets, 2, 2048, 16), (long, short))
    assert not buckets.worth_joining(None, (short, short))


def test_blocks_that_are_not_shared_bound_those_of_a_step() -> None:
    of = Limits(max_batch_size=64, block_size=128)
    shared, own = (
        make_buckets(of, device(of, flat=True), prefixes=prefixes, blocks=500) for prefixes in (True, False)
    )

    assert max(bucket.blocks for bucket in shared) == 64 * 32
    assert max(bucket.blocks for bucket in own) == 500


def test_the_workspace_is_that_of_the_largest_steps() -> None:
    """Blocks of 4 tokens: a decode of 40 blocks; prefill of 2 x 8 after 12, of 1 x 8 after 96 at most."""
    of = Limits(max_total_tokens=96, max_batch_prefill_tokens=8, max_batch_size=4, block_size=4)
    shapes = [Bucket(4, 1, 40), Bucket(2, 4, 3, prefill=True), Bucket(1, 8, 2, prefill=True)]

    assert attention_workspace(of, Buckets(of, shapes, flat=True)) == AttentionWorkspace(2 * 26, 40, 8 * 104)
    more = [Bucket(4, 1, 60), Bucket(4, 4, 24, prefill=True), *shapes]
    assert attention_workspace(of, Buckets(of, more, flat=True)) == AttentionWorkspace(
        2 * 4 * 25, 60, 16 * 100
    )
    assert attention_workspace(of, Buckets(of)) == AttentionWorkspace()


@settings(deadline=None, max_examples=30)
@given(limits, st.booleans(), st.integers(1, 500), st.data())
def test_other_buckets_need_no_more_memory_than_was_planned_for(
    of: Limits, prefixes: bool, blocks: int, data: st.DataObject
) -> None:
    def choose(graphs: int, **known: Any) -> Buckets:
        flat, bucketing = device(of, flat=True), Bucketing(max_graphs=graphs, costs=COSTS)
        return make_buckets(of, flat, bucketing, prefixes=prefixes, **known)

    first = choose(60)
    reserved = attention_workspace(of, first, prefixes=prefixes)
    shape = data.draw(shapes(ShapeLimits.from_limits(of, prefixes=prefixes, blocks=blocks)))

    fewer = choose(data.draw(st.integers(2, 60)), blocks=blocks, within=reserved)

    for buckets in (first, fewer):
        for bucket in buckets:
            assert bucket.rows * bucket.tokens <= max(of.max_batch_prefill_tokens, of.max_batch_size)
            if bucket.prefill:
                assert bucket.rows * bucket.tokens <= of.max_batch_prefill_tokens
                context = bucket.blocks * of.block_size + bucket.tokens
                assert bucket.rows * bucket.tokens * context <= reserved.prefill_pairs
                assert 2 * bucket.rows * context <= reserved.gathered_blocks * of.block_size
            else:
                assert bucket.blocks <= reserved.listed_blocks
                assert min(bucket.blocks, 4096) <= reserved.gathered_blocks
    assert fewer.find(shape) is not None


def test_a_decode_step_of_many_blocks_copies_a_part_of_them_at_once() -> None:
    """40 rows of 103 blocks are more than the 4,096 that a device gathers; all of them are listed."""
    of = Limits(max_total_tokens=1648, max_batch_prefill_tokens=16, max_batch_size=40, block_size=16)
    buckets = make(of)

    assert max(bucket.blocks for bucket in buckets if not bucket.prefill) == 4120
    assert attention_workspace(of, buckets) == AttentionWorkspace(4096, 4120, 16 * (103 * 16 + 16))


def test_buckets_are_chosen_for_a_small_cache() -> None:
    """Sequences that share blocks may still have more of them in all than there are."""
    of = Limits(max_batch_size=64, max_total_tokens=131072, block_size=128)
    flat, bucketing = device(of, flat=True), Bucketing(costs=COSTS, max_graphs=64)
    guessed = make_buckets(of, flat, bucketing)

    known = make_buckets(of, flat, bucketing, blocks=2000)

    assert find_decode(known, 64, 64 * 1024).blocks == 64 * 1024

    def few(buckets: Buckets) -> int:
        return sum(not bucket.prefill and bucket.blocks <= 2000 for bucket in buckets)

    assert few(known) >= 2 * few(guessed)


def test_graphs_are_as_few_as_asked_for() -> None:
    of = Limits(max_batch_size=64, max_batch_prefill_tokens=4096, block_size=128)

    assert MAX_GRAPHS - 4 <= len(list(make(of))) <= MAX_GRAPHS
    assert 26 <= len(list(make(of, max_graphs=30))) <= 30
    with pytest.raises(OptionError, match=r"`max_graphs` must be >= \d+ for `max_waste` = 0.2. Given: 9"):
        make(of, max_graphs=9, max_waste=0.2)
    with pytest.raises(OptionError, match=r"`max_graphs` must be >= 2\. Given: 1"):
        make(of, max_graphs=1)


def test_padding_is_bounded_unless_the_graphs_are_too_few_for_the_default() -> None:
    of = Limits(max_batch_size=64, max_batch_prefill_tokens=4096, block_size=128)
    bounded, tight = make(of, max_waste=0.4), make(of, max_graphs=4)

    for rows, context in itertools.product((1, 5, 40, 64), (1, 7, 32)):
        shape = Bucket(rows, 1, rows * context)
        assert COSTS.seconds(find_decode(bounded, rows, rows * context)) <= 1.4 * COSTS.seconds(shape)
    assert len(list(tight)) <= 4


def test_recorded_shapes_are_padded_least() -> None:
    of = Limits(max_batch_size=64, max_batch_prefill_tokens=4096, block_size=128)
    seen = Bucket(11, 1, 117)
    supposed = make(of, max_graphs=12)
    counted = make(of, max_graphs=12, counts={seen: 1000})

    def waste(buckets: Buckets) -> float:
        return COSTS.seconds(find_decode(buckets, 11, 117)) / COSTS.seconds(seen) - 1

    assert waste(counted) < 0.01 < waste(supposed)


@given(st.integers(1, 64), st.integers(0, 2000))
def test_sizes_that_double_bound_the_waste(first: int, more: int) -> None:
    sizes = doubling(first, first + more)

    assert sizes[0] == first
    assert sizes[-1] == first + more
    for smaller, larger in itertools.pairwise(sizes):
        assert smaller < larger <= 2 * smaller


@pytest.mark.parametrize(("rows", "prefill"), [(64, 2048), (10**6, 2 * 10**9)])
def test_no_limits_are_too_large_to_choose_buckets_for(rows: int, prefill: int) -> None:
    """Nothing may go through all tokens, blocks or rows: calls and bytes are counted."""
    limits = Limits(
        max_total_tokens=2 * 10**9, max_batch_prefill_tokens=prefill, max_batch_size=rows, block_size=128
    )
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    tracemalloc.start()
    sys.setprofile(count)
    try:
        make(limits).to_warm_up()
    finally:
        sys.setprofile(None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert calls < 2_000_000
    assert peak < 200 * 2**20


def test_no_limits_are_too_large_for_a_device_that_does_not_compile() -> None:
    limits = Limits(
        max_total_tokens=2 * 10**9, max_batch_prefill_tokens=2 * 10**9, max_batch_size=10**6, block_size=16
    )
    buckets = make_buckets(limits, device(limits, compiles=False))

    assert find_prefill(buckets, 1, 10**9 + 1, 1) == Bucket(1, 10**9 + 1, 1, prefill=True)
    assert buckets.largest()[0].blocks == 125_000_000
    assert buckets.largest()[0].tokens == 64
