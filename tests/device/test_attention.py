"""Windows, slopes and capped scores on every device, against scores computed one by one from whole rows."""

import random
from contextlib import contextmanager

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tgi_simulated_gaudi.device import CARDS, open_card

from tgi.device.attention import AttentionSpec
from tgi.device.base import Device
from tgi.device.batch import Batch, FlatBlocks, GroupBatch, KVCache
from tgi.device.cpu.cpu_device import CpuDevice

BLOCK = 16
HEADS, KV_HEADS, HEAD_DIM = 6, 2, 20
SLOPES = torch.tensor([0.5, 0.25, 1.0, 0.03, 0.01, 0.7])
SINKS = SLOPES.flip(0) * 8 - 1
FOREIGN = 30.0
"""Number in the cache at places that a row may not read."""
DEVICES = ["cpu", *CARDS, "no kernels", "plain"]


@contextmanager
def opened(name):
    if name in ("cpu", "plain"):
        yield (CpuDevice if name == "cpu" else Device)(1)
        return
    with open_card(CARDS[0] if name == "no kernels" else name) as device:
        if name == "no kernels":
            device.bridge = attrs.evolve(device.bridge, attention=None)
        yield device


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@attrs.frozen
class Row:
    """A row of a step: its tokens before the step, its new ones, and all its blocks."""

    number: int
    start: int
    length: int
    table: list[int]

    @property
    def end(self):
        return self.start + self.length

    def known(self, layer, group, dtype):
        """Keys and values of all its tokens, [2, end, kv_heads, head_dim]."""
        shape = 2, self.end, group.kv_heads, group.head_dim
        return normal(*shape, seed=1000 * layer + self.number).to(dtype)

    def asked(self, layer, group, dtype):
        """Queries of its new tokens."""
        shape = self.length, HEADS, group.head_dim
        return (normal(*shape, seed=500 + 1000 * layer + self.number) * 2).to(dtype)

    def first(self, seen):
        """Index of the first of its blocks that a layer sees, if no layer sees more than `seen` tokens."""
        return 0 if seen is None else max(0, self.start + 1 - seen) // BLOCK

    def slots(self, positions):
        return [self.table[p // BLOCK] * BLOCK + p % BLOCK for p in positions]


def make_rows(sizes, seed=0):
    free = iter(random.Random(seed).sample(range(1, 100), 99))
    return [Row(i, s, n, [next(free) for _ in range(-(-(s + n) // BLOCK))]) for i, (s, n) in enumerate(sizes)]


@attrs.frozen
class Group:
    """A group of layers: its rows with their blocks in it, and the specs by layer."""

    rows: list[Row]
    specs: dict[int, AttentionSpec]
    seen: int | None
    kv_heads: int = KV_HEADS
    head_dim: int = HEAD_DIM


def expected(row, layer, group, spec, dtype):
    """[length, heads, head_dim] in float64, head by head and token by token."""
    keys, values = row.known(layer, group, dtype).double().numpy()
    queries = row.asked(layer, group, dtype).double().numpy()
    out = np.zeros(queries.shape)
    for place, head in np.ndindex(row.length, HEADS):
        position, read = row.start + place, head * group.kv_heads // HEADS
        first = 0 if spec.window is None else max(0, position - spec.window + 1)
        if spec.chunked:
            first = position // spec.window * spec.window
        scores = keys[first : position + 1, read] @ queries[place, head] * spec.scale
        if spec.softcap is not None:
            scores = spec.softcap * np.tanh(scores / spec.softcap)
        if spec.slopes is not None:
            scores += spec.slopes[head].item() * (np.arange(first, position + 1) - position)
        weights = np.exp(scores - scores.max())
        nothing = 0.0 if spec.sinks is None else np.exp(spec.sinks[head].item() - scores.max())
        out[place, head] = weights / (weights.sum() + nothing) @ values[first : position + 1, read]
    return torch.from_numpy(out)


def check(device, rows, specs, seen=None, dtype=torch.float32):
    """Compare layers of these specs, one after another, of which none sees more than `seen` tokens."""
    check_groups(device, [Group(rows, dict(enumerate(specs)), seen)], dtype)


def check_groups(device, groups, dtype=torch.float32):
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for layer, (group, spec, out) in attend(device, groups, dtype).items():
        wanted = torch.cat([expected(row, layer, group, spec, dtype) for row in group.rows])
        torch.testing.assert_close(out.double(), wanted, atol=tolerance, rtol=tolerance)


def attend(device, groups, dtype=torch.float32):
    """Return group, spec and output [tokens of all rows, heads, head_dim] of each layer."""
    place = device.torch_device
    device.dtype(str(dtype).removeprefix("torch."))
    specs = {
        layer: attrs.evolve(
            s, **{name: x.to(place) for name in ("slopes", "sinks") if (x := getattr(s, name)) is not None}
        )
        for group in groups
        for layer, s in group.specs.items()
    }
    for layer, spec in specs.items():
        device.use(layer, spec)
    caches = [
        device.allocate_cache(len(group.specs), 100 * BLOCK, group.kv_heads, group.head_dim, dtype)
        for group in groups
    ]
    cache = KVCache.joined(caches, [list(group.specs) for group in groups])
    for tensor in (tensor for layer in cache.layers for tensor in layer.tensors):
        tensor.fill_(FOREIGN)
    for group in groups:
        for row in group.rows:  # left by earlier steps
            if old := range(row.first(group.seen) * BLOCK, row.start):
                history = Columns.of_history(device, row, old)
                before = make_batch(device, cache, [history] * len(groups))
                for layer in group.specs:
                    known = row.known(layer, group, dtype)[:, old.start : old.stop]
                    device.store_kv(cache.layers[layer], *known.to(place), before)
    steps = [Columns.of(device, group.rows, group.seen) for group in groups]
    batch = make_batch(device, cache, steps)
    outputs = {}
    for layer, spec in sorted(specs.items()):
        number = cache.layers[layer].group
        group, step = groups[number], steps[number]
        query = step.spread([row.asked(layer, group, dtype) for row in group.rows], place)
        new = [row.known(layer, group, dtype)[:, row.start :] for row in group.rows]
        key, value = (step.spread([both[i] for both in new], place) for i in (0, 1))
        device.store_kv(cache.layers[layer], key, value, batch)
        out = device.attention(cache.layers[layer], query, key, value, batch, spec).cpu()
        assert out.isfinite().all()
        outputs[layer] = group, spec, out[step.places]
    return outputs


@attrs.frozen
class Columns:
    """A step as a kind of device takes it; `places` are the indices of the real tokens."""

    places: list[int]
    total: int
    positions: list[int]
    slots: list[int]
    tables: np.ndarray
    bases: list[int] | None
    starts: list[int]
    lengths: list[int]
    flat: list[tuple[int, int, int]] | None

    @classmethod
    def of(cls, device, rows, seen):
        decode, width = all(row.length == 1 for row in rows), max(row.length for row in rows)
        count = len(rows) + (device.compiles)  # a row of padding
        total, starts = count * width, [i * width for i in range(count)]
        if not device.compiles:
            starts, total = [0, *np.cumsum([row.length for row in rows])][:-1], sum(r.length for r in rows)
        places = [start + i for start, row in zip(starts, rows, strict=False) for i in range(row.length)]
        flat = [
            (block, i, row.end - number * BLOCK)
            for i, row in enumerate(rows)
            for number, block in enumerate(row.table)
            if number >= row.first(seen)
        ]
        firsts = [row.first(seen) for row in rows]
        ends = [row.start if device.compiles else row.end for row in rows]
        parts = [row.table[f : -(-end // BLOCK)] for row, f, end in zip(rows, firsts, ends, strict=True)]
        tables = np.zeros((count, max(map(len, parts))), np.int32)
        for table, part in zip(tables, parts, strict=False):
            table[: len(part)] = part
        return cls(
            places,
            total,
            [p for row in rows for p in range(row.start, row.end)],
            [slot for row in rows for slot in row.slots(range(row.start, row.end))],
            tables,
            None if seen is None else [*(first * BLOCK for first in firsts), 0][:count],
            [*(row.start for row in rows), 0][:count],
            [*(row.length for row in rows), 1][:count],
            [*flat, *[(0, count, 1)] * 3] if decode and device.flat else None,
        )

    @classmethod
    def of_history(cls, device, row, positions):
        places, slots = list(range(len(positions))), row.slots(positions)
        count = int(device.compiles)
        starts, lengths, tables = [0] * count, [len(positions)] * count, np.zeros((count, 0), np.int32)
        return cls(places, len(places), places, slots, tables, None, starts, lengths, None)

    def spread(self, parts, place):
        """Return [total, ...] with the real tokens' values at their places."""
        values = torch.cat(parts)
        column = values.new_zeros(self.total, *values.shape[1:])
        column[self.places] = values
        return column.to(place)


def make_batch(device, cache, steps):
    """Return the batch of a step, from its columns in each group of layers."""
    step = steps[0]

    def ints(values):
        return None if values is None else torch.tensor(values, dtype=torch.int32).to(device.torch_device)

    positions = step.spread([ints(step.positions).cpu()], device.torch_device)
    batch = Batch(
        tokens=positions,
        positions=positions,
        contexts=positions,
        starts=ints(step.starts),
        lengths=ints(step.lengths),
        last=positions[:0],
        cache=cache,
        groups=[
            GroupBatch(
                slots=step.spread([ints(step.slots).cpu()], device.torch_device),
                tables=ints(step.tables),
                bases=ints(step.bases),
                flat=step.flat and FlatBlocks(*(ints(column) for column in zip(*step.flat, strict=True))),
            )
            for step in steps
        ],
    )
    batch.plan = device.plan(batch, BLOCK)
    return batch


SPECS = {
    "window": (AttentionSpec(0.2, window=21), 21),
    "window of a token": (AttentionSpec(0.2, window=1), 1),
    "window of a block": (AttentionSpec(0.2, window=BLOCK), BLOCK),
    "wide window": (AttentionSpec(0.2, window=64), 64),
    "chunks": (AttentionSpec(0.2, window=24, chunked=True), 24),
    "slopes": (AttentionSpec(0.2, slopes=SLOPES), None),
    "cap": (AttentionSpec(0.7, softcap=3.0), None),
    "sinks": (AttentionSpec(0.3, sinks=SINKS), None),
    "everything": (AttentionSpec(0.7, window=33, slopes=SLOPES, softcap=3.0, sinks=SINKS), 33),
}
STEPS = {
    "decode": [(0, 1), (15, 1), (16, 1), (47, 1), (48, 1), (130, 1)],
    "prompts": [(0, 22), (0, 40), (0, 1)],
    "chunks": [(16, 9), (33, 24), (0, 5), (100, 3), (5, 1)],
    "decode and chunks": [(130, 1), (47, 1), (0, 22), (15, 1), (33, 24)],
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", DEVICES)
def test_each_kind_of_layer_agrees_with_scores_one_by_one(name, step):
    with opened(name) as device:
        for spec, seen in SPECS.values():
            check(device, make_rows(STEPS[step]), [spec], seen)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", DEVICES)
def test_layers_of_several_kinds_share_a_step(name, step):
    """All blocks of a row are there, since one layer sees everything."""
    plain, capped = AttentionSpec(0.2), AttentionSpec(0.4, softcap=5.0)
    near, far = AttentionSpec(0.2, window=7), AttentionSpec(0.4, window=50, softcap=5.0)
    sloped = AttentionSpec(0.3, window=7, slopes=SLOPES)
    with opened(name) as device:
        check(device, make_rows(STEPS[step]), [near, plain, far, capped, sloped])


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", DEVICES)
def test_groups_of_layers_have_their_own_blocks(name, step):
    """Groups differ in window and in the shape of a token's keys, and their layers alternate."""
    with opened(name) as device:
        check_groups(device, alternating(STEPS[step]))


def alternating(sizes):
    near, full = AttentionSpec(0.2, window=21), AttentionSpec(0.3)
    shifted = attrs.evolve(full, slopes=SLOPES)
    return [
        Group(make_rows(sizes, seed=1), {0: near, 2: near}, 21),
        Group(make_rows(sizes, seed=2), {1: full, 4: shifted}, None, kv_heads=3, head_dim=16),
        Group(make_rows(sizes, seed=3), {3: AttentionSpec(0.2, window=50, softcap=3.0)}, 50, kv_heads=6),
    ]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", DEVICES)
def test_all_kinds_in_bfloat16(name, step):
    specs = [spec for spec, seen in SPECS.values()]
    with opened(name) as device:
        check(device, make_rows(STEPS[step]), specs, None, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_cpus_bits_of_a_row_do_not_depend_on_its_neighbours(dtype):
    """Decode rows and chunks in one step, in any order, against each row alone."""
    sizes = [(130, 1), (47, 1), (0, 22), (33, 24), (15, 1), (0, 1), (100, 3)]
    together = attend(CpuDevice(1), alternating(sizes), dtype)
    for number, (_, length) in enumerate(sizes):
        begin = sum(length for _, length in sizes[:number])
        alone = [attrs.evolve(group, rows=[group.rows[number]]) for group in alternating(sizes)]
        for layer, (_, _, out) in attend(CpuDevice(1), alone, dtype).items():
            assert torch.equal(together[layer][2][begin : begin + length], out), (number, layer)


@pytest.mark.parametrize("window", [100, 150, 299, 341])
def test_the_cpu_masks_a_long_chunk_in_pieces(window):
    spec = AttentionSpec(0.2, window=window)
    check(CpuDevice(1), make_rows([(41, 300), (0, 2)]), [spec, attrs.evolve(spec, slopes=SLOPES)], window)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_rows_agree_with_scores_one_by_one(data):
    window = data.draw(st.none() | st.integers(1, 70))
    spec = AttentionSpec(
        0.3,
        window=window,
        chunked=window is not None and data.draw(st.booleans()),
        slopes=data.draw(st.sampled_from([None, SLOPES])),
        sinks=data.draw(st.sampled_from([None, SINKS])),
        softcap=data.draw(st.sampled_from([None, 2.0])),
    )
    sizes = data.draw(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 40)), min_size=1, max_size=4))
    for device in (CpuDevice(1), Device(1)):
        check(device, make_rows(sizes), [spec], window)
