"""Logits and text against transformers for every kind of Qwen, with every switch of published configs."""

import pytest
from tgi_qwen.plugin import read_qwen2
from transformers import Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig

from tgi.plugins import JsonReader
from tgi.testing.check_architecture import check_architecture
from tgi.testing.check_generation import check_generation
from tgi.testing.checkpoints import make_checkpoint

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e6}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS = {
    "2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "2.5 with YaRN": Qwen2Config(**SIZES, rope_parameters=YARN, max_position_embeddings=128),
    "2 with windows": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=24, max_window_layers=1),
    "3": Qwen3Config(**SIZES, attention_bias=True),
    "2 MoE": Qwen2MoeConfig(**SIZES, **EXPERTS, shared_expert_intermediate_size=24, decoder_sparse_step=2),
    "3 MoE": Qwen3MoeConfig(**SIZES, **EXPERTS, norm_topk_prob=True, mlp_only_layers=[1]),
}


def test_texts_of_a_model_for_a_million_tokens_end_with_its_first_chunk():
    """Dual chunk attention, as Qwen2.5-7B-Instruct-1M has it, is the ordinary one up to there."""
    chunks = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
    for length, most in ((1_010_000, 253_952), (32_768, 32_768)):
        config = Qwen2Config(**SIZES, max_position_embeddings=length).to_dict()
        get = JsonReader(config | {"dual_chunk_attention_config": chunks})
        assert read_qwen2(get).max_position == most
    get = JsonReader(config | {"dual_chunk_attention_config": chunks | {"sparse_attention_enabled": True}})
    read_qwen2(get)
    assert "sparse_attention_enabled" in [key for _, key, _ in get.unread()]


@pytest.mark.parametrize("name", CONFIGS)
def test_qwen(tmp_path, name):
    folder = make_checkpoint(tmp_path, CONFIGS[name])
    check_architecture(folder, expert_parallel=name == "2 MoE")
    check_generation(folder, [5, 40])
