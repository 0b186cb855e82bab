"""Plans for models with experts, compressed keys and two kinds of layers, against their published sizes."""

from typing import Any

import pytest

from .llamas import DEEPSEEK_V3, GEMMA_3_27B, GPT_OSS_20B, MIXTRAL_8X7B, QWEN3_30B_A3B
from .test_plan import planned

GIB = 1 << 30
LONG = {"max_input_tokens": 8191, "max_total_tokens": 8192}


@pytest.mark.parametrize(
    ("config", "stored", "active"),
    [
        (MIXTRAL_8X7B, 46.7e9, 12.9e9),
        (QWEN3_30B_A3B, 30.5e9, 3.3e9),
        (DEEPSEEK_V3, 671e9, 37e9),
        (GPT_OSS_20B, 20.9e9, 3.6e9),
    ],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B", "DeepSeek-V3", "gpt-oss-20b"],
)
def test_parameters_that_are_stored_and_that_a_token_needs(
    config: dict[str, Any], stored: float, active: float
) -> None:
    """By the model cards. OpenAI and DeepSeek leave the embedding out of the second number."""
    model = planned(config, "gaudi3").planner.described
    embedding = config["vocab_size"] * config["hidden_size"]
    left_out = embedding if config in (DEEPSEEK_V3, GPT_OSS_20B) else 0
    assert model.parameters == pytest.approx(stored, rel=0.003)
    assert model.active_parameters - left_out == pytest.approx(active, rel=0.02)


def test_a_token_reads_its_experts_and_many_tokens_read_all() -> None:
    plan = planned(MIXTRAL_8X7B, "gaudi3")
    assert plan.roofline is not None
    (roofline,) = plan.roofline.stages
    assert roofline.size.read_bytes(1) == pytest.approx(2 * 12.9e9, rel=0.01)
    assert roofline.size.read_bytes(64) == pytest.approx(2 * 46.7e9, rel=0.003)
    assert roofline.costs.decode(1, 0) < 0.4 * roofline.costs.decode(64, 0)


def test_deepseek_v3_in_16_bits_needs_sixteen_cards() -> None:
    """It has 1.34 TB; a Gaudi 3 has 128 GB."""
    eight, sixteen = (planned(DEEPSEEK_V3, "gaudi3", ranks, **LONG) for ranks in (8, 16))
    assert eight.memory.refusal is not None
    assert "--num-shard 16" in eight.memory.refusal
    assert sixteen.memory.fits
    assert sixteen.memory.rank.weight_bytes == pytest.approx(2 * 671e9 / 16, rel=0.03)
    (group,) = sixteen.planner.described.groups  # 512 compressed features and 64 rotated ones
    assert (group.latent, group.token_bytes) == (True, 61 * 576 * 2)


@pytest.mark.slow
@pytest.mark.seconds(240)
@pytest.mark.parametrize("cards", [8, 16])
def test_deepseek_v3_in_8_bits_as_it_is_published_fits(cards: int) -> None:
    """Its files have 688.6 GB, with 14 billion parameters for the prediction of several tokens, which are not
    read; the embedding and the head have 16 bits. Each row has a scale of its own for 128 numbers, and each
    card all of what compresses queries and keys, and all routers, in 32 bits."""
    config = DEEPSEEK_V3 | {
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        }
    }
    plan = planned(config, "gaudi3", cards, **LONG)
    assert plan.memory.fits
    ends, everywhere = 2 * 129280 * 7168, 61 * 7168 * (1536 + 576) + 58 * 7168 * 256 * 4
    divided = (671e9 + ends) * (1 + 4 / 128) / cards
    assert plan.memory.rank.weight_bytes == pytest.approx(divided + everywhere, rel=0.01)


def test_whole_experts_on_each_card_take_as_much() -> None:
    parts = planned(QWEN3_30B_A3B, "gaudi2", 4)
    whole = planned(QWEN3_30B_A3B, "gaudi2", 4, expert_parallel=True)
    assert parts.memory.rank.weight_bytes == whole.memory.rank.weight_bytes
    names = {tensor.name for tensor in whole.planner.described.experts}
    assert len(names) == 48 * 32 * 3
    assert max(whole.planner.described.possible_ranks) == 32  # as many as heads; experts would be more


def test_experts_in_4_bits_are_planned_as_they_are_kept() -> None:
    memory = planned(GPT_OSS_20B, "gaudi2").memory
    assert memory.rank.weight_bytes == pytest.approx(2 * 20.9e9, rel=0.003)


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    """Gemma 3 27B has 52 layers with a window of 1,024 tokens and 10 that see everything, with 16 heads of
    128 features. Its 27.0 billion parameters are kept with the embedding, 1.4 billion, as the head too."""
    plan = planned(GEMMA_3_27B, "gaudi3", max_input_tokens=65535, max_total_tokens=65536)
    near, far = plan.memory.groups
    assert (near.window, near.layers, far.window, far.layers) == (1024, 52, None, 10)
    assert near.block_bytes == 52 * 128 * 2 * 2 * 16 * 128
    assert (near.longest, far.longest) == (25, 512)
    assert plan.memory.rank.weight_bytes == pytest.approx(2 * 28.4e9, rel=0.003)
