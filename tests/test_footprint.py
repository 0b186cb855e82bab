"""Sizes against those that are known of models, and against what a rank really has."""

from pathlib import Path

import attrs
import pytest
import torch

from tgi.device.base import Device
from tgi.footprint import TABLE_BYTES, block_bytes, workspace_bytes
from tgi.plugins import ModelConfig
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.worker.runner import Runner
from tgi.worker.tables import Tables

KIB = 1 << 10
SIZES = {"vocab_size": 128256, "hidden_size": 4096, "num_heads": 32, "max_position": 131072}


@pytest.mark.parametrize(
    ("layers", "kv_heads", "head_dim", "ranks", "per_token"),
    [
        (32, 8, 128, 1, 128 * KIB),  # Llama-3.1-8B, Mistral-7B
        (32, 32, 128, 1, 512 * KIB),  # Llama-2-7B
        (80, 8, 128, 1, 320 * KIB),  # Llama-3.1-70B
        (80, 8, 128, 8, 40 * KIB),
        (32, 1, 64, 1, 8 * KIB),  # Falcon-7B
        (60, 8, 64, 1, 120 * KIB),  # Falcon-40B
        (80, 8, 128, 16, 40 * KIB),  # no rank has less than one head
    ],
)
def test_keys_and_values_of_a_token(
    layers: int, kv_heads: int, head_dim: int, ranks: int, per_token: int
) -> None:
    config = ModelConfig(num_layers=layers, num_kv_heads=kv_heads, head_dim=head_dim, **SIZES)
    assert block_bytes(config, ranks, 128, 2) == 128 * per_token


def test_a_rank_says_the_same_of_itself(tmp_path: Path) -> None:
    command = load_command(make_llama(tmp_path))
    runner = Runner.load(command, Shard(0, 2), Device(1))
    config, loaded = runner.config, runner.loaded
    assert loaded.block_bytes == block_bytes(config, 2, command.block_size, 4)
    assert loaded.workspace_bytes == workspace_bytes(
        config, ranks=2, item=4, widest=config.widest // 2, lanes=command.lanes, prefill_tokens=512
    )


def test_tables_of_the_sampler() -> None:
    tables = Tables(3, 100, Device(1))
    kept = [value for value in vars(tables).values() if isinstance(value, torch.Tensor)]
    assert sum(table.nbytes for table in kept) == 3 * 100 * TABLE_BYTES


def test_a_device_that_gathers_keys_and_values_needs_room_for_them() -> None:
    """Of one layer: 8 key and 8 value heads of 128 bfloat16, and 32 float32 scores, twice; for each block 32
    heads of 128 bfloat16 three times. In a list: its place in the 8 rows as float32 and bfloat16, and float32
    for its tokens three times."""
    config = ModelConfig(num_layers=32, num_kv_heads=8, head_dim=128, **SIZES)
    given = {"ranks": 1, "item": 2, "widest": 28672, "lanes": 8, "prefill_tokens": 2048, "block_size": 128}
    plain = workspace_bytes(config, **given)
    of_block = 128 * (2 * 8 * 128 * 2 + 2 * 32 * 4) + 3 * 32 * 128 * 2
    assert workspace_bytes(config, gathered_blocks=10, **given) - plain == 10 * of_block
    assert workspace_bytes(config, listed_blocks=10, **given) - plain == 10 * (8 * 6 + 3 * 128 * 4)
    assert workspace_bytes(config, prefill_pairs=100, **given) - plain == 100 * (4 + 1 + 4 + 2)
    changing = attrs.evolve(config, changes_scores=True)
    of_heads = 4 + 32 * (4 + 4 + 2)
    assert workspace_bytes(changing, prefill_pairs=100, **given) - plain == 100 * (4 + 1 + 4 + 2 + of_heads)
    wider = workspace_bytes(attrs.evolve(config, vocab_size=2 * 128256), **given)
    assert wider - workspace_bytes(config, **given) == 128256 * (64 * (2 + 40) + 9 * 13)
