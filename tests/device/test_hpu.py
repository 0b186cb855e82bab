"""Each operation that Gaudi overrides, on the simulated cards, against the definition."""

import random

import attrs
import numpy as np
import pytest
import torch
from tgi_simulated_gaudi.device import CARDS, open_card

from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import Batch, FlatBlocks, GroupBatch
from tgi.device.experts import Experts
from tgi.device.graphs import Program
from tgi.device.hpu.bridge import open_bridge
from tgi.device.hpu.hpu_device import HpuDevice
from tgi.plugins import ConfigError
from tgi.testing.driver import Driver, load_command
from tgi.testing.models import make_llama
from tgi.weights import Shard
from tgi.weights.formats import DenseWeight
from tgi.weights.formats.fp8 import Fp8Weight, Scale
from tgi.worker.runner import Runner

BLOCK = 16
SPEC = AttentionSpec(0.2)
NARROW = AttentionSpec(0.2, wide=False)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}
KERNELS = (
    *("attention", "rms_norm", "rotary", "metric", "to_fp8"),
    *("from_fp8", "fp8_gemm", "experts", "fp8_experts", "block_adjustment"),
)


@pytest.fixture(params=CARDS)
def hpu(request):
    with open_card(request.param) as device:
        yield device


@pytest.fixture(params=[True, False], ids=["kernels", "no kernels"])
def fused(request, hpu):
    """A card with the bridge's kernels, and one whose bridge has none of them."""
    if not request.param:
        hpu.bridge = attrs.evolve(hpu.bridge, **dict.fromkeys(KERNELS))
    return hpu


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_same(got, wanted, dtype):
    got = got.cpu()
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_agree_with_the_definition(fused, dtype, first):
    """Three experts of five, of which other cards have the rest; no token chooses one of them twice."""
    up = [normal(2 * 24, 32, dtype=dtype, seed=number) / 5 for number in range(3)]
    down = [normal(32, 24, dtype=dtype, seed=9 + number) / 5 for number in range(3)]
    x, weights = normal(6, 32, dtype=dtype), normal(6, 2, dtype=dtype, seed=1).abs()
    chosen = torch.tensor([[0, 4], [3, 1], [2, 3], [4, 3], [1, 2], [4, 0]])

    def run(device, place):
        held = Experts(
            up=[DenseWeight(weight.to(place)) for weight in up],
            down=[DenseWeight(weight.to(place)) for weight in down],
            first=first,
            kind="silu",
        )
        return device.experts(x.to(place), weights.to(place), chosen.to(place), held)

    wanted = run(Device(1), "cpu")
    assert_same(run(fused, "hpu"), wanted, dtype)


