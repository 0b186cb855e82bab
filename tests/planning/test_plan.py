"""Plans against the worked examples of gaudi.md 2.4 and 8.5."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from tgi.config import Options
from tgi.layers.loading import describe
from tgi.planning.plan import Plan, find_card, make_plan
from tgi.planning.setup import read_setup
from tgi.plugins import ConfigError, devices, load_plugins
from tgi.protocol import Bucket

from .llamas import LLAMA_2_7B, LLAMA_31_8B, LLAMA_31_70B, LLAMA_31_405B, MISTRAL_7B, llama

GIB = 1 << 30
README = {
    "max_input_tokens": 512,
    "max_total_tokens": 1024,
    "max_batch_size": 8,
    "max_batch_prefill_tokens": 2048,
}
"""The flags of TGI's README for a Gaudi."""
WINDOW = {"sliding_window": 4096}
LARGE = {"max_total_tokens": 8192, "max_batch_size": 64, "max_batch_prefill_tokens": 4096}


def planned(config: dict[str, Any], card: str = "gaudi2", ranks: int = 1, **changed: Any) -> Plan:
    options = Options(**{**README, "device": card, "num_shard": ranks, **changed})
    device, rates = find_card(card, devices(load_plugins()).values())
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        setup = read_setup(Path(folder), options, device, {})
        return make_plan("model", setup, describe(setup.describe_command()), rates)


def test_llama_8b_rounded_to_8_bits() -> None:
    """A number and a byte for each weight, four bytes for each row; embedding and norms in bfloat16."""
    rows, layers, vocabulary, hidden = 43_008, 32, 128_256, 4096
    linear = layers * hidden * (2 * 4096 + 2 * 1024 + 3 * 14_336) + vocabulary * hidden
    others = vocabulary * hidden + 65 * hidden
    plan = planned(LLAMA_31_8B, "cpu", quantize="int8")
    assert plan.memory.rank.weight_bytes == linear + 4 * (layers * rows + vocabulary) + 2 * others


def test_llama_8b_on_a_gaudi2() -> None:
    """gaudi.md 2.4: 79.22 GiB are free with the weights loaded and one step run, a block takes 16 MiB, and
    with 0.9 of the memory and 0.1 of that for graphs there are 4107 blocks."""
    plan = planned(LLAMA_31_8B, memory_fraction=0.9, graph_memory_fraction=0.1)
    assert plan.memory.rank.weight_bytes == 2 * 8_030_261_248
    assert plan.memory.rank.free_bytes / GIB == pytest.approx(79.22, rel=0.01)
    assert plan.memory.widest.block_bytes == 16 << 20
    assert plan.memory.widest.fitting == pytest.approx(4107, rel=0.01)
    assert plan.memory.refusal is None
    assert sum(size for _, size in plan.memory.rows()) == plan.memory.rank.total_bytes == int(94.62 * GIB)
    assert plan.memory.widest.blocks == plan.memory.widest.fitting
    # 8 sequences of 1024 tokens take 8 blocks each.
    alone = planned(LLAMA_31_8B, prefix_caching=False)
    assert alone.memory.widest.blocks == alone.memory.widest.wanted == 64


@pytest.mark.parametrize("card", ["gaudi2", "gaudi3", "h100"])
@pytest.mark.parametrize(
    "config", [llama(896, 4864, 24, 14, 2, 151936), LLAMA_31_8B], ids=["half a billion", "eight"]
)
def test_what_the_weights_leave_is_cache(card: str, config: dict[str, Any]) -> None:
    memory = planned(config, card=card, max_batch_size=None, max_batch_prefill_tokens=None).memory
    assert dict(memory.rows())["left over"] < 0.001 * memory.rank.total_bytes
    used = sum(group.block_bytes * group.blocks for group in memory.groups)
    assert used > 0.8 * memory.rank.free_bytes


