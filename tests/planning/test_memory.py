"""The plan against vLLM's worked example (gaudi.md 2.4), and what it says when there is too little."""

import logging

import attrs
import pytest

from tgi.config import Options
from tgi.executor import EngineError
from tgi.limits import Limits
from tgi.planning.memory import MIB, MemoryPlan, plan_blocks, plan_memory
from tgi.plugins import ModelConfig, devices, load_plugins
from tgi.protocol import Loaded
from tgi.scheduler import Buckets

CPU = devices(load_plugins())["cpu"]
GIB = 1 << 30
LIMITS = Limits(max_total_tokens=129, max_batch_size=4, block_size=16)
"""The longest sequence takes 9 blocks."""
BUCKETS = Buckets(LIMITS)


def rank(free: int, **more: int) -> Loaded:
    return Loaded(**{"free_bytes": free, "block_bytes": 1024, "dtype": "float32", **more})  # type: ignore[arg-type]


def test_llama_8b_on_a_gaudi2_as_vllm_plans_it() -> None:
    """Of 79.22 GiB free 71.3 are usable: 7.13 for graphs and 64.17 for 4107 blocks of 16 MiB."""
    loaded = rank(int(79.22 * GIB), block_bytes=16 * MIB)
    limits = Limits(max_total_tokens=4096, max_batch_size=256, block_size=128)
    plan = plan_memory([loaded], limits, graphs=48, fraction=0.9, graph_fraction=0.1)
    assert plan.reserve / GIB == pytest.approx(79.22 - 71.3, abs=0.01)
    assert plan.graphs / GIB == pytest.approx(7.13, abs=0.01)
    # Theirs have been rounded from GiB with two digits, and one of them is for padding.
    assert plan.fitting + 1 == pytest.approx(4107, abs=1)
    assert plan.blocks == plan.fitting < plan.wanted


@pytest.mark.contract("L6")
@pytest.mark.parametrize(("free", "blocks"), [(1000, 36), (37, 36), (36, 35), (10, 9)])
def test_as_many_blocks_as_can_be_needed_or_fit_beside_the_padding_block(free: int, blocks: int) -> None:
    plan = plan_memory([rank(free * 1024 + 1)], LIMITS)
    assert (plan.blocks, plan.fits, plan.refusal(LIMITS)) == (blocks, True, None)


def test_a_given_size_of_the_cache() -> None:
    limits = attrs.evolve(LIMITS, max_batch_total_tokens=320)
    assert plan_memory([rank(1000 * 1024)], limits).blocks == 20
    least = attrs.evolve(LIMITS, max_batch_total_tokens=129)
    assert plan_memory([rank(1000 * 1024)], least).blocks == 9, "a sequence needs the last of them whole"


def test_the_rank_with_the_least_room_decides() -> None:
    ranks = [rank(free * 1024, total_bytes=GIB) for free in (30, 20, 25)]
    assert plan_memory(ranks, LIMITS).blocks == 19


def test_ranks_without_memory_of_their_own_share_that_of_the_machine() -> None:
    """Each says what is free for all, less its own workspace: two of 4 KiB and twice 10 blocks are 28 KiB."""
    ranks = [rank(24 * 1024, workspace_bytes=4 * 1024)] * 2
    assert plan_memory(ranks, LIMITS).fitting + 1 == 10


def test_with_a_window_a_sequence_needs_the_blocks_of_a_window_and_a_chunk() -> None:
    """39 tokens and a chunk of 32 are in 6 blocks of 16 if they are not aligned, of 63 in all."""
    limits = Limits(
        max_total_tokens=1000, max_batch_prefill_tokens=32, max_batch_size=4, block_size=16, window=40
    )
    plan = plan_memory([rank(1024 * 1000)], limits)
    assert (plan.longest, plan.blocks) == (6, 24)
    assert plan_memory([rank(7 * 1024)], limits).fits
    assert not plan_memory([rank(6 * 1024)], limits).fits


def test_with_a_window_smaller_chunks_help() -> None:
    limits = Limits(
        max_total_tokens=1000, max_batch_prefill_tokens=160, max_batch_size=4, block_size=16, window=40
    )
    plan = plan_memory([rank(8 * 1024)], limits)
    words = (plan.refusal(limits) or "").replace(",", "").split()
    chunk = int(words[words.index("--max-batch-prefill-tokens") + 1])
    assert plan_memory([rank(8 * 1024)], attrs.evolve(limits, max_batch_prefill_tokens=chunk)).fits
    assert not plan_memory([rank(8 * 1024)], attrs.evolve(limits, max_batch_prefill_tokens=chunk + 1)).fits


@pytest.mark.parametrize(("weights", "shards"), [(10, 2), (5, 4), (2, 8), (1, None)])
def test_more_cards_are_said_to_help_where_they_do(weights: int, shards: int | None) -> None:
    """A sequence takes 10 KiB. On two cards that is 5 on each, and half of the weights is somewhere else; 16
    cards have no less to keep of a sequence than 8, which is the number of key/value heads."""
    config = ModelConfig(
        vocab_size=32,
        hidden_size=128,
        num_layers=1,
        num_heads=16,
        num_kv_heads=8,
        head_dim=8,
        max_position=1000,
    )
    loaded = rank(0, total_bytes=GIB, weight_bytes=weights * 1024)
    refusal = plan_memory([loaded], LIMITS, config=config).refusal(LIMITS) or ""
    assert ("--num-shard" in refusal) is (shards is not None)
    assert shards is None or refusal.endswith(f"--num-shard {shards}")


