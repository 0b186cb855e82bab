"""The bucket grid: everything that can be planned is dominated, by the cheapest, with bounded waste."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.config import Limits
from tgi.plugins import DeviceSpec
from tgi.scheduler.buckets import Bucket, Buckets, geometric

limits = st.builds(
    Limits,
    max_total_tokens=st.integers(2, 5000),
    max_batch_prefill_tokens=st.integers(1, 5000),
    max_batch_size=st.integers(1, 300),
    block_size=st.sampled_from([1, 16, 128]),
)
kinds = st.booleans()


def make(of: Limits, compiles: bool) -> Buckets:
    device = DeviceSpec(
        name="any",
        implementation="",
        block_size=of.block_size,
        batch_size=1,
        prefill_tokens=1,
        compiles=compiles,
    )
    return Buckets.from_limits(of, device)


@given(limits, kinds, st.data())
def test_every_decode_step_is_dominated_by_the_cheapest(
    of: Limits, compiles: bool, data: st.DataObject
) -> None:
    buckets = make(of, compiles)
    rows = data.draw(st.integers(1, of.max_batch_size))
    blocks = data.draw(st.integers(1, -(-of.max_total_tokens // of.block_size)))

    bucket = buckets.decode(rows, blocks)

    assert bucket.rows >= rows
    assert bucket.blocks >= blocks
    cheaper = [
        Bucket(r, 1, b)
        for r, b in itertools.product(buckets.decode_rows, buckets.blocks)
        if r >= rows and b >= blocks and (r < bucket.rows or b < bucket.blocks)
    ]
    assert cheaper == []


@given(limits, kinds, st.data())
def test_one_row_of_any_chunk_has_a_prefill_bucket(of: Limits, compiles: bool, data: st.DataObject) -> None:
    buckets = make(of, compiles)
    tokens = data.draw(st.integers(1, buckets.longest_prefill))

    bucket = buckets.prefill(1, tokens, 1)

    assert bucket is not None
    assert bucket.tokens >= tokens
    assert bucket.tokens <= max(of.max_batch_prefill_tokens, tokens)


@given(limits, kinds, st.data())
def test_prefill_keeps_the_budget(of: Limits, compiles: bool, data: st.DataObject) -> None:
    buckets = make(of, compiles)
    rows = data.draw(st.integers(2, max(2, of.max_batch_size)))
    if rows > of.max_batch_size:
        return
    tokens = data.draw(st.integers(1, buckets.longest_prefill))

    bucket = buckets.prefill(rows, tokens, 1)

    if bucket is not None:
        assert not compiles or bucket.rows * bucket.tokens <= of.max_batch_prefill_tokens
        assert bucket.rows >= rows
        assert bucket.tokens >= tokens


@pytest.mark.parametrize("compiles", [True, False])
def test_what_is_chosen_is_in_the_list(compiles: bool) -> None:
    buckets = make(Limits(max_total_tokens=512, max_batch_size=5, max_batch_prefill_tokens=128), compiles)
    everything = list(buckets)

    assert len(set(everything)) == len(everything)
    for rows, blocks in itertools.product(range(1, 6), range(1, 33)):
        assert buckets.decode(rows, blocks) in everything
        for tokens in range(1, 129):
            assert buckets.prefill(rows, tokens, blocks) in [None, *everything]


def test_the_largest_come_first() -> None:
    everything = list(make(Limits(max_total_tokens=512, max_batch_prefill_tokens=128), True))

    assert everything[0].tokens == 128
    assert everything[-1] == Bucket(1, 1, 1)


@given(st.integers(1, 64), st.integers(0, 2000), st.sampled_from([1.25, 2.0]))
def test_geometric_sizes_bound_the_waste(first: int, more: int, ratio: float) -> None:
    """With a multiple of 1, no wanted size is padded by more than its ratio allows."""
    sizes = geometric(first, first + more, ratio)

    assert sizes[0] == first
    assert sizes[-1] == first + more
    for smaller, larger in itertools.pairwise(sizes):
        assert smaller < larger <= max(smaller + 1, smaller * ratio)
