"""Sizes against those that are known of models, and against what a rank really has."""

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from tgi.device.base import Device
from tgi.device.costs import TABLE_BYTES, workspace_bytes
from tgi.layers import Attention, Build
from tgi.layers.loading import describe
from tgi.protocol import AttentionWorkspace, CacheGroup, Describe, Described, Load
from tgi.testing.driver import load_command
from tgi.testing.models import make_llama
from tgi.weights import Outline, Shard
from tgi.worker.lanes import Tables
from tgi.worker.runner import Runner

KIB = 1 << 10
LLAMA_8B = Described(
    tensors=[],
    groups=[
        CacheGroup(
            window=None,
            layers=list(range(32)),
            kv_heads=8,
            all_kv_heads=8,
            head_dim=128,
            token_bytes=128 * KIB,
        )
    ],
    possible_ranks=[1],
    item=2,
    vocab_size=128256,
    hidden_size=4096,
    heads=32,
    widest=28672,
    changes_scores=False,
)
LOAD = Load(
    folder="",
    architecture="",
    device="",
    dtype="bfloat16",
    threads=0,
    lanes=8,
    prefill_tokens=2048,
    block_size=128,
    max_tokens=4096,
)


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
    build = Build(Outline(), Shard(0, ranks), Device(1), torch.bfloat16)
    for layer in range(layers):
        Attention(build, layer, 16 * kv_heads, kv_heads, head_dim)
    (group,) = build.cache_groups(2)
    assert group.token_bytes == per_token


def test_a_rank_says_the_same_of_itself(tmp_path: Path) -> None:
    command = load_command(make_llama(tmp_path))
    runner = Runner.load(command, Shard(0, 2), Device(1))
    model = describe(
        Describe(folder=command.folder, architecture=command.architecture, ranks=2, dtype="float32")
    )
    assert runner.loaded.block_bytes == tuple(
        group.token_bytes * command.block_size for group in model.groups
    )
    assert runner.loaded.workspace_bytes == workspace_bytes(model, command)


def test_tables_of_the_sampler() -> None:
    tables = Tables(3, 100, Device(1))
    kept = [value for value in vars(tables).values() if isinstance(value, torch.Tensor)]
    assert sum(table.nbytes for table in kept) == 3 * 100 * TABLE_BYTES


def test_a_device_that_gathers_keys_and_values_needs_room_for_them() -> None:
    """One layer gathers 8 key and 8 value heads of 128 bfloat16, and 32 float32 scores twice; each block has
    32 heads of 128 bfloat16 three times. A listed block has its place in the 8 rows as float32 and bfloat16,
    and three float32 for each token."""
    of_block = 128 * (2 * 8 * 128 * 2 + 2 * 32 * 4) + 3 * 32 * 128 * 2
    assert more(LLAMA_8B, gathered_blocks=10) == 10 * of_block
    assert more(LLAMA_8B, listed_blocks=10) == 10 * (8 * 6 + 3 * 128 * 4)
    assert more(LLAMA_8B, prefill_pairs=100) == 100 * (4 + 1 + 4 + 2)
    changing = replace(LLAMA_8B, changes_scores=True)
    assert more(changing, prefill_pairs=100) == 100 * (4 + 1 + 4 + 2 + 4 + 32 * (4 + 4 + 2))
    twice = replace(LLAMA_8B, groups=LLAMA_8B.groups * 2)
    assert more(twice, listed_blocks=10) == 2 * more(LLAMA_8B, listed_blocks=10), "each group has its list"
    assert more(twice, gathered_blocks=10) == 10 * of_block, "of one layer at a time"
    wider = workspace_bytes(replace(LLAMA_8B, vocab_size=2 * 128256), LOAD)
    assert wider - workspace_bytes(LLAMA_8B, LOAD) == 128256 * (64 * (2 + 40) + 9 * 13)


def more(model: Described, **attention: int) -> int:
    """Bytes that a step with such attention needs beside those of a step without."""
    load = replace(LOAD, attention=AttentionWorkspace(**attention))
    return workspace_bytes(model, load) - workspace_bytes(model, LOAD)