def test_graphs_take_what_the_ranks_say_of_each_or_the_share_that_is_given() -> None:
    loaded = rank(1000 * 1024, graph_bytes=10 * 1024)
    assert plan_memory([loaded], LIMITS, graphs=40).fitting == 600 - 1
    assert plan_memory([loaded], LIMITS, graphs=40, graph_fraction=0.5, fraction=0.5).fitting == 250 - 1


FULL = rank(
    40 * MIB,
    total_bytes=100 * MIB,
    weight_bytes=30 * MIB,
    workspace_bytes=10 * MIB,
    graph_bytes=MIB,
    block_bytes=MIB,
)


def size_of(plan: MemoryPlan, name: str) -> float:
    return next(size for row, size in plan.rows() if row.startswith(name)) / MIB


def test_the_table_adds_up() -> None:
    plan = plan_memory([FULL], LIMITS, graphs=5, fraction=0.75)
    assert sum(size for _, size in plan.rows()) == plan.total
    assert [size_of(plan, name) for name in ("in use", "weights", "workspace", "reserve", "graphs, 5")] == [
        20, 30, 10, 10, 5,
    ]  # fmt: skip
    assert size_of(plan, "KV cache, 25 blocks of 16") == 25
    lines = str(plan).splitlines()
    assert lines[0].split() == ["memory", "of", "a", "card", "100", "MiB"]
    assert len({len(line) for line in lines}) == 1, "columns"


@pytest.mark.contract("6.1")
@pytest.mark.parametrize(
    ("loaded", "given", "helps"),
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
def test_too_little_memory_for_one_sequence(
    loaded: Loaded, given: dict[str, float], helps: list[str]
) -> None:
    plan = plan_memory([loaded], LIMITS, **given)  # type: ignore[arg-type]
    refusal = plan.refusal(LIMITS)
    assert refusal is not None
    assert refusal.startswith("Not enough memory to handle `max_total_tokens=129`: ")
    assert all(words in refusal for words in helps)
    assert "KV cache, 10 blocks of 16 tokens, of which there is no room for all" in str(plan)


def test_no_fewer_graphs_than_there_must_be_are_said_to_help() -> None:
    plan = plan_memory([rank(11 * 1024, graph_bytes=1024)], LIMITS, graphs=3)
    assert "--max-graphs" not in (plan.refusal(LIMITS) or "--max-graphs")
    more = plan_memory([rank(12 * 1024, graph_bytes=1024)], LIMITS, graphs=3)
    assert "--max-graphs 2" in (more.refusal(LIMITS) or "")


@pytest.mark.parametrize(("free", "graphs", "fraction"), [(60, 55, 1.0), (12, 0, 0.5), (40, 33, 0.9)])
def test_what_is_said_to_help_helps(free: int, graphs: int, fraction: float) -> None:
    loaded = rank(free * 1024, graph_bytes=1024)
    plan = plan_memory([loaded], LIMITS, graphs=graphs, fraction=fraction)
    assert not plan.fits
    words = (plan.refusal(LIMITS) or "").replace(",", "").split()
    if "--max-graphs" in words:
        fewer = int(words[words.index("--max-graphs") + 1])
        assert plan_memory([loaded], LIMITS, graphs=fewer, fraction=fraction).fits
    tokens = int(words[words.index("--max-total-tokens") + 1])
    shorter = attrs.evolve(LIMITS, max_total_tokens=tokens)
    assert plan_memory([loaded], shorter, graphs=graphs, fraction=fraction).fits


def test_the_plan_of_the_memory_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert plan_blocks([rank(1000 * 1024 + 1)], CPU, LIMITS, BUCKETS, Options()) == 36
    (record,) = caplog.records
    assert "KV cache, 37 blocks of 16 tokens" in record.getMessage()


def test_too_little_memory_ends_the_start(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(EngineError, match="Not enough memory to handle `max_total_tokens=129`") as caught:
        plan_blocks([rank(9 * 1024 + 1)], CPU, LIMITS, BUCKETS, Options())
    assert caught.value.kind == "memory"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "no room for all" in record.getMessage()


def test_a_cache_that_cannot_be_as_large_as_told(caplog: pytest.LogCaptureFixture) -> None:
    limits = attrs.evolve(LIMITS, max_batch_total_tokens=320)
    assert plan_blocks([rank(16 * 1024 + 1)], CPU, limits, BUCKETS, Options()) == 15
    assert "--max-batch-total-tokens 320: there is memory for 240 only" in caplog.text


def test_only_a_share_of_the_memory() -> None:
    assert plan_blocks([rank(40 * 1024 + 1)], CPU, LIMITS, BUCKETS, Options(memory_fraction=0.5)) == 19
    device = attrs.evolve(CPU, memory_fraction=0.5)
    assert plan_blocks([rank(40 * 1024 + 1)], device, LIMITS, BUCKETS, Options()) == 19
    assert plan_blocks([rank(40 * 1024 + 1)], device, LIMITS, BUCKETS, Options(memory_fraction=1.0)) == 36
