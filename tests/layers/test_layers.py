"""Layers beyond the device's operations: parts for ranks, prompt log-probabilities, frequencies."""

import attrs
import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.falcon.modeling_falcon import build_alibi_tensor

from tgi.device.base import Device
from tgi.device.batch import Batch
from tgi.layers import (
    Attention,
    Build,
    ColumnLinear,
    Embedding,
    GroupedQKV,
    Head,
    LayerNorm,
    RowLinear,
    alibi_slopes,
)
from tgi.layers.moe import MixtureOfExperts
from tgi.layers.rotary import Rotary, attention_factor, frequencies
from tgi.plugins import ConfigError, JsonReader
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import read_llama_config
from tgi.plugins.rope_config import read_rope
from tgi.weights import Checkpoint, DummyWeights, Shard
from tgi.weights.formats.fp8 import Fp8
from tgi.worker.runner import open_device

VOCAB, SIZE = 50, 8


class OneAfterAnother(Device):
    """Stands in for ranks: keeps what each would have contributed."""

    def __init__(self):
        super().__init__(1)
        self.parts = []

    def all_reduce(self, x, shard):  # noqa: ARG002
        self.parts.append(x)
        return x

    def all_gather(self, x, shard):  # noqa: ARG002
        self.parts.append(x)
        return x


@pytest.fixture
def build(tmp_path):
    torch.manual_seed(0)
    tensors = {
        "head.weight": torch.randn(VOCAB, SIZE),
        "q.weight": torch.randn(8, SIZE),
        "q.bias": torch.randn(8),
        "k.weight": torch.randn(4, SIZE),
        "k.bias": torch.randn(4),
        "o.weight": torch.randn(SIZE, 12),
        "o.bias": torch.randn(SIZE),
    }
    save_file(tensors, tmp_path / "model.safetensors")

    def make(shard=Shard(), device=None):  # noqa: B008
        return Build(Checkpoint(tmp_path), shard, device or Device(1), torch.float32)

    make.tensors = tensors
    return make


def make_batch(last):
    nothing = torch.zeros(0, dtype=torch.int32)
    return Batch(
        tokens=nothing,
        positions=nothing,
        contexts=nothing,
        starts=nothing,
        lengths=nothing,
        last=torch.tensor(last, dtype=torch.int32),
        cache=None,
        groups=[],
    )