def test_a_window_is_what_a_sequence_takes_however_long_it_is() -> None:
    """With a chunk of 2048 tokens behind it a window of 4096 is in 6143 tokens, 49 blocks if not aligned."""
    long = {"max_input_tokens": 32767, "max_total_tokens": 32768, "max_batch_size": 8}
    whole, plan = planned(MISTRAL_7B, **long), planned(MISTRAL_7B | WINDOW, **long)
    assert (whole.memory.widest.longest, plan.memory.widest.longest) == (256, 49)
    assert planned(MISTRAL_7B | WINDOW, **long, prefix_caching=False).memory.widest.blocks == 8 * 49
    assert max(bucket.blocks for bucket in plan.buckets if not bucket.prefill) == 8 * 33
    assert max(bucket.blocks for bucket in plan.buckets if bucket.prefill) == 33
    assert plan.decode[-1].seconds < whole.decode[-1].seconds
    assert plan.decode[-1].bound == planned(MISTRAL_7B, max_total_tokens=4096).decode[-1].bound
    assert plan.prefill[-1].seconds < whole.prefill[-1].seconds


def test_llama_70b_on_eight_cards() -> None:
    plan = planned(LLAMA_31_70B, ranks=8, **LARGE)
    assert plan.memory.widest.block_bytes == 128 * (40 << 10), "40 KiB a token and card"
    assert plan.memory.rank.weight_bytes == pytest.approx(2 * 70.55e9 / 8, rel=0.001)
    assert plan.memory.refusal is None
    assert plan.memory.widest.blocks >= 64 * 8192 // 128
    # 8 cards together read eight times as fast.
    alone = planned(LLAMA_31_70B, card="gaudi3", **LARGE)
    assert alone.memory.refusal is not None
    assert "more cards with --num-shard" in alone.memory.refusal


def test_a_model_in_4_bits_fits_one_card() -> None:
    """Llama 3.3 70B in GPTQ: 4 bits a number, 16 for each scale of 128; embedding and head have 16."""
    gptq = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
    plan = planned(LLAMA_31_70B | {"quantization_config": gptq}, card="gaudi3")
    ends = 2 * 128256 * 8192
    assert plan.memory.fits
    assert plan.memory.rank.weight_bytes == pytest.approx((70.55e9 - ends) * 4.125 / 8 + 2 * ends, rel=0.04)


# Model, ms to read the weights once on a Gaudi2 and a Gaudi3 (gaudi.md 8.5), published tokens a second (8.3).
ONE_ROW = [
    (LLAMA_2_7B, "gaudi2", 5.48, 141),
    (LLAMA_2_7B, "gaudi3", 3.67, 174),
    (LLAMA_31_8B, "gaudi2", 6.53, 129),
    (LLAMA_31_8B, "gaudi3", 4.38, 162),
    (MISTRAL_7B, "gaudi2", 5.89, 135),
    (MISTRAL_7B, "gaudi3", 3.95, 160),
]


@pytest.mark.parametrize(("config", "card", "floor", "published"), ONE_ROW)
def test_one_sequence_as_fast_as_it_was_measured(
    config: dict[str, Any], card: str, floor: float, published: float
) -> None:
    """The clock of 8.5 is within some 7 % of what is published; nothing is faster than the floor."""
    plan = planned(config, card)
    assert plan.roofline is not None
    assert 1000 * plan.roofline.floor == pytest.approx(floor, abs=0.01)
    assert 1 / plan.roofline.seconds(Bucket(1, 1, 1)) == pytest.approx(published, rel=0.08)
    first = plan.decode[0]
    assert first.rows == 1
    assert first.bound is not None
    assert plan.roofline.floor < first.bound < first.seconds
    assert first.rate == 1 / first.seconds


def test_keys_and_values_are_read_too() -> None:
    """8 sequences of 1024 tokens of 128 KiB are 1 GiB more to read, at 2.46 TB/s."""
    plan = planned(LLAMA_31_8B)
    last = plan.decode[-1]
    assert (last.rows, last.tokens) == (8, 1024)
    assert plan.roofline is not None
    assert last.bound == pytest.approx(plan.roofline.floor + GIB / 2.46e12)
    assert [speed.rows for speed in plan.decode] == [1, 2, 4, 8]


