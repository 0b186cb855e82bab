"""The strategies of TGI-Gaudi and vLLM on Gaudi: their counts as worked out by hand from the formulas, the
examples of the documentation, and that what they forget is added."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduler.invariants import dominates
from tgi.planning.shapes import ShapeLimits
from tgi.protocol import Bucket

from .benchmark_scripts import load
from .planning.shape_limits import shapes, spaces

strategies = load("vllm_strategies")
Range, exponential, exponential_sizes = strategies.Range, strategies.exponential, strategies.exponential_sizes
linear, linear_sizes = strategies.linear, strategies.linear_sizes
padding_aware, padding_aware_sizes = strategies.padding_aware, strategies.padding_aware_sizes


def space(rows: int, prefill_rows: int, budget: int, total: int) -> ShapeLimits:
    kind = type("Prompts", (ShapeLimits,), {"prefill_rows": prefill_rows})
    limits: ShapeLimits = kind(
        max_batch_size=rows, max_batch_prefill_tokens=budget, max_total_tokens=total, block_size=128
    )
    return limits


# Counted by another implementation of the formulas: prompts, those without context, linear prompts without.
PROMPTS = [
    (space(128, 1, 8192, 4096), 63, 9, 64),
    (space(64, 16, 8192, 4096), 287, 41, 211),
    (space(128, 16, 8192, 32768), 440, 44, 211),
    (space(8, 4, 2048, 1024), 80, 16, 33),
]


@pytest.mark.parametrize(("of", "prompts", "fresh", "linear_fresh"), PROMPTS)
def test_counts_of_prompts(of: ShapeLimits, prompts: int, fresh: int, linear_fresh: int) -> None:
    found = [bucket for bucket in exponential(of, {}, 4000) if bucket.prefill]
    assert (len(found), sum(bucket.blocks == 0 for bucket in found)) == (prompts, fresh)
    assert sum(b.prefill and b.blocks == 0 for b in linear(of, {}, 4000)) == linear_fresh


def test_counts_of_decodes() -> None:
    of = space(128, 16, 8192, 32768)
    assert sum(not bucket.prefill for bucket in exponential(of, {}, 4000)) == 86
    assert sum(not bucket.prefill for bucket in linear(of, {}, 4000)) == 900
    # With a contiguous cache these servers filter nothing, and take no more blocks than there are.
    assert len(exponential_sizes(1, 2, 128, 8)) * len(exponential_sizes(1, 128, 4000, 13)) == 117
    assert len(linear_sizes(1, 32, 128)) * len(linear_sizes(1, 128, 4000)) == 342
    assert len(linear_sizes(1, 32, 64)) * len(linear_sizes(1, 128, 2048)) == 161
    assert len(linear_sizes(1, 32, 8)) * len(linear_sizes(1, 128, 64)) == 28


PADDING_AWARE = [
    ((0, 8, 64, 64, 0), [0, 1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]),
    ((0, 8, 64, 64, 50), [0, 1, 2, 4, 8, 16, 32, 64]),
    ((0, 8, 64, 16, 50), [0, 1, 2, 4, 8, 16, 32, 48, 64]),
    ((16, 16, 128, 32, 25), [16, 32, 48, 64, 80, 96, 128]),
]


@pytest.mark.parametrize(("settings", "sizes"), PADDING_AWARE)
def test_padding_aware_sizes(settings: tuple[int, int, int, int, float], sizes: list[int]) -> None:
    """vllm-gaudi's own examples."""
    assert padding_aware_sizes(*settings) == sizes


def test_linear_sizes_ramp_up_and_then_go_in_steps() -> None:
    assert linear_sizes(2, 32, 64) == [2, 4, 8, 16, 32, 64]
    assert linear_sizes(0, 1, 3) == [0, 1, 2, 3]
    assert linear_sizes(1, 32, 20) == [1, 2, 4, 8, 16]


def test_what_is_set_replaces_the_defaults() -> None:
    of = space(8, 1, 512, 512)
    found = linear(of, {"DECODE_BS": Range(4, 4, 8), "PROMPT_QUERY": Range(last=256)}, 100)

    assert {bucket.rows for bucket in found if not bucket.prefill} == {4, 8}
    assert {bucket.tokens for bucket in found if bucket.prefill} == {128, 256}


@pytest.mark.parametrize("strategy", [linear, exponential, padding_aware])
@settings(deadline=None, max_examples=30)
@given(of=spaces, data=st.data())
def test_what_they_forget_is_added(strategy: object, of: ShapeLimits, data: st.DataObject) -> None:
    shape = data.draw(shapes(of))
    blocks = data.draw(st.integers(of.seen_blocks(1), 2 * of.decode_blocks(of.max_batch_size)))

    buckets = of.closed(strategy(of, {}, blocks))  # type: ignore[operator]

    assert any(dominates(bucket, shape) for bucket in buckets)
    assert all(of.clipped(bucket) == bucket for bucket in buckets)
    assert len(set(buckets)) == len(buckets)


def test_nothing_is_added_to_what_suffices() -> None:
    of = space(2, 1, 256, 256)
    enough = [Bucket(2, 1, 4), Bucket(1, 256, 1, prefill=True), Bucket(1, 128, 2, prefill=True)]

    assert of.closed(enough) == [enough[1], enough[2], enough[0]]