@pytest.mark.parametrize("length", [1, 64, 65, 200])
@pytest.mark.parametrize("top", [0, 1, 5, VOCAB + 2])
def test_prompt_logprobs(build, length, top):
    x = torch.randn(length, SIZE)
    targets = torch.randint(0, VOCAB, (length,))
    targets[length // 2] = -1
    batch = make_batch([length - 1])
    batch.features = torch.zeros(length, SIZE)
    head = Head(build(), "head", VOCAB, SIZE)
    logits = head(x, batch)
    wanted = x @ build.tensors["head.weight"].T
    torch.testing.assert_close(logits, wanted[-1:])
    assert torch.equal(batch.features, x)
    target_logprobs, top_tokens, top_logprobs = head.answer(batch.features, targets, top)
    logprobs = wanted.log_softmax(-1).gather(1, targets.clamp_min(0)[:, None])[:, 0]
    assert target_logprobs.isnan().tolist() == (targets < 0).tolist()
    torch.testing.assert_close(target_logprobs.nan_to_num(0), logprobs.masked_fill(targets < 0, 0))
    best = wanted.log_softmax(-1).topk(min(top, VOCAB))
    assert torch.equal(top_tokens[:, :VOCAB], best.indices)
    torch.testing.assert_close(top_logprobs[:, :VOCAB], best.values)
    assert top_tokens.shape == top_logprobs.shape == (length, top)
    chosen = (top_tokens == targets[:, None]) & (targets >= 0)[:, None]
    places = chosen.any(1)
    assert top < VOCAB or (places == (targets >= 0)).all()
    assert torch.equal(top_logprobs[chosen], target_logprobs[places]), "bit for bit"


def test_head_without_rows(build):
    assert Head(build(), "head", VOCAB, SIZE)(torch.randn(5, SIZE), make_batch([])).shape == (0, VOCAB)


def test_parts_of_ranks_make_the_whole(build):
    """The vocabulary of 50 does not divide by 4."""
    x = torch.randn(3, SIZE)
    head, column, row = [], [], OneAfterAnother()
    wide, residual = torch.randn(3, 12), torch.randn(3, SIZE)
    for rank in range(4):
        device = OneAfterAnother()
        here = build(Shard(rank, 4), device)
        Head(here, "head", VOCAB, SIZE)(x, make_batch([0, 1, 2]))
        head += device.parts
        column.append(ColumnLinear(here, ["q", "k"], SIZE, [8, 4], bias=True)(x))
        part = RowLinear(build(Shard(rank, 4), row), "o", 12, SIZE, bias=True)
        part(wide[:, 3 * rank : 3 * rank + 3].contiguous(), residual)
    tensors = build.tensors
    torch.testing.assert_close(torch.cat(head, -1)[:, :VOCAB], x @ tensors["head.weight"].T)
    q, k = torch.cat([c[:, :2] for c in column], -1), torch.cat([c[:, 2:] for c in column], -1)
    torch.testing.assert_close(q, x @ tensors["q.weight"].T + tensors["q.bias"])
    torch.testing.assert_close(k, x @ tensors["k.weight"].T + tensors["k.bias"])
    torch.testing.assert_close(sum(row.parts), wide @ tensors["o.weight"].T + tensors["o.bias"] + residual)


@pytest.mark.parametrize("tokens", [torch.int32, torch.int64], ids=str)
def test_each_token_is_one_ranks(build, tokens):
    """A vocabulary of 50 over 7 ranks: the last has 2 rows, the others 8."""
    ids = torch.tensor([0, 12, 13, 26, 38, 39, 47, 48, 49], dtype=tokens)
    for size in (1, 4, 7):
        device = OneAfterAnother()
        parts = [
            Embedding(build(Shard(rank, size), device), "head", VOCAB, SIZE)(ids) for rank in range(size)
        ]
        assert torch.equal(sum(parts), build.tensors["head.weight"][ids.long()])
        assert len(device.parts) == size - (size == 1)


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 1), (6, 6), (12, 6), (30, 6)])
def test_grouped_heads_on_ranks(tmp_path, heads, kv_heads, size):
    """Rows of the tensor name themselves: query, key or value; head; feature."""
    readers = heads // kv_heads
    rows = []
    for group in range(kv_heads):
        rows += [(0, group * readers + reader, i) for reader in range(readers) for i in range(4)]
        rows += [(1, group, i) for i in range(4)] + [(2, group, i) for i in range(4)]
    rows = torch.tensor(rows, dtype=torch.float32)
    save_file({"x.weight": rows, "x.bias": rows[:, 1].clone()}, tmp_path / "model.safetensors")
    for rank in range(size):
        build = Build(Checkpoint(tmp_path), Shard(rank, size), Device(1), torch.float32)
        got, bias = GroupedQKV(build, "x", 3, heads, kv_heads, 4, bias=True)(torch.eye(4, 3)).split((3, 1))
        got = (got - bias).T
        mine = [head for head in range(heads) if head * size // heads == rank]
        read = sorted({head // readers for head in mine})
        wanted = [(0, head, i) for head in mine for i in range(4)]
        wanted += [(kind, head, i) for kind in (1, 2) for head in read for i in range(4)]
        assert got.tolist() == [list(map(float, row)) for row in wanted]
        assert torch.equal(bias[0], got[:, 1])


def test_two_layers_share_one_sum_over_the_ranks(build):
    """Both biases and the residual count once."""
    wide, residual, device = torch.randn(3, 12), torch.randn(3, SIZE), OneAfterAnother()
    for rank in range(4):
        layer = RowLinear(build(Shard(rank, 4), device), "o", 12, SIZE, bias=True)
        part = wide[:, 3 * rank : 3 * rank + 3].contiguous()
        layer(2 * part, partial=layer.partial(part, residual))
    assert len(device.parts) == 4
    tensors = build.tensors
    wanted = 3 * wide @ tensors["o.weight"].T + 2 * tensors["o.bias"] + residual
    torch.testing.assert_close(sum(device.parts), wanted)


class Compiling(OneAfterAnother):
    compiles = True


class Recorder(TorchDispatchMode):
    """Records operations with the shapes of their tensors, and with their numbers."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        def plain(value):
            return tuple(value.shape) if isinstance(value, torch.Tensor) else value

        self.operations.append((str(func), tree_map(plain, (args, kwargs))))
        return func(*args, **kwargs or {})


def with_experts():
    sizes = {"vocab_size": VOCAB, "hidden_size": SIZE, "intermediate_size": 12, "num_hidden_layers": 1}
    experts = ExpertsConfig(layers=(True,), count=3, top=2, inner=12)
    return read_llama_config(JsonReader(sizes | {"num_attention_heads": 4}), experts=experts)


def test_all_ranks_do_the_same_operations(build):
    """Else the graphs of a compiled model would differ from rank to rank."""
    ids, x, residual = torch.tensor([0, 20, 49]), torch.randn(3, 3), torch.randn(3, SIZE)
    recorded = []
    for rank in range(4):
        device = Compiling()
        here = build(Shard(rank, 4), device)
        dummy = Build(DummyWeights(torch.float32), Shard(rank, 4), device, torch.float32)
        embedding, row = Embedding(here, "head", VOCAB, SIZE), RowLinear(here, "o", 12, SIZE, bias=True)
        experts = MixtureOfExperts(dummy, "m", with_experts(), None)
        head = Head(here, "head", VOCAB, SIZE)
        with Recorder() as recorder:
            y = row(x, embedding(ids))
            y = row(x, partial=row.partial(x, y))
            head(experts(y, residual), make_batch([0, 2]))
        recorded.append(recorder.operations)
    assert recorded[0]
    assert recorded[1:] == recorded[:1] * 3


def test_layer_norm(tmp_path):
    """The definition, by hand."""
    weight, bias = torch.randn(5, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    save_file({"n.weight": weight, "n.bias": bias}, tmp_path / "model.safetensors")
    x = torch.tensor([[1.0, 2, 3, 4, 5], [-7, 0, 0, 0, 7]], dtype=torch.float64)
    norm = LayerNorm(Build(Checkpoint(tmp_path), Shard(), Device(1), torch.float64), "n", 5, 0.5)
    less = x - torch.tensor([[3.0], [0.0]])
    wanted = less / torch.tensor([[2.5], [98 / 5 + 0.5]]).double().sqrt() * weight + bias
    torch.testing.assert_close(norm(x), wanted)


@pytest.mark.parametrize("heads", [1, 2, 4, 5, 7, 12, 32, 64, 71])
def test_slopes_are_those_of_transformers(heads):
    """transformers has the slopes at position 1, rounded to bfloat16."""
    rounded = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
    assert torch.equal(alibi_slopes(heads).bfloat16().float(), rounded)


def test_heads_must_divide(build):
    with pytest.raises(ConfigError, match=r"6 cannot be divided over 4 ranks"):
        Attention(build(Shard(0, 4)), 0, 6, 2, 8)
    with pytest.raises(ConfigError, match="5 heads do not divide over 2"):
        Attention(build(), 0, 5, 2, 8)


FIRST = {"original_max_position_embeddings": 64}
ROPES = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 256},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0, "beta_slow": 3.9, **FIRST},
    {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.7, **FIRST},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **FIRST},
    {
        "rope_type": "longrope",
        "short_factor": [1.0 + i for i in range(32)],
        "long_factor": [3.0 + 2 * i for i in range(32)],
        **FIRST,
    },
]


@pytest.mark.parametrize("rope", ROPES, ids=str)
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
def test_frequencies_are_those_of_transformers(rope, theta):
    """Heads of 64 have as many frequencies as real models."""
    data = {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "rope_parameters": {**rope, "rope_theta": theta},
    }
    mine = read_rope(JsonReader(data), 64)
    theirs = LlamaConfig(**data)
    for beyond in (False, True):
        wanted, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, seq_len=1000 if beyond else None)
        torch.testing.assert_close(frequencies(mine, beyond), wanted, rtol=1e-6, atol=0)
        assert attention_factor(mine) == pytest.approx(factor)


def test_from_which_length_on_keys_depend_on_it():
    data = {"max_position_embeddings": 100, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert read_rope(JsonReader(data), 8).depends_on_length_beyond == 100
    data["rope_scaling"] = {"type": "su", "short_factor": [1] * 4, "long_factor": [2] * 4}
    assert (
        read_rope(JsonReader(data | {"original_max_position_embeddings": 40}), 8).depends_on_length_beyond
        == 40
    )
    assert read_rope(JsonReader({}), 8).depends_on_length_beyond is None


@pytest.mark.parametrize("size", [1, 2, 6])
def test_grouped_heads_in_fp8(tmp_path, size):
    """A fused tensor has one scale, and each rank its rows of the numbers."""
    numbers = torch.randn(30, 8).to(torch.float8_e4m3fn)
    scales = {"x.weight_scale": torch.tensor([0.5]), "x.input_scale": torch.tensor([0.25])}
    save_file({"x.weight": numbers, **scales}, tmp_path / "model.safetensors")
    x = torch.randint(-8, 8, (4, 8)) / 4
    for rank in range(size):
        shard = Shard(rank, size)
        stored = Build(Checkpoint(tmp_path), shard, Device(1), torch.float32, Fp8())
        whole = Build(DenseNumbers(numbers.float() * 0.5), shard, Device(1), torch.float32)
        got, wanted = (GroupedQKV(build, "x", 8, 6, 2, 3)(x) for build in (stored, whole))
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positions_that_are_looked_up_turn_as_those_beyond_the_table(monkeypatch, dtype):
    config, device = read_rope(JsonReader({"rope_theta": 500.0}), 16), open_device("cpu", 1)
    positions = torch.tensor([0, 1, 70, 99, 100, 1000], dtype=torch.int32)
    batch = attrs.evolve(make_batch([0]), positions=positions)
    results = []
    for size in (1, 100, 1 << 14):
        monkeypatch.setattr("tgi.layers.rotary._TABLED", size)
        results.append(Rotary(Build(DummyWeights(dtype), Shard(), device, dtype), config)(batch))
    angles = (positions[:, None].float() * frequencies(config)).double()
    for first, *others, wanted in zip(*results, (angles.cos(), angles.sin()), strict=True):
        half = first.flatten(1)[:, :8].double().abs()
        torch.testing.assert_close(
            half, wanted.abs(), rtol=0, atol=2**-9 if dtype == torch.bfloat16 else 1e-6
        )
        assert all(torch.equal(first, other) for other in others)


class DenseNumbers(DummyWeights):
    """One tensor under any name."""

    def __init__(self, numbers):
        super().__init__(torch.float32)
        self.numbers = numbers

    def read(self, name, shape, dim=0, part=None, out=None):  # noqa: ARG002
        return out.copy_(self.numbers[part])
