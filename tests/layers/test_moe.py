"""Experts over several ranks: every rank has a part of each."""

from pathlib import Path

from transformers import MixtralConfig

from tgi.layers.loading import describe
from tgi.protocol import Describe
from tgi.testing.checkpoints import make_checkpoint

CONFIG = MixtralConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=5,
    num_experts_per_tok=2,
    sliding_window=None,
)


def test_a_rank_has_a_part_of_every_expert(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, CONFIG)
    command = Describe(folder=str(folder), architecture="MixtralForCausalLM", ranks=2, dtype="float32")
    parts = {each.name: each.part for each in describe(command).tensors if ".layers.1." in each.name}
    for number in range(5):
        name = f"model.layers.1.block_sparse_moe.experts.{number}"
        assert (parts[f"{name}.w1.weight"], parts[f"{name}.w2.weight"]) == ([48, 64], [64, 48])
    assert parts["model.layers.1.block_sparse_moe.gate.weight"] == [5, 64]


def test_experts_are_rounded_and_their_router_is_not(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, CONFIG)
    command = Describe(
        folder=str(folder), architecture="MixtralForCausalLM", ranks=1, dtype="float32", quantize="int8"
    )
    layer = "model.layers.1.block_sparse_moe"
    formats = {each.name: each.format for each in describe(command).tensors}
    assert (formats[f"{layer}.experts.0.w1.weight"], formats[f"{layer}.gate.weight"]) == ("int8", "dense")