@pytest.mark.parametrize("fixed", [None, 0.05])
def test_experts_in_fp8_agree_with_the_definition(fused, fixed):
    """Up to roundings to bfloat16 and to fp8 in between; inputs are rounded by rows in any case."""
    scale = None if fixed is None else Scale.of(torch.tensor(fixed))

    def weight(rows, columns, seed):
        numbers = (normal(rows, columns, seed=seed) * 99).clamp(-448, 448).to(torch.float8_e4m3fn)
        return Fp8Weight(numbers, normal(rows, seed=seed + 1).abs() / 500, scale)

    up, down = [weight(48, 32, seed) for seed in (0, 10)], [weight(32, 24, seed) for seed in (20, 30)]
    x, weights = normal(6, 32), normal(6, 2, seed=1).abs()
    chosen = torch.tensor([[0, 1], [3, 1], [1, 2], [2, 3], [1, 0], [3, 0]])

    def run(device, place):
        held = Experts(
            up=[device.prepare_linear(one) for one in up],
            down=[device.prepare_linear(one) for one in down],
            kind="silu",
        )
        return device.experts(x.to(place), weights.to(place), chosen.to(place), held).cpu()

    got, wanted = run(fused, "hpu"), run(Device(1), "cpu")
    assert (got[3] == 0).all()
    error = (got - wanted).norm() / wanted.norm()
    assert error < 0.06
    assert error > 0.001 or not fused.bridge.fp8_experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_layers_agree_with_the_definition(fused, dtype):
    plain = Device(1)
    x, weight = normal(5, 64, dtype=dtype) * 3, normal(64, dtype=dtype, seed=1)
    assert_same(fused.rms_norm(x.to("hpu"), weight.to("hpu"), 1e-5), plain.rms_norm(x, weight, 1e-5), dtype)
    assert_same(fused.silu_mul(x.to("hpu")), plain.silu_mul(x), dtype)
    heads = normal(5, 6, 32, dtype=dtype)
    for size in (32, 16):
        angles = normal(5, size // 2, seed=2) * 9
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        wanted = plain.rotary(heads, *plain.rotation(cos, sin))
        rotation = fused.rotation(cos.to("hpu"), sin.to("hpu"))
        assert_same(fused.rotary(heads.to("hpu"), *rotation), wanted, dtype)


def test_operations_of_the_sampler_agree_with_the_definition(hpu):
    plain = Device(1)
    x = torch.tensor([[0.0, 2.0, 2.0, 1.0], [-torch.inf, -1.0, -5.0, -1.0], [torch.nan, 1.0, 2.0, 3.0]])
    assert hpu.argmax(x[:2].to("hpu")).cpu().tolist() == [1, 1]
    assert 0 <= hpu.argmax(x[2:].to("hpu")).item() < 4
    values = normal(4, 1000).exp()
    torch.testing.assert_close(hpu.total(values.to("hpu")).cpu(), plain.total(values))
    ascending = torch.arange(0, 3000, 3, dtype=torch.int32).expand(4, -1).contiguous()
    target = torch.tensor([[-1], [0], [1499], [2996]], dtype=torch.int32)
    assert hpu.first_beyond(ascending.to("hpu"), target.to("hpu")).cpu().tolist() == [0, 1, 500, 999]
    logprobs = torch.tensor([[random.Random(i).choice([0.5, 1.0, -2.0]) for i in range(50)]])
    wanted = plain.most_likely(logprobs, 9)
    for mine, theirs in zip(hpu.most_likely(logprobs.to("hpu"), 9), wanted, strict=True):
        assert mine.cpu().tolist() == theirs.tolist()


class Rows:
    """Rows with given numbers of cached tokens and the same number of new ones, in scattered blocks."""

    def __init__(self, starts, tokens, heads, dtype, padding=1, spec=SPEC, contiguous=False):
        self.starts, self.tokens, self.dtype, self.padding = starts, tokens, dtype, padding
        self.spec, self.contiguous = spec, contiguous
        self.heads, self.kv_heads, self.head_dim = heads
        self.count = len(starts) + padding
        free = iter(random.Random(0).sample(range(1, 60), 59))
        self.tables = [[next(free) for _ in range(-(-(start + tokens) // BLOCK))] for start in starts]

    def run(self, device, flat, cache_dtype=None):
        """Attend with the new tokens of all rows, [rows, tokens, heads, head_dim]."""
        place = device.torch_device
        device.dtype(str(self.dtype).removeprefix("torch."))
        cache = device.allocate_cache(2, 60 * BLOCK, self.kv_heads, self.head_dim, cache_dtype or self.dtype)
        for row, start in enumerate(self.starts):  # left by earlier steps
            if start:
                self.store(device, cache, row, range(start), flat)
        key, value = (
            normal(self.total, self.kv_heads, self.head_dim, dtype=self.dtype, seed=s) for s in (2, 3)
        )
        query = normal(self.total, self.heads, self.head_dim, dtype=self.dtype, seed=1).to(place)
        batch = self.batch(device, cache, flat)
        device.store_kv(cache.layers[1], key.to(place), value.to(place), batch)
        out = device.attention(cache.layers[1], query, key.to(place), value.to(place), batch, self.spec).cpu()
        assert out.isfinite().all()
        return out.view(self.count, self.tokens, self.heads, -1)[: len(self.starts)]

    @property
    def total(self):
        return self.count * self.tokens

    def slot(self, row, position):
        return self.tables[row][position // BLOCK] * BLOCK + position % BLOCK

    def batch(self, device, cache, flat):
        starts = [*self.starts, *[0] * self.padding]
        slots = [
            self.slot(row, start + i) if row < len(self.starts) else i
            for row, start in enumerate(starts)
            for i in range(self.tokens)
        ]
        listed = 0 if self.tokens == 1 else -(-max(starts) // BLOCK)
        blocks = listed if flat else max(map(len, self.tables))
        tables = np.zeros((self.count, blocks), np.int32)
        for row, table in enumerate(self.tables):
            tables[row, : len(table[:blocks])] = table[:blocks]
        positions = [start + i for start in starts for i in range(self.tokens)]
        return self.made(
            device,
            cache,
            positions,
            slots,
            tables,
            self.flat(device) if flat and self.tokens == 1 else None,
            starts,
            [self.tokens] * self.count,
        )

    def flat(self, device):
        if self.contiguous:
            owned = {
                block: (row, min(BLOCK, start + 1 - i * BLOCK))
                for row, (table, start) in enumerate(zip(self.tables, self.starts, strict=True))
                for i, block in enumerate(table)
            }
            every = [owned.get(block, (self.count, 1)) for block in range(1 + max(owned))]
            return FlatBlocks(None, *(ints(column, device) for column in zip(*every, strict=True)))
        every = []
        for row, (table, start) in enumerate(zip(self.tables, self.starts, strict=True)):
            every += [(block, row, min(BLOCK, start + 1 - i * BLOCK)) for i, block in enumerate(table)]
        every += [(0, self.count, 1)] * 3
        return FlatBlocks(*(ints(column, device) for column in zip(*every, strict=True)))

    def made(self, device, cache, positions, slots, tables, flat, starts, lengths):
        positions = ints(positions, device)
        batch = Batch(
            tokens=positions,
            positions=positions,
            contexts=positions,
            starts=ints(starts, device),
            lengths=ints(lengths, device),
            last=positions[:0],
            cache=cache,
            groups=[
                GroupBatch(ints(slots, device), torch.from_numpy(tables).to(device.torch_device), flat=flat)
            ],
        )
        for layer in (0, 1):
            device.use(layer, self.spec)
        batch.plan = device.plan(batch, BLOCK)
        return batch

    def store(self, device, cache, row, positions, flat):
        slots = [self.slot(row, p) for p in positions]
        key, value = (
            normal(len(slots), self.kv_heads, self.head_dim, dtype=self.dtype, seed=100 + 2 * row + i)
            for i in (0, 1)
        )
        tables = np.zeros((1, 0 if flat else 1), np.int32)
        batch = self.made(device, cache, slots, slots, tables, None, [0], [len(slots)])
        device.store_kv(cache.layers[1], key.to(device.torch_device), value.to(device.torch_device), batch)


def ints(values, device):
    return torch.tensor(list(values), dtype=torch.int32).to(device.torch_device)


STEPS = [
    ((0, 15, 16, 100), 1),  # decode
    ((77,), 1),
    ((0, 0, 0), 20),  # prompts from their beginning
    ((0, 33, 48), 9),  # with something in the cache
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("starts", "tokens"), STEPS, ids=str)
@pytest.mark.parametrize("heads", [(4, 4, 16), (6, 2, 32), (8, 1, 20)], ids=str)
@pytest.mark.parametrize("spec", [SPEC, NARROW], ids=["wide", "narrow"])
def test_attention_agrees_with_the_definition(fused, dtype, starts, tokens, heads, spec):
    rows = Rows(starts, tokens, heads, dtype, spec=spec)
    assert_same(rows.run(fused, flat=True), rows.run(Device(1), flat=False), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_cache_in_one_piece_is_read_where_it_is(fused, dtype):
    """As when its blocks are gathered, up to the order of sums."""
    model, cache = (torch.bfloat16, dtype) if dtype.itemsize == 1 else (dtype, None)
    listed, whole = (
        Rows((0, 15, 16, 100), 1, (6, 2, 32), model, contiguous=contiguous).run(fused, True, cache)
        for contiguous in (False, True)
    )
    assert_same(whole, listed, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("contiguous", [False, True], ids=["listed", "contiguous"])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_blocks_can_be_read_in_parts(fused, monkeypatch, dtype, contiguous, most):
    """A row's blocks may be in several parts, or none in some."""
    monkeypatch.setattr("tgi.device.static.GATHERED", most)
    rows = Rows((0, 15, 16, 100), 1, (6, 2, 32), dtype, contiguous=contiguous)
    assert_same(rows.run(fused, flat=True), rows.run(Device(1), flat=False), dtype)


@pytest.mark.parametrize(("starts", "tokens"), STEPS, ids=str)
def test_a_cache_in_fp8_holds_what_the_card_can_and_no_more(hpu, starts, tokens):
    """Against attention over keys and values that were rounded by torch, within what the card has."""
    limit = {240.0: "gaudi2", 448.0: "gaudi3"}
    assert limit[hpu.bridge.fp8_limit] == hpu.card.profile.generation.name
    heads = (6, 2, 32)
    rows = Rows(starts, tokens, heads, torch.float32)

    class Rounding(Device):
        def store_kv(self, layer, key, value, batch):
            super().store_kv(layer, *(x.to(torch.float8_e4m3fn).float() for x in (key, value)), batch)

    got = rows.run(hpu, flat=True, cache_dtype=hpu.cache_dtype("fp8_e4m3fn", torch.float32))
    wanted = rows.run(Rounding(1), flat=False)
    if tokens == 1:  # the card rounds queries and weights too, and has the new token from its cache
        torch.testing.assert_close(got, wanted, atol=0.2, rtol=0.2)
    else:
        assert_same(got, wanted, torch.float32)


def test_fp8_is_limited_by_the_generation(fused):
    hpu = fused
    x = torch.tensor([[[1e9, -300.0, 3.0]]])
    rows = Rows((0,), 1, (1, 1, 3), torch.float32, padding=0)
    cache = hpu.allocate_cache(2, 60 * BLOCK, 1, 3, torch.float8_e4m3fn)
    batch = rows.batch(hpu, cache, True)
    hpu.store_kv(cache.layers[0], x.to("hpu"), x.to("hpu"), batch)
    kept = hpu.widen(cache.layers[0].keys.index_select(0, batch.groups[0].slots), None).cpu()
    limit = hpu.bridge.fp8_limit
    assert kept.tolist() == [[[limit, -min(limit, 288.0), 3.0]]]


def test_keys_and_values_have_the_scales_of_the_checkpoint(fused):
    """Of two generations with the same scales, each has the best that it can keep: within a 16th."""
    x = normal(1, 3, 8) * 0.01
    fused.dtype("float32")
    rows = Rows((0,), 1, (3, 3, 8), torch.float32, padding=0)
    cache = fused.allocate_cache(2, 60 * BLOCK, 3, 8, torch.float8_e4m3fn)
    fused.scale_cache(cache.layers[1], torch.tensor([2.0**-13]), torch.tensor(2.0**-12))
    batch = rows.batch(fused, cache, True)
    for layer in cache.layers:
        fused.store_kv(layer, x.to("hpu"), x.to("hpu"), batch)
    blocks = batch.plan[0].blocks[:1]
    place = int(batch.groups[0].slots[0]) % BLOCK
    for layer, scaled in ((0, False), (1, True)):
        kv = cache.layers[layer]
        read = zip(fused.read_blocks(kv, blocks, BLOCK), (kv.key_scale, kv.value_scale), strict=True)
        for stored, scale in read:
            kept = fused.widen(stored, scale).cpu()[0, place]
            assert ((kept - x[0]).abs() <= x[0].abs() / 16 + 2.0**-22).all() == scaled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_linear_layers_in_fp8_agree_with_float64(fused, dtype):
    """Against float64, with input that needs no rounding, and nothing so near 0 that half of it does."""
    numbers, x = ((normal(size, 32, seed=size) * 99).clamp(-448, 448) for size in (24, 5))
    numbers, x = (values.masked_fill(values.abs() < 1, 1).to(torch.float8_e4m3fn) for values in (numbers, x))
    assert numbers.float().abs().max() > 240
    scales, scale = normal(24, seed=1).abs() * 0.01, torch.tensor(2.0**-5)
    weight = Fp8Weight(numbers, scales, Scale.of(scale))
    bias, residual = normal(24, seed=3, dtype=dtype), normal(5, 24, seed=4, dtype=dtype)
    exact = (x.double() * scale) @ (numbers.double() * scales[:, None]).t() + bias
    wanted = residual + exact.to(dtype)
    given = [(x.float() * scale).to(dtype), bias, residual]

    got = fused.multiply(
        given[0].to("hpu"), fused.prepare_linear(weight), *(one.to("hpu") for one in given[1:])
    )
    assert_same(got, wanted, dtype)
    assert_same(Device(1).multiply(given[0], weight, *given[1:]), wanted, dtype)


def test_rows_of_input_in_fp8_are_rounded_by_their_own_greatest_number(fused):
    """By hand: the greatest number of each row is stored as the limit, and a row of zeros as zeros."""
    x = normal(6, 32) * torch.tensor([1e-6, 1e-2, 1, 30, 1e4, 0])[:, None]
    weight = Fp8Weight(torch.eye(32).to(torch.float8_e4m3fn), torch.full((32,), 3.0), None)
    step = x.abs().amax(-1, keepdim=True) / fused.fp8_limit
    wanted = (x / step.clamp_min(1e-30)).to(torch.float8_e4m3fn).float() * step * 3
    got = fused.multiply(x.to("hpu"), fused.prepare_linear(weight))
    assert_same(got, wanted, torch.float32)


def test_input_of_a_linear_layer_is_limited_by_the_generation(fused):
    """A checkpoint's scale leaves room to 448 times itself, on a card with less too."""
    weight = fused.prepare_linear(
        Fp8Weight(torch.eye(3).to(torch.float8_e4m3fn), torch.ones(3), Scale.of(torch.tensor(0.5)))
    )
    x = torch.tensor([[224.0, -1e6, 1.0]])
    most = 2 * 0.5 * 240 if fused.fp8_limit == 240 else 0.5 * 448
    assert fused.multiply(x.to("hpu"), weight).cpu().tolist() == [[224.0, -most, 1.0]]


def test_dtypes_without_kernels_are_refused(hpu):
    assert hpu.dtype("auto") is torch.bfloat16
    assert hpu.dtype("float32") is torch.float32
    with pytest.raises(ConfigError, match="float16"):
        hpu.dtype("float16")
    assert hpu.cache_dtype("", torch.bfloat16) is torch.bfloat16
    with pytest.raises(ConfigError, match="'fp8_e5m2' is not supported"):
        hpu.cache_dtype("fp8_e5m2", torch.bfloat16)


def test_without_the_bridge_the_error_is_one_line():
    with pytest.raises(
        ConfigError, match="Intel Gaudi cannot be used here: No module named 'habana_frameworks'"
    ):
        HpuDevice(1, {})


def test_memory_and_counters_are_the_cards(hpu):
    before = hpu.used_bytes()
    kept = torch.zeros(1 << 20, dtype=torch.float32, device="hpu")
    assert hpu.used_bytes() - before == kept.nbytes
    assert hpu.total_bytes() == hpu.card.profile.memory_bytes
    assert hpu.free_bytes() == hpu.total_bytes() - hpu.used_bytes()


def test_the_mode_is_settled_before_the_bridge_is_imported(hpu):
    lazy = hpu.bridge.lazy
    environ = {"PT_HPU_LAZY_MODE": str(int(not lazy))}
    with pytest.raises(ConfigError, match="imported before"):
        open_bridge(environ)
    environ = {} if not lazy else {"PT_HPU_LAZY_MODE": "1"}
    assert open_bridge(environ).lazy == lazy
    assert environ["PT_HPU_LAZY_MODE"] == str(int(lazy))
    assert environ.get("PT_HPU_ENABLE_LAZY_COLLECTIVES") == ("true" if lazy else None)


def decode_seconds(card, spec, dtype=torch.bfloat16, cache_dtype=None, contiguous=False, **bridge):
    """Seconds of attention on a card's clock: 8 rows of 256 tokens, with sizes of a Llama of 8 billion."""
    size, count, blocks = 128, 8, 2
    with open_card(card) as device:
        device.bridge = attrs.evolve(device.bridge, **bridge)
        device.dtype("bfloat16")
        cache = device.allocate_cache(1, (count * blocks + 1) * size, 8, 128, cache_dtype or dtype)
        device.use(0, spec)
        flat = [
            (1 + row * blocks + i, row, (blocks - i) * size) for row in range(count) for i in range(blocks)
        ]
        tables = torch.zeros(count, 0, dtype=torch.int32).to("hpu")
        columns = (ints(column, device) for column in zip(*flat, strict=True))
        same = ints(range(count), device)
        listed = FlatBlocks(*columns)
        if contiguous:
            listed.ids = None
        group = GroupBatch(same, tables, flat=listed)
        batch = Batch(same, same, same, same, same, same, cache, [group])
        batch.plan = device.plan(batch, size)

        def attend(query):
            return device.attend_decode(cache.layers[0], query, batch.plan[0], spec)

        graph = device.graphs.graph(Attending(attend))
        query = torch.zeros(count, 32, 128, dtype=dtype).to("hpu")
        graph(query)
        before = device.card.clock.causes["compute"]
        graph(query)
        return device.card.clock.causes["compute"] - before


@pytest.mark.parametrize("card", ["gaudi2-lazy", "gaudi3-compile"])
def test_what_makes_attention_faster_does_so_on_the_clock(card):
    """Each of: scores of 16 bits, a cache that is multiplied as it is stored or where it is, and the fused
    adjustment."""
    wide, narrow = (decode_seconds(card, spec) for spec in (SPEC, NARROW))
    small = decode_seconds(card, NARROW, cache_dtype=torch.float8_e4m3fn)
    widened = decode_seconds(card, NARROW, cache_dtype=torch.float8_e4m3fn, fp8_gemm=None)
    unfused = decode_seconds(card, NARROW, block_adjustment=None)
    in_place = decode_seconds(card, NARROW, contiguous=True)
    assert in_place < 0.8 * narrow
    assert narrow < wide
    assert small < 0.6 * narrow
    assert small < 0.6 * widened
    assert (narrow < unfused) == card.startswith("gaudi3")


def never(*_):
    raise AssertionError("called")


@pytest.mark.parametrize("scales", [None, (0.02, 0.05)], ids=["no scales", "scales"])
@pytest.mark.parametrize("spec", [SPEC, NARROW], ids=["wide", "narrow"])
def test_a_cache_in_fp8_is_multiplied_as_it_is_stored(hpu, spec, scales):
    """By attention over numbers that were rounded as it says: queries by their greatest, weights by 128."""
    hpu.bridge = attrs.evolve(hpu.bridge, from_fp8=never)
    starts, heads = (0, 15, 16, 100), (6, 2, 32)

    def rounded(x, scale):
        limit = hpu.fp8_limit
        return (x / scale).clamp(-limit, limit).to(torch.float8_e4m3fn).double() * scale

    class Scaled(Rows):
        def run(self, device, flat, cache_dtype=None):
            allocate = device.allocate_cache

            def scaled(*args):
                cache = allocate(*args)
                for layer in cache.layers if scales else []:
                    device.scale_cache(layer, *map(torch.tensor, scales))
                return cache

            device.allocate_cache = scaled
            return super().run(device, flat, cache_dtype)

    rows = Scaled(starts, 1, heads, torch.bfloat16, spec=spec)
    got = rows.run(hpu, flat=True, cache_dtype=torch.float8_e4m3fn)
    kept = [scale * 2 if scales and hpu.fp8_limit < 448 else scale for scale in scales or (1.0, 1.0)]
    query = normal(rows.total, 6, 32, dtype=torch.bfloat16, seed=1).double()
    query = rounded(query, query.abs().amax(-1, keepdim=True) / hpu.fp8_limit)
    new = [normal(rows.total, 2, 32, dtype=torch.bfloat16, seed=seed).double() for seed in (2, 3)]
    for row, start in enumerate(starts):
        known = []
        for which, scale in enumerate(kept):
            old = normal(start, 2, 32, dtype=torch.bfloat16, seed=100 + 2 * row + which).double()
            known.append(rounded(torch.cat((old, new[which][row : row + 1])), scale))
        for head in range(6):
            scores = known[0][:, head // 3] @ query[row, head] * 0.2
            weights = rounded((scores - scores.max()).exp(), 1 / 128)
            wanted = weights @ known[1][:, head // 3] / (scores - scores.max()).exp().sum()
            torch.testing.assert_close(got[row, 0, head].double(), wanted, atol=0.06, rtol=0.06)


def test_texts_do_not_depend_on_the_layout_of_the_cache(hpu, tmp_path):
    """Sequences have blocks here and there."""
    make_llama(tmp_path, vocab_size=64, max_position_embeddings=512)
    texts = []
    for contiguous in (False, True):
        command = load_command(tmp_path, device="hpu-sim", contiguous=contiguous)
        driver = Driver(Runner.load(command, Shard(), hpu), random.Random(1).sample(range(1, 40), 39))
        for lane, length in enumerate((3, 40, 17)):
            driver.start(lane)
            driver.prefill({lane: [lane + i % 5 for i in range(length)]})
        texts.append([driver.decode([0, 1, 2], pad=(1, 0, 2)) for _ in range(20)])
    assert [[answer.token for answer in step.values()] for step in texts[0]] == [
        [answer.token for answer in step.values()] for step in texts[1]
    ]


def test_parts_of_the_blocks_share_their_memory(monkeypatch):
    """Some 50 blocks in parts of 6: by the card's own count of what a graph has at once."""
    used, outs = [], []
    for most in (64, 6):
        with open_card("gaudi2-lazy") as device:
            rows = Rows((250, 250, 250), 1, (4, 4, 64), torch.float32)
            batch = rows.batch(device, device.allocate_cache(2, 80 * BLOCK, 4, 64, torch.float32), True)
            monkeypatch.setattr("tgi.device.static.GATHERED", most)

            def attend(query, device=device, batch=batch):
                return device.attend_decode(batch.cache.layers[1], query, batch.plan[0], SPEC)

            graph = device.graphs.graph(Attending(attend))
            outs.append(graph(normal(4, 4, 64).to("hpu")).cpu())
            used.append(device.card.memory.workspace)
    assert used[1] < used[0] / 4
    assert_same(outs[1], outs[0], torch.float32)


def test_programs_keep_no_tensors_that_they_make(tmp_path):
    """In lazy mode those that are made without a value are inputs of the graph, as by `zeros_like`."""
    make_llama(tmp_path, vocab_size=64, max_position_embeddings=512)
    with open_card("gaudi2-lazy") as device:
        runner = Runner.load(load_command(tmp_path, device="hpu-sim"), Shard(), device)
        driver = Driver(runner, list(range(1, 40)))
        driver.start(0)
        for _ in range(2):  # the second has a context
            driver.prefill({0: [1] * 20})
        driver.decode([0])
        held = Experts(
            up=[DenseWeight(normal(24, 32).to("hpu"))],
            down=[DenseWeight(normal(32, 12).to("hpu"))],
            kind="gelu_new",  # which no kernel has
        )
        graph = device.graphs.graph(Attending(lambda x, *chosen: device.experts(x, *chosen, held)))
        graph(normal(6, 32).to("hpu"), normal(6, 2).to("hpu"), torch.zeros(6, 2, dtype=torch.int32).to("hpu"))
        assert device.card.ledger.counters["graphs"] > 5
        assert device.card.ledger.counters["kept_bytes"] == 0


class Attending(Program):
    def __init__(self, function):
        super().__init__()
        self.forward = function
