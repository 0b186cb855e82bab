"""Each operation that the CPU overrides, against the definition in plain torch."""

import itertools
import random

import attrs
import numpy as np
import pytest
import torch

from tgi.device import cgroups
from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import Batch, GroupBatch
from tgi.device.cpu.cpu_device import CpuDevice
from tgi.weights.formats.fp8 import Fp8Weight, Scale

BLOCK = 16
SPEC = AttentionSpec(0.2)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def devices():
    return Device(1), CpuDevice(1)


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(got, wanted, dtype):
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 2, 4, 17, 130])
@pytest.mark.parametrize(("out", "into"), [(64, 32), (77, 33), (1, 5), (1000, 768)])
def test_linear_agrees_with_the_definition(devices, dtype, rows, out, into):
    plain, fast = devices
    x, weight = normal(rows, into, dtype=dtype), normal(out, into, dtype=dtype, seed=1) * into**-0.5
    bias, residual = normal(out, dtype=dtype, seed=2), normal(rows, out, dtype=dtype, seed=3)
    mine, theirs = fast.prepare_weight(weight), plain.prepare_weight(weight)
    for extra in [(), (bias,), (None, residual), (bias, residual)]:
        assert_same(fast.linear(x, mine, *extra), plain.linear(x, theirs, *extra), dtype)


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 33])
@pytest.mark.parametrize("smallest", [CpuDevice.min_tokens, 1])
def test_a_row_of_a_linear_layer_in_fp8_does_not_depend_on_its_neighbours(devices, dtype, rows, smallest):
    _, fast = devices
    fast.min_tokens = smallest
    numbers = normal(1000, 2048, dtype=torch.float32).to(torch.float8_e4m3fn)
    weight = fast.prepare_linear(Fp8Weight(numbers, torch.full((1000,), 0.1), Scale.of(torch.tensor(0.01))))
    x = normal(130, 2048, dtype=dtype, seed=1)
    assert torch.equal(fast.multiply(x[:rows], weight), fast.multiply(x, weight)[:rows])


def test_elementwise_operations_agree_with_the_definition(devices, dtype):
    plain, fast = devices
    for rows in (1, 16):
        x = normal(rows, 64, dtype=dtype) * 3
        before = x.clone()
        weight = normal(64, dtype=dtype, seed=1)
        assert_same(fast.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5), dtype)
        assert_same(fast.silu_mul(x), plain.silu_mul(x), dtype)
        heads = normal(rows, 6, 32, dtype=dtype)
        for size in (32, 16):  # all features rotated, or the first half
            cos, sin = normal(rows, 1, size, dtype=dtype, seed=2), normal(rows, 1, size, dtype=dtype, seed=3)
            assert_same(fast.rotary(heads, cos, sin), plain.rotary(heads, cos, sin), dtype)
        assert torch.equal(x, before)


def test_cosines_and_sines_do_not_depend_on_the_place_of_an_angle(devices):
    plain, fast = devices
    angles = normal(500, 32).abs() * torch.tensor([1.0, 1e2, 1e5, 1e7]).repeat(8)
    for whole, exact in zip(fast.cos_sin(angles), plain.cos_sin(angles.double()), strict=True):
        assert (whole - exact).abs().max() < 1e-7
    for size in (1, 3, 17):
        parts = [fast.cos_sin(angles[begin : begin + size]) for begin in range(0, 500, size)]
        for whole, part in zip(fast.cos_sin(angles), zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(part), whole)


def test_argmax_takes_the_first_of_equals(devices):
    x = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-torch.inf, -1.0, -5.0, -1.0]])
    assert [device.argmax(x).tolist() for device in devices] == [[1, 1], [1, 1]]


@attrs.frozen
class Row:
    """A row with that many tokens in the cache, and `length` new ones."""

    start: int
    length: int
    blocks: np.ndarray