def test_a_prompt_of_2048_tokens() -> None:
    """8.5 has 31.9 ms of computing in fp8 on a Gaudi2, twice that in bf16."""
    plan = planned(LLAMA_2_7B, max_input_tokens=2048, max_total_tokens=4096)
    (speed,) = [speed for speed in plan.prefill if speed.tokens == 2048]
    assert len(speed.buckets) == 1
    assert 2 * 31.9 < 1000 * speed.seconds < 2 * 31.9 / 0.87 * 1.25
    assert speed.rate == 2048 / speed.seconds


def test_a_prompt_that_takes_several_steps_reads_what_came_before() -> None:
    plan = planned(LLAMA_31_8B, max_input_tokens=5000, max_total_tokens=8192)
    longest = plan.prefill[-1]
    assert longest.tokens == 5000
    assert len(longest.buckets) == 3
    for bucket, (tokens, context) in zip(longest.buckets, [(2048, 0), (2048, 16), (904, 32)], strict=True):
        assert (bucket.tokens >= tokens, bucket.blocks >= context) == (True, True)


def test_cards_that_wait_for_each_other() -> None:
    """Two all-reduces of 8192 bfloat16 in each of 80 layers and an all-gather; 7 of 8 cards are elsewhere."""
    plan = planned(LLAMA_31_70B, ranks=8, **LARGE)
    assert plan.roofline is not None
    bucket = Bucket(1, 4096, 0, prefill=True)
    waiting = plan.roofline.seconds(bucket) - plan.roofline.stages[0].costs.seconds(bucket)
    moved = 160 * 4096 * 8192 * 2 * 2 * 7 / 8 + 7 * 128256 / 8 * 2
    assert waiting == pytest.approx(161 * 20e-6 + moved / (0.87 * 262.5e9))


def test_two_stages_on_two_boxes() -> None:
    """Each of 16 cards has an eighth of 63 layers, and of the embedding or of the head."""
    plan = planned(LLAMA_31_405B, "gaudi3", ranks=8, pipeline_parallel_size=2, **LARGE)
    first, second = plan.planner.described.stages
    layer = 16384 * (2 * 16384 + 2 * 1024 + 3 * 53248)
    assert plan.planner.described.stage_layers == (63, 63)
    assert first.parameters == pytest.approx((63 * layer + 128256 * 16384) / 8, rel=0.001)
    assert second.parameters == pytest.approx(first.parameters, rel=0.001)
    assert (first.vocab_size, second.vocab_size) == (0, 128256)
    assert plan.memory.stage == 1, "the stage with the sampler has less room"
    assert plan.memory.widest.block_bytes == 128 * 63 * 2 * 128 * 2, "one key/value head, 63 layers"
    assert plan.roofline is not None
    decode = Bucket(32, 1, 32 * 64)
    times = [stage.seconds(decode) for stage in plan.roofline.stages]
    sending = 20e-6 + 32 * 16384 * 2 / (0.87 * 75e9)
    assert plan.roofline.sending(decode) == pytest.approx(sending)
    assert plan.roofline.seconds(decode) == pytest.approx(sum(times) + sending)
    assert plan.roofline.interval(decode) == pytest.approx(max(times) + sending)
    assert plan.decode[-1].buckets[0].rows == 32, "64 sequences divide into two steps"
    assert max(bucket.rows for bucket in plan.buckets if not bucket.prefill) == 32


