"""The division of memory: vLLM's worked example (gaudi.md 2.4), scarce memory, and layer groups."""

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi.limits import Limits
from tgi.planning.memory import MIB, MemoryBudget, budget_memory
from tgi.protocol import Loaded

from .descriptions import make_group

GIB = 1 << 30
LIMITS = Limits(max_total_tokens=129, max_batch_size=4, block_size=16)
"""The longest sequence takes 9 blocks."""


def rank(free: int, **more: Any) -> Loaded:
    return Loaded(**{"free_bytes": free, "block_bytes": (1024,), "dtype": "float32", **more})


def budget(ranks: Sequence[Loaded], limits: Limits = LIMITS, **given: Any) -> MemoryBudget:
    """The memory of ranks whose model has one layer group, with the window of the limits."""
    return budget_memory(ranks, [make_group(window=limits.window)], limits, **given)


def test_llama_8b_on_a_gaudi2_as_vllm_plans_it() -> None:
    """Of 79.22 GiB free 71.3 are usable: 7.13 for graphs and 64.17 for 4107 blocks of 16 MiB."""
    loaded = rank(int(79.22 * GIB), block_bytes=(16 * MIB,))
    limits = Limits(max_total_tokens=4096, max_batch_size=256, block_size=128)
    plan = budget([loaded], limits, graphs=48, fraction=0.9, graph_fraction=0.1)
    assert plan.reserve / GIB == pytest.approx(79.22 - 71.3, abs=0.01)
    assert plan.graphs / GIB == pytest.approx(7.13, abs=0.01)
    # Theirs have been rounded from GiB with two digits, and one of them is for padding.
    assert plan.widest.fitting + 1 == pytest.approx(4107, abs=1)
    assert plan.widest.blocks == plan.widest.fitting < plan.widest.wanted


@pytest.mark.contract("L6")
@pytest.mark.parametrize(("free", "blocks"), [(1000, 36), (37, 36), (36, 35), (10, 9)])
def test_as_many_blocks_as_can_be_needed_or_fit_beside_the_padding_block(free: int, blocks: int) -> None:
    plan = budget([rank(free * 1024 + 1)])
    assert (plan.widest.blocks, plan.fits, plan.refusal) == (blocks, True, None)


def test_a_given_size_of_the_cache() -> None:
    limits = attrs.evolve(LIMITS, max_batch_total_tokens=320)
    assert budget([rank(1000 * 1024)], limits).widest.blocks == 20
    least = attrs.evolve(LIMITS, max_batch_total_tokens=129)
    assert budget([rank(1000 * 1024)], least).widest.blocks == 9, "a sequence needs the last of them whole"


def test_the_rank_with_the_least_room_decides() -> None:
    ranks = [rank(free * 1024, total_bytes=GIB) for free in (30, 20, 25)]
    assert budget(ranks).widest.blocks == 19


def test_ranks_without_memory_of_their_own_share_that_of_the_machine() -> None:
    """Each reports the free memory less its own workspace: two of 4 KiB and twice 10 blocks are 28 KiB."""
    ranks = [rank(24 * 1024, workspace_bytes=4 * 1024)] * 2
    assert budget(ranks).widest.fitting + 1 == 10


def test_replicas_that_are_still_to_load_share_it_too() -> None:
    """Of 64 KiB the weights of two take 16, and three workspaces of 4 KiB and thrice 12 blocks the rest."""
    ranks = [rank(60 * 1024, workspace_bytes=4 * 1024, weight_bytes=8 * 1024)]
    assert budget(ranks, replicas=3).widest.fitting + 1 == 12
    assert budget([rank(60 * 1024, total_bytes=GIB)], replicas=3) == budget(
        [rank(60 * 1024, total_bytes=GIB)]
    )


def test_with_a_window_a_sequence_needs_the_blocks_of_a_window_and_a_chunk() -> None:
    """39 tokens and a chunk of 32 are in 6 blocks of 16 if they are not aligned, of 63 in all."""
    limits = Limits(
        max_total_tokens=1000, max_batch_prefill_tokens=32, max_batch_size=4, block_size=16, window=40
    )
    plan = budget([rank(1024 * 1000)], limits)
    assert (plan.widest.longest, plan.widest.blocks) == (6, 24)
    assert budget([rank(7 * 1024)], limits).fits
    assert not budget([rank(6 * 1024)], limits).fits


