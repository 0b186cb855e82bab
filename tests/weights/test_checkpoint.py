"""Reading tensors by name: whole, in parts, over several files; what is wrong is named with its file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tgi.plugins import ConfigError
from tgi.testing.models import llama_config, llama_tensors, save_tensors
from tgi.weights import Checkpoint, CheckpointError, Shard

TENSORS = {
    "a.weight": torch.arange(24.0).reshape(6, 4),
    "a.bias": torch.arange(6.0),
    "b.weight": torch.ones(4, 4, dtype=torch.bfloat16),
}


@pytest.fixture
def folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def test_whole_tensors_and_parts(folder):
    checkpoint = Checkpoint(folder)
    assert torch.equal(checkpoint.read("a.weight", [6, 4]), TENSORS["a.weight"])
    assert checkpoint.read("b.weight", [4, 4]).dtype == torch.bfloat16
    for rank in range(2):
        shard = Shard(rank, 2)
        rows = checkpoint.read("a.weight", [6, 4], 0, shard.cut(6))
        columns = checkpoint.read("a.weight", [6, 4], 1, shard.cut(4))
        assert torch.equal(rows, TENSORS["a.weight"][3 * rank : 3 * rank + 3])
        assert torch.equal(columns, TENSORS["a.weight"][:, 2 * rank : 2 * rank + 2])
        assert torch.equal(
            checkpoint.read("a.bias", [6], 0, shard.cut(6)), TENSORS["a.bias"][3 * rank : 3 * rank + 3]
        )


def test_progress_counts_every_byte_once(folder):
    seen = []
    checkpoint = Checkpoint(folder, lambda done, total: seen.append((done, total)))
    total = sum(tensor.nbytes for tensor in TENSORS.values())
    assert checkpoint.total_bytes == total
    checkpoint.read("a.weight", [6, 4])
    checkpoint.read("a.weight", [6, 4], 0, slice(3, 6))
    checkpoint.dismiss("b.weight")
    checkpoint.read("a.bias", [6])
    assert seen == [(96, total), (128, total), (total, total)]


def test_what_nobody_has_read_is_known(folder):
    names = ("layers.0.rotary_emb.inv_freq", "layers.0.rotary.cos_cached", "h.0.attn.masked_bias")
    buffers = {name: torch.ones(2) for name in names}
    save_file(TENSORS | buffers, folder / "model.safetensors")
    checkpoint = Checkpoint(folder)
    assert sorted(checkpoint.unread) == ["a.bias", "a.weight", "b.weight"]
    checkpoint.read("a.bias", [6])
    checkpoint.dismiss("b.weight")
    checkpoint.dismiss("not there")
    assert checkpoint.unread == ["a.weight"]


@pytest.mark.parametrize("shards", [1, 3])
def test_files_with_an_index(tmp_path, shards):
    tensors = llama_tensors(llama_config())
    save_tensors(tmp_path, tensors, shards)
    save_file({"of another format": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    checkpoint = Checkpoint(tmp_path)
    for name, tensor in tensors.items():
        assert torch.equal(checkpoint.read(name, tensor.shape), tensor)
    assert checkpoint.unread == []


@pytest.mark.parametrize("other", ["adapter_model", "consolidated", "optimizer", "tok_lora"])
@pytest.mark.parametrize("own", ["model", "pytorch_model-00001-of-00001"])
def test_files_that_are_not_the_models(tmp_path, own, other):
    save_file(TENSORS, tmp_path / f"{own}.safetensors")
    save_file({"layers.0.attention.wq.weight": torch.ones(1)}, tmp_path / f"{other}.safetensors")
    assert sorted(Checkpoint(tmp_path).unread) == sorted(TENSORS)


def test_a_whole_file_goes_before_an_index_that_was_left_over(tmp_path):
    save_tensors(tmp_path, {name: tensor * 0 for name, tensor in TENSORS.items()}, 2)
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert torch.equal(Checkpoint(tmp_path).read("a.weight", [6, 4]), TENSORS["a.weight"])


def test_an_index_decides_which_of_two_files_has_a_tensor(tmp_path):
    names = ("model.safetensors", "more.safetensors")
    save_file(TENSORS, tmp_path / names[0])
    save_file({"a.bias": torch.zeros(6)}, tmp_path / names[1])
    for name in names:
        places = dict.fromkeys(TENSORS, names[0]) | {"a.bias": name, "other": names[1]}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
        assert Checkpoint(tmp_path).read("a.bias", [6]).any() == (name == names[0])


def test_an_index_need_not_name_every_tensor_in_the_right_file(tmp_path):
    """As in transformers, which takes from an index the names of the files alone."""
    save_tensors(tmp_path, TENSORS, 2)
    path = tmp_path / "model.safetensors.index.json"
    first, second = sorted(set(json.loads(path.read_text())["weight_map"].values()))
    for places in (
        {"a.bias": first, "b.weight": second},
        dict.fromkeys(TENSORS, first) | {"b.weight": second},
    ):
        path.write_text(json.dumps({"weight_map": places}))
        checkpoint = Checkpoint(tmp_path)
        for name, tensor in TENSORS.items():
            assert torch.equal(checkpoint.read(name, tensor.shape), tensor)


def test_two_files_with_one_tensor_and_no_index(tmp_path):
    for name in ("a", "b"):
        save_file(TENSORS, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"b.safetensors and a.safetensors both have 'a.bias'"):
        Checkpoint(tmp_path)


def test_strange_tensors_are_those_of_modules_and_layers_that_are_read(tmp_path):
    names = (
        "h.0.q.weight",
        "h.0.q.bias",
        "h.0.norm.weight",
        "h.1.q.weight",
        "v_head.weight",
        "out.weight",
        "out.bias",
    )
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    asked = {"h.0.q.weight", "out.weight"}
    strange = {"h.0.q.bias", "h.0.norm.weight", "out.bias"}
    assert set(checkpoint.strange(asked)) == strange
    for name in asked:
        checkpoint.read(name, [1])
    assert set(checkpoint.strange()) == strange


def test_missing_tensor(folder):
    with pytest.raises(CheckpointError, match=r"has no tensor 'c.weight'"):
        Checkpoint(folder).read("c.weight", [1])


def test_wrong_shape(folder):
    with pytest.raises(CheckpointError, match=r"model.safetensors: 'a.weight' has shape \[6, 4\].*\[4, 6\]"):
        Checkpoint(folder).read("a.weight", [4, 6])


@pytest.mark.parametrize("left", [0, 4, 50, -1])
def test_truncated_file(folder, left):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a complete safetensors file"):
        Checkpoint(folder)


def test_no_weights(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no \*.safetensors file"):
        Checkpoint(tmp_path)


def test_index_of_a_missing_file(tmp_path):
    save_tensors(tmp_path, TENSORS, 2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is missing"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "content", ["{", "[]", json.dumps({"weight_map": None}), '{"weight_map": {"a": 5}}', "{}"]
)
def test_broken_index(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not an index"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("heads", "ranks", "owned"),
    [
        (8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (2, 2, [[0], [1]]),
        (2, 4, [[0], [0], [1], [1]]),
        (1, 2, [[0], [0]]),
    ],
)
def test_ranks_have_the_key_value_heads_that_their_queries_read(heads, ranks, owned):
    queries = 8
    for rank, wanted in enumerate(owned):
        shard = Shard(rank, ranks)
        assert list(range(heads)[shard.kv_heads(heads)]) == wanted
        assert sorted({q * heads // queries for q in range(queries)[shard.cut(queries)]}) == wanted
        rows = range(3 * heads)[shard.cut(3 * heads, heads)]
        assert sorted({row // 3 for row in rows}) == wanted
        assert len(rows) == 3 * len(wanted)


@pytest.mark.parametrize(("total", "pieces", "ranks"), [(7, None, 2), (12, 3, 2), (12, 2, 3), (9, 2, 2)])
def test_what_does_not_come_out_even_is_refused(total, pieces, ranks):
    with pytest.raises(ConfigError, match=f"cannot be divided over {ranks} ranks"):
        Shard(0, ranks).cut(total, pieces)


@pytest.mark.parametrize("total", [1, 4, 7, 8, 9])
def test_any_number_of_rows_is_divided(total):
    shards = [Shard(rank, 4) for rank in range(4)]
    rows = [list(range(total)[shard.rows(total)]) for shard in shards]
    assert [row for mine in rows for row in mine] == list(range(total))
    assert all(len(mine) == shards[0].share(total) for mine in rows if mine[-1:] != [total - 1] and mine)


def test_shards_cover_everything():
    for size in (1, 2, 3, 6):
        cuts = [Shard(rank, size).cut(12) for rank in range(size)]
        assert [i for cut in cuts for i in range(12)[cut]] == list(range(12))