def test_ranks_on_two_boxes_meet_in_three_phases() -> None:
    """An all-reduce moves 7 / 8 of twice its bytes within a box, and an eighth of them to the other box."""
    plan = planned(LLAMA_31_405B, "gaudi3", ranks=16, **LARGE)
    assert plan.roofline is not None
    bucket = Bucket(1, 1024, 0, prefill=True)
    waiting = plan.roofline.seconds(bucket) - plan.roofline.stages[0].costs.seconds(bucket)
    summed, logits = 252 * 1024 * 16384 * 2, 128256 / 16 * 2
    links = (2 * 7 / 8 * summed + 2 * 7 * logits) / 525e9
    network = (2 / 2 * summed / 8 + logits) / 75e9
    assert waiting == pytest.approx(3 * 253 * 20e-6 + (links + network) / 0.87)


def test_buckets_their_number_and_their_time() -> None:
    plan = planned(LLAMA_31_8B)
    assert len(set(plan.buckets)) == len(plan.buckets)
    # gaudi.md 3.5: 1.5 to 3 s for each.
    assert 1.5 * len(plan.buckets) <= plan.warm_up_seconds <= 3 * len(plan.buckets)
    for speed in (*plan.decode, *plan.prefill):
        assert set(speed.buckets) <= set(plan.buckets)
    assert plan.padding.keys() == {"prefill", "decode"}
    assert all(share >= 0 for share in plan.padding.values())
    deeper = planned(LLAMA_31_70B, ranks=8)
    assert deeper.warm_up_seconds / len(deeper.buckets) == pytest.approx(
        80 / 32 * plan.warm_up_seconds / len(plan.buckets)
    )


def test_short_prompts_share_steps() -> None:
    """One by one, each of them would read all weights: the padding would be several times the work."""
    for model, card, ranks in ((LLAMA_31_70B, "gaudi2", 8), (LLAMA_31_8B, "gaudi3", 1)):
        plan = planned(model, card=card, ranks=ranks, **LARGE)
        assert any(bucket.prefill and bucket.rows >= 8 for bucket in plan.buckets)
        assert plan.padding["prefill"] < 0.7


def test_keys_and_values_in_8_bits() -> None:
    plan, half = planned(LLAMA_31_8B), planned(LLAMA_31_8B, kv_cache_dtype="fp8_e4m3fn")
    assert half.memory.widest.block_bytes * 2 == plan.memory.widest.block_bytes
    assert half.memory.rank.workspace_bytes == plan.memory.rank.workspace_bytes
    assert half.decode[-1].bound is not None
    assert plan.decode[-1].bound is not None
    assert half.decode[-1].bound < plan.decode[-1].bound
    with pytest.raises(ConfigError, match="a KV cache of 'fp8_e5m2' is not supported on this device"):
        planned(LLAMA_31_8B, kv_cache_dtype="fp8_e5m2")


def test_more_graphs_than_there_is_room_for() -> None:
    """Of 10 MiB each."""
    plan = planned(LLAMA_31_8B, card="gaudi2")
    assert plan.memory.graphs == len(plan.buckets) * (10 << 20)


def test_a_cpu_has_no_graphs_and_no_peaks() -> None:
    plan = planned(LLAMA_31_8B, card="cpu")
    assert (plan.buckets, plan.roofline, plan.decode, plan.prefill, plan.padding) == ([], None, [], [], {})
    assert plan.memory.graph_count == 0


def test_more_ranks_are_no_help_where_they_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=100 * GIB))
    refusal = planned(LLAMA_31_70B, card="cpu").memory.refusal or ""
    assert "Not enough memory" in refusal
    assert "--num-shard" not in refusal
    assert "--num-shard 2" in (planned(LLAMA_31_70B, card="gaudi3").memory.refusal or "")


def test_heads_that_cannot_be_divided() -> None:
    with pytest.raises(ConfigError, match="64 heads and 8 key/value heads cannot be divided over 6 ranks"):
        planned(LLAMA_31_70B, ranks=6)
    with pytest.raises(ConfigError, match="--device a100, cpu, gaudi2, gaudi3, h100, h200, not 'hpu'"):
        planned(LLAMA_31_8B, card="hpu")