def test_with_a_window_smaller_chunks_help() -> None:
    limits = Limits(
        max_total_tokens=1000, max_batch_prefill_tokens=160, max_batch_size=4, block_size=16, window=40
    )
    plan = budget([rank(8 * 1024)], limits)
    words = (plan.refusal or "").replace(",", "").split()
    chunk = int(words[words.index("--max-batch-prefill-tokens") + 1])
    assert budget([rank(8 * 1024)], attrs.evolve(limits, max_batch_prefill_tokens=chunk)).fits
    assert not budget([rank(8 * 1024)], attrs.evolve(limits, max_batch_prefill_tokens=chunk + 1)).fits


@pytest.mark.parametrize(("weights", "shards"), [(10, 2), (5, 4), (2, 8), (1, None)])
def test_more_cards_are_suggested_where_they_help(weights: int, shards: int | None) -> None:
    """A sequence takes 10 KiB. On two cards that is 5 on each, and half of the weights is somewhere else; 16
    cards have no less to keep of a sequence than 8, which is the number of key/value heads."""
    loaded = rank(0, total_bytes=GIB, weight_bytes=weights * 1024)
    refusal = budget([loaded], possible_ranks=[1, 2, 4, 8, 16]).refusal or ""
    assert ("--num-shard" in refusal) is (shards is not None)
    assert shards is None or refusal.endswith(f"--num-shard {shards}")


def test_graphs_take_what_ranks_report_or_the_share_that_is_given() -> None:
    loaded = rank(1000 * 1024, graph_bytes=10 * 1024)
    assert budget([loaded], graphs=40).widest.fitting == 600 - 1
    assert budget([loaded], graphs=40, graph_fraction=0.5, fraction=0.5).widest.fitting == 250 - 1


FULL = rank(
    40 * MIB,
    total_bytes=100 * MIB,
    weight_bytes=30 * MIB,
    workspace_bytes=10 * MIB,
    graph_bytes=MIB,
    block_bytes=(MIB,),
)


def size_of(plan: MemoryBudget, name: str) -> float:
    return next(size for row, size in plan.rows() if row.startswith(name)) / MIB


def test_the_table_adds_up() -> None:
    plan = budget([FULL], graphs=5, fraction=0.75)
    assert sum(size for _, size in plan.rows()) == plan.rank.total_bytes
    assert [size_of(plan, name) for name in ("in use", "weights", "workspace", "reserve", "graphs, 5")] == [
        20, 30, 10, 10, 5,
    ]  # fmt: skip
    assert size_of(plan, "KV cache, 25 blocks of 16") == 25
    lines = str(plan).splitlines()
    assert lines[0].split() == ["memory", "of", "a", "card", "100", "MiB"]
    assert len({len(line) for line in lines}) == 1, "columns"


@pytest.mark.contract("6.1")
@pytest.mark.parametrize(
    ("loaded", "how", "helps"),
    [
        (rank(9 * 1024), {}, ["--max-total-tokens 128"]),
        (
            rank(60 * 1024, graph_bytes=1024),
            {"graphs": 55},
            ["--max-total-tokens 64", "--max-graphs 50"],
        ),
        (rank(12 * 1024), {"fraction": 0.5}, ["--max-total-tokens 80", "--memory-fraction than 0.5"]),
        (
            rank(0, workspace_bytes=50 * 1024),
            {},
            ["--max-batch-prefill-tokens 512", "--max-batch-size 4"],
        ),
    ],
)
def test_too_little_memory_for_one_sequence(loaded: Loaded, how: dict[str, float], helps: list[str]) -> None:
    plan = budget([loaded], **how)  # type: ignore[arg-type]
    refusal = plan.refusal
    assert refusal is not None
    assert refusal.startswith("Not enough memory to handle `max_total_tokens=129`: ")
    assert all(words in refusal for words in helps)
    assert "KV cache, 10 blocks of 16 tokens, more than there is room for" in str(plan)


def test_fewer_graphs_than_there_must_be_are_not_suggested() -> None:
    plan = budget([rank(11 * 1024, graph_bytes=1024)], graphs=3)
    assert "--max-graphs" not in (plan.refusal or "--max-graphs")
    more = budget([rank(12 * 1024, graph_bytes=1024)], graphs=3)
    assert "--max-graphs 2" in (more.refusal or "")