class Rows:
    """Rows with given numbers of cached and query tokens, in blocks of a given order."""

    def __init__(self, sizes, order, heads, kv_heads, head_dim, dtype):
        blocks = iter(order)
        self.rows = []
        for start, length in sizes:
            table = np.array([next(blocks) for _ in range(-(-(start + length) // BLOCK))], np.int32)
            self.rows.append(Row(start, length, table))
        self.shape = (heads, kv_heads, head_dim)
        self.dtype = dtype
        self.slots = (max(order) + 1) * BLOCK

    def run(self, device):
        """Attend with the query tokens, all rows one after another, [T, heads, head_dim]."""
        heads, kv_heads, head_dim = self.shape
        for layer in (0, 1):
            device.use(layer, SPEC)
        cache = device.allocate_cache(2, self.slots, kv_heads, head_dim, self.dtype)
        for seed, row in enumerate(self.rows):  # left by earlier steps
            self.store(device, cache, row, range(row.start), 100 + seed)
        total = sum(row.length for row in self.rows)
        query = normal(total, heads, head_dim, dtype=self.dtype, seed=1)
        key, value = (normal(total, kv_heads, head_dim, dtype=self.dtype, seed=s) for s in (2, 3))
        positions = [range(row.start, row.start + row.length) for row in self.rows]
        width = max(row.length for row in self.rows)
        if not device.compiles:
            places = torch.arange(total)
        else:
            places = torch.tensor(
                [i * width + j for i, row in enumerate(self.rows) for j in range(row.length)]
            )
        padded = width * len(self.rows) if device.compiles else total

        def place(values):
            column = values.new_zeros(padded, *values.shape[1:])
            column[places] = values
            return column

        slots = [
            int(row.blocks[p // BLOCK]) * BLOCK + p % BLOCK
            for row, some in zip(self.rows, positions, strict=True)
            for p in some
        ]
        batch = self.batch(
            cache,
            place(torch.tensor([p for some in positions for p in some])),
            place(torch.tensor(slots)),
            self.rows,
        )
        batch.plan = device.plan(batch, BLOCK)
        device.store_kv(cache.layers[1], place(key), place(value), batch)
        return device.attention(cache.layers[1], place(query), place(key), place(value), batch, SPEC)[places]

    def store(self, device, cache, row, positions, seed):
        slots = torch.tensor(
            [int(row.blocks[p // BLOCK]) * BLOCK + p % BLOCK for p in positions], dtype=torch.int64
        )
        key, value = (
            normal(len(slots), *self.shape[1:], dtype=self.dtype, seed=seed * 2 + i) for i in (0, 1)
        )
        batch = self.batch(cache, slots, slots, [])
        batch.plan = device.plan(batch, BLOCK)
        device.store_kv(cache.layers[1], key, value, batch)

    @staticmethod
    def batch(cache, positions, slots, rows):
        blocks = max((len(row.blocks) for row in rows), default=0)
        tables = torch.zeros(len(rows), blocks, dtype=torch.int32)
        for i, row in enumerate(rows):
            tables[i, : len(row.blocks)] = torch.from_numpy(row.blocks)
        sizes = [(row.start, row.length) for row in rows]
        starts, lengths = torch.tensor(sizes, dtype=torch.int32).view(-1, 2).T
        return Batch(
            tokens=positions, positions=positions, contexts=positions, starts=starts, lengths=lengths,
            last=positions[:0], cache=cache, groups=[GroupBatch(slots, tables)],
        )  # fmt: skip


CONSECUTIVE = list(range(1, 200))
SCATTERED = random.Random(0).sample(CONSECUTIVE, len(CONSECUTIVE))
IN_TWO = [block for pair in zip(range(1, 100, 3), range(2, 100, 3), strict=False) for block in pair]


@pytest.mark.parametrize(
    "order", [CONSECUTIVE, SCATTERED, IN_TWO], ids=["consecutive", "scattered", "in two"]
)
@pytest.mark.parametrize(
    "sizes",
    [
        [(0, 1)],
        [(20, 1)],
        [(0, 1), (15, 1), (16, 1), (100, 1)],
        [(0, 40)],
        [(16, 17), (0, 3), (50, 30), (33, 1)],
        [(200, 2)],
    ],
    ids=str,
)
@pytest.mark.parametrize("heads", [(4, 4, 16), (6, 2, 32), (8, 1, 20)], ids=str)
def test_attention_agrees_with_the_definition(devices, dtype, sizes, order, heads):
    plain, fast = (Rows(sizes, order, *heads, dtype).run(device) for device in devices)
    assert_same(fast, plain, dtype)


def test_the_definition_of_attention_is_that_of_torch():
    """One row without a cache, against scaled_dot_product_attention."""
    rows = Rows([(0, 20)], CONSECUTIVE, 6, 2, 32, torch.float32)
    query, key, value = normal(20, 6, 32, seed=1), normal(20, 2, 32, seed=2), normal(20, 2, 32, seed=3)
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=0.2, enable_gqa=True
    )
    assert_same(rows.run(Device(1)), wanted[0].transpose(0, 1), torch.float32)


def test_only_dtypes_that_models_run_in():
    assert CpuDevice(1).dtype("float32") is torch.float32
    assert CpuDevice(1).dtype("auto") in (torch.float32, torch.bfloat16)
    with pytest.raises(Exception, match="'int8' is not a dtype"):
        CpuDevice(1).dtype("int8")


def test_threads_are_those_asked_for_or_the_usable_cores():
    CpuDevice(0)
    assert torch.get_num_threads() == cgroups.usable_cores()
    CpuDevice(1)
    assert torch.get_num_threads() == 1


def test_memory_is_bounded_by_control_groups(tmp_path):
    everything = cgroups.free_bytes(tmp_path)
    assert everything > 0
    group = tmp_path / "memory"
    group.mkdir()
    for name, value in (("memory.limit_in_bytes", 2 << 30), ("memory.usage_in_bytes", 1 << 30)):
        (group / name).write_text(f"{value}\n")
    (group / "memory.stat").write_text("cache 5\ninactive_file 1048576\n")
    assert cgroups.free_bytes(tmp_path) == min(everything, (1 << 30) + (1 << 20) - (256 << 20))


def test_cpu_quota_of_a_control_group(tmp_path):
    assert cgroups.cpu_quota(tmp_path) is None
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.max").write_text("150000 100000\n")
    assert cgroups.cpu_quota(tmp_path) == 1.5


@pytest.mark.parametrize(
    ("quota", "threads"), [(0.2, 1), (1.4, 1), (1.5, 2), (2.0, 2), (1000.0, 3), (None, 3)]
)
def test_a_quota_is_rounded_to_threads(monkeypatch, quota, threads):
    monkeypatch.setattr(cgroups.os, "sched_getaffinity", lambda _: {10_000, 10_001, 10_002})
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    assert cgroups.usable_cores() == threads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["gelu", "gelu by tanh", "sigmoid"])
def test_an_activation_does_not_depend_on_the_place_of_a_number(name, dtype):
    """Torch computes the last numbers of a tensor by other code than those before."""
    apply = {
        "gelu": lambda device, x: device.gelu(x),
        "gelu by tanh": lambda device, x: device.gelu(x, tanh=True),
        "sigmoid": lambda device, x: device.sigmoid(x),
    }[name]
    x = (torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    whole = apply(CpuDevice(1), x)
    for first, count in itertools.product((0, 1, 100), (1, 15, 33, 700)):
        part = apply(CpuDevice(1), x[first : first + count].clone())
        assert torch.equal(part, whole[first : first + count])
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(whole, apply(Device(1), x), atol=tolerance, rtol=tolerance)