@pytest.mark.parametrize(("free", "graphs", "fraction"), [(60, 55, 1.0), (12, 0, 0.5), (40, 33, 0.9)])
def test_what_is_suggested_helps(free: int, graphs: int, fraction: float) -> None:
    loaded = rank(free * 1024, graph_bytes=1024)
    plan = budget([loaded], graphs=graphs, fraction=fraction)
    assert not plan.fits
    words = (plan.refusal or "").replace(",", "").split()
    if "--max-graphs" in words:
        fewer = int(words[words.index("--max-graphs") + 1])
        assert budget([loaded], graphs=fewer, fraction=fraction).fits
    tokens = int(words[words.index("--max-total-tokens") + 1])
    shorter = attrs.evolve(LIMITS, max_total_tokens=tokens)
    assert budget([loaded], shorter, graphs=graphs, fraction=fraction).fits


FULL_LIMITS = Limits(max_total_tokens=1000, max_batch_prefill_tokens=32, max_batch_size=4, block_size=16)
GROUPS = [make_group(layers=[0, 2], window=40), make_group(layers=[1])]
"""A sequence has up to 6 blocks in the first group, and 63 in the second."""


def two_groups(free: int, limits: Limits = FULL_LIMITS, **given: Any) -> MemoryBudget:
    return budget_memory([rank(free, block_bytes=(2048, 1024))], GROUPS, limits, **given)


def blocks(memory: MemoryBudget) -> list[int]:
    return [group.blocks for group in memory.groups]


def test_a_group_with_a_window_gets_no_more_than_it_can_need() -> None:
    memory = two_groups(10_000 * 1024)
    assert blocks(memory) == [4 * 6, 4 * 63]
    assert memory.widest.fitting == 10_000 - 1 - 2 * (4 * 6 + 1), "the rest"
    assert "KV cache of 2 layers that see 40 tokens, 25 blocks of 16 tokens" in str(memory)
    assert "KV cache of 1 layers, 253 blocks of 16 tokens" in str(memory)


def test_scarce_memory_is_enough_for_as_many_sequences_in_every_group() -> None:
    """A sequence takes 6 blocks of 2 KiB and 63 of 1 KiB: here is room for two and a half."""
    memory = two_groups(5 * (2 * 6 + 63) * 512 + 3 * 1024)
    assert blocks(memory) == [15, 157]
    assert sum(size for _, size in memory.rows()) == memory.rank.free_bytes


def test_one_sequence_is_enough_though_the_rest_is_divided_unevenly() -> None:
    """The size of the cache is given for what a single sequence needs; its part of each group comes first."""
    limits = attrs.evolve(FULL_LIMITS, max_batch_total_tokens=1008)
    assert blocks(two_groups((2 * 6 + 63 + 3) * 1024, limits)) == [6, 63]
    memory = two_groups((2 * 6 + 63 + 2) * 1024, limits)
    assert not memory.fits
    assert "--max-total-tokens 992" in (memory.refusal or "")
    assert two_groups((2 * 6 + 63 + 2) * 1024, attrs.evolve(FULL_LIMITS, max_total_tokens=992)).fits


@given(
    st.lists(
        st.tuples(st.none() | st.integers(1, 2000), st.integers(1, 5000), st.integers(1, 16)),
        min_size=1,
        max_size=4,
    ),
    st.integers(-1000, 10**7),
    st.integers(1, 50),
    st.none() | st.integers(1000, 20_000),
)
def test_groups_never_get_more_than_there_is(
    sizes: list[tuple[int | None, int, int]], free: int, rows: int, tokens: int | None
) -> None:
    """And enough for one sequence in each of them, if that is possible at all."""
    limits = attrs.evolve(FULL_LIMITS, max_batch_size=rows, max_batch_total_tokens=tokens)
    groups = [make_group(window=window) for window, _, _ in sizes]
    loaded = rank(free, block_bytes=tuple(size for _, size, _ in sizes))
    memory = budget_memory([loaded], groups, limits)

    least = sum((group.longest + 1) * group.block_bytes for group in memory.groups)
    assert memory.fits is (least <= free)
    if memory.fits:
        assert sum((group.blocks + 1) * group.block_bytes for group in memory.groups) <= free
        for group in memory.groups:
            assert group.longest <= group.blocks <= group.wanted
    if len(sizes) == 1 and memory.fits:
        assert memory.widest.blocks == min(memory.widest.wanted, free // sizes[0][1] - 1)
