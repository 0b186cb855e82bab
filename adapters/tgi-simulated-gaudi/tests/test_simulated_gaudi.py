"""Ordinary code gives on the simulated card what it gives on the CPU, in graphs and outside of them."""

import copy
from collections import namedtuple

import attrs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from .simulated import PROFILES, graphed, hpu, numbers, same, simulated


@pytest.fixture(params=PROFILES)
def card(request):
    with simulated(request.param) as made:
        yield made


def flat_attention(q, keys, values, groups, usage):
    """Decode attention by blocks: `q` [rows, heads, d]; keys and values [blocks, size, heads, d]."""
    rows, size = q.shape[0], keys.shape[1]
    mine = (groups[:, None] == torch.arange(rows, device=q.device, dtype=groups.dtype)).to(q.dtype)
    query = (mine @ q.flatten(1)).view(len(groups), *q.shape[1:])
    hidden = torch.arange(size, device=q.device, dtype=usage.dtype) >= usage[:, None]
    scores = torch.einsum("nhd,nshd->nhs", query, keys)
    scores = scores.masked_fill(hidden[:, None], -torch.inf)
    most = scores.amax(-1)
    weights = (scores - most[..., None]).exp()
    out, total = torch.einsum("nhs,nshd->nhd", weights, values), weights.sum(-1)
    highest = torch.where(mine[:, :, None] > 0, most[:, None], -1e30).amax(0)
    scale = (most - mine @ highest).exp() * (groups < rows).to(q.dtype)[:, None]
    summed = mine.t() @ (total * scale)
    return (mine.t() @ (out * scale[..., None]).flatten(1)).view(q.shape) / summed[..., None]


PAIR = namedtuple("PAIR", "values indices")
X, IDS = numbers(4, 8), torch.tensor([3, 0, 2, 2], dtype=torch.int32)
CASES = {
    "softmax": (lambda x, _: x.softmax(-1) + x.log_softmax(-1) + torch.softmax(x, 0), 0),
    "topk": (lambda x, _: PAIR(*x.topk(3, -1)), 0),
    "sort": (
        lambda x, _: {"sorted": x.sort(-1, descending=True).values, "order": x.argsort(dim=-1, stable=True)},
        0,
    ),
    "cumsum": (lambda x, i: [x.cumsum(-1), i.cumsum(0), i.sum()], 0),
    "scatter_add_": (lambda x, i: torch.zeros_like(x).scatter_add_(0, i.long()[:, None].expand(4, 8), x), 0),
    "scatter": (lambda x, i: torch.zeros_like(x).scatter(1, i.long()[:, None], 1.0), 0),
    "one_hot": (lambda x, i: (i[:, None] == torch.arange(5, device=i.device, dtype=i.dtype)).to(x.dtype), 0),
    "index": (lambda x, i: (x[i.long()], x.index_select(0, i), x.gather(0, i.long()[:, None])), 0),
    "index_copy_": (lambda x, i: torch.ones(5, 8, device=x.device).index_copy_(0, i.long()[:3], x[:3]), 0),
    "views": (
        lambda x, _: torch.cat([x.t().reshape(4, 8), x.view(2, 2, 8).transpose(0, 1).flatten(0, 1)]),
        0,
    ),
    "parts": (lambda x, _: [p * 2 for p in (*x.split([2, 3, 3], -1), *x.unbind(0), *x.chunk(2))], 0),
    "in place": (lambda x, _: x.clone().add_(1).mul_(2).clamp_(-1, 1).masked_fill_(x > 0.5, -torch.inf), 0),
    "where": (lambda x, i: torch.where(i[:, None] > 1, x, -x) + (x > 0) * (i[:, None] & 1), 0),
    "integers": (lambda _, i: i.view(2, 2).flatten() * 2 + (i >> 1) - (1 << i), 0),
    "reductions": (lambda x, _: (x.argmax(-1), x.amax(0), x.mean(), x.std(), x.logsumexp(-1), x.prod(-1)), 0),
    "bfloat16": (lambda x, _: (x.bfloat16() @ x.bfloat16().t()).float() + x.bfloat16().sum(), 0),
    "repeat": (lambda x, _: x.repeat_interleave(2, 0) * x.repeat(2, 1) + F.pad(x, (0, 0, 2, 2)), 0),
    "norms": (lambda x, _: F.layer_norm(x, (8,)) + F.rms_norm(x, (8,)) + F.normalize(x), 1e-6),
    "attention": (lambda x, _: F.scaled_dot_product_attention(*[x[None, None]] * 3, is_causal=True), 1e-6),
    "masked attention": (
        lambda x, i: F.scaled_dot_product_attention(
            *[x[None, None]] * 3, attn_mask=(i > 0)[None, None, None]
        ),
        1e-6,
    ),
    "flat attention": (
        lambda x, i: flat_attention(
            x.view(2, 2, 8),
            *(x[i.long()][:, None, None].expand(4, 3, 2, 8) * s for s in (1.0, 2.0)),
            i & 1,
            i + 1,
        ),
        0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_operation_gives_what_it_gives_on_the_cpu(card, name):
    function, tolerance = CASES[name]
    same(function(X.to("hpu"), IDS.to("hpu")), function(X, IDS), tolerance)
    replay = graphed(card, function)
    for seed in range(4):
        x, ids = numbers(4, 8, seed=seed), IDS.roll(seed)
        same(replay(x.to("hpu"), ids.to("hpu")), function(x, ids), tolerance)
    assert card.ledger.counters["graphs"] == 1
    assert card.ledger.violations == []


def test_an_operation_gives_the_same_without_inference_mode(card):
    with torch.inference_mode(False), torch.no_grad():
        for function, tolerance in CASES.values():
            replay = graphed(card, function)
            for seed in range(2):
                x = numbers(4, 8, seed=seed)
                same(replay(x.to("hpu"), IDS.to("hpu")), function(x, IDS), tolerance)


class Model(nn.Module):
    """A decoder of one layer with a cache, all of whose inputs come in one tensor of integers."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.out = nn.Embedding(10, 8), nn.LayerNorm(8), nn.Linear(8, 10)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 8))
        self.cache = None

    def forward(self, packed):
        ids, slots = packed.view(2, -1).unbind(0)
        x = self.embed(ids)
        x = x + self.mlp(self.norm(x))
        self.cache.index_copy_(0, slots.long(), x)
        x = (x @ self.cache.t()).softmax(-1) @ self.cache
        logits = self.out(x)
        return logits, logits.argmax(-1).int()


def models():
    torch.manual_seed(0)
    with torch.inference_mode(False):
        plain = Model().eval()
        moved = copy.deepcopy(plain).to("hpu")
    plain.cache, moved.cache = torch.zeros(16, 8), torch.zeros(16, 8, device="hpu")
    return plain, moved


def wrapped(card, module):
    if card.lazy:
        return torch.hpu.wrap_in_hpu_graph(module, disable_tensor_cache=True)
    return torch.compile(module, backend="hpu_backend", dynamic=False, options={"force_static_compile": True})


def test_a_model_with_a_cache_is_replayed_and_nothing_compiles_after_warm_up(card):
    plain, moved = models()
    model = wrapped(card, moved)
    for rows in (4, 2):
        model(torch.zeros(2 * rows, dtype=torch.int32).to("hpu"))
    moved.cache.zero_()
    card.seal(step_bytes=4096)
    for step in range(12):
        rows = 2 + step % 2 * 2
        ids, slots = torch.randint(0, 10, (rows,)), (torch.randperm(16)[:rows])
        packed = torch.cat([ids, slots]).int()
        with card.step(host_reads=2, copies_out=2):
            got = model(packed.to("hpu"))
            want = plain(packed)
            same(got, want)
    torch.testing.assert_close(moved.cache.cpu(), plain.cache, rtol=0, atol=0)
    assert card.ledger.counters["cpu_fallback"] == card.ledger.counters["dynamic_shapes"] == 0


def test_a_compiled_method_has_graphs_of_its_own_for_each_object():
    with simulated("gaudi2-compile") as card:

        class Scale:
            def __init__(self, factor):
                self.factor = factor

            @torch.compile(backend="hpu_backend")
            def forward(self, x):
                return x * self.factor

        two, three = Scale(2.0), Scale(3.0)
        for _ in range(2):
            assert (two.forward(hpu(1)).tolist(), three.forward(hpu(1)).tolist()) == ([2], [3])
        assert (card.ledger.counters["graphs"], card.ledger.counters["replays"]) == (2, 2)


def test_graphs_of_several_shapes_share_the_workspace(card):
    function = graphed(card, lambda x: ((x * 2).relu() @ (x + 1).t()).softmax(-1).sum(-1))
    inputs = [numbers(rows, 8, seed=rows) for rows in (2, 64, 16, 3)]
    for x in inputs * 2:
        same(function(x.to("hpu")), ((x * 2).relu() @ (x + 1).t()).softmax(-1).sum(-1))
    # (x * 2).relu() and x + 1 of 64 rows are alive when the product comes to be
    assert 2 * 64 * 8 * 4 + 64 * 64 * 4 <= card.memory.workspace < 2 * 64 * 64 * 4 + 3 * 64 * 8 * 4


def test_a_graph_of_the_raw_interface_keeps_what_is_still_referred_to():
    with simulated("gaudi3-lazy") as card:
        x, graph = hpu(1, 2), torch.hpu.HPUGraph()
        with torch.hpu.graph(graph):
            assert torch.hpu.is_current_stream_capturing()
            y = (x + 1) * 2
            view = y[:1]
        assert not torch.hpu.is_current_stream_capturing()
        x.copy_(torch.tensor([5.0, 6.0]))
        graph.replay()
        assert (y.tolist(), view.tolist()) == ([12, 14], [12])
        assert card.ledger.counters["replays"] == 1


def test_a_large_input_is_not_copied_and_may_be_changed_as_a_whole(card):
    cache, places = torch.zeros(3 << 20, device="hpu"), hpu(1, 2, dtype=torch.int64)
    other = torch.zeros(3 << 20, device="hpu")
    function = graphed(card, lambda cache, x: cache.index_copy_(0, places, x)[:4] * 1)
    assert function(cache, hpu(5, 6)).tolist() == [0, 5, 6, 0]
    assert function(other, hpu(7, 8)).tolist() == [0, 7, 8, 0]
    assert (cache[:3].tolist(), other[:3].tolist()) == ([0, 5, 6], [0, 7, 8])


def test_large_inputs_may_be_parts_of_one_tensor(card):
    function = graphed(card, lambda keys, values: keys[::2].sum() - values.flip(0)[:1].sum())
    both, other = torch.zeros(2, 3 << 20, device="hpu"), torch.ones(3 << 20, device="hpu")
    both[1].fill_(2.0)
    assert function(both[0], both[1]).item() == -2
    assert function(other, both[0]).item() == (3 << 20) / 2
    assert function(both[1], both[1]).item() == (3 << 20) - 2


def test_compile_looks_into_objects_and_inlines_what_is_compiled_within():
    @attrs.frozen
    class Batch:
        x: torch.Tensor
        scale: float

    with simulated("gaudi2-compile") as card:
        inner = graphed(card, lambda x: x + 1)
        function = graphed(card, lambda batch: attrs.evolve(batch, x=inner(batch.x) * batch.scale))
        for value in (1, 5):
            assert function(Batch(hpu(value), 2.0)).x.tolist() == [(value + 1) * 2]
        assert card.ledger.counters["graphs"] == 1


def test_lazy_layers_that_are_alike_share_a_recipe_where_mark_step_parts_them():
    with simulated("gaudi2-lazy") as card:
        import habana_frameworks.torch.core as htcore

        weights = [numbers(8, 8, seed=i).to("hpu") for i in range(6)]

        def layers(x, parted):
            for weight in weights:
                x = (x @ weight).relu()
                if parted:
                    htcore.mark_step()
            return x

        compiled = []
        for parted in (True, False):
            before = card.recipes.number
            torch.hpu.wrap_in_hpu_graph_func(lambda x, parted=parted: layers(x, parted))(
                numbers(2, 8).to("hpu")
            )
            compiled.append(card.recipes.number - before)
        assert compiled == [1, 1]
        assert card.recipes.seconds == pytest.approx(2 * card.profile.segment_seconds + (2 + 12) * 0.01)


def test_max_graphs_and_bypass_run_without_a_graph():
    with simulated("gaudi2-lazy") as card:
        function = torch.hpu.wrap_in_hpu_graph_func(lambda x: x * 2, max_graphs=1)
        for x in (hpu(1), hpu(1, 2), hpu(1)):
            assert function(x).tolist() == [2 * value for value in x.tolist()]
        assert function(hpu(1, 2, 3), bypass_hpu_graphs=True).tolist() == [2, 4, 6]
        assert (card.ledger.counters["graphs"], card.ledger.counters["replays"]) == (1, 1)


def test_the_fused_kernels_compute_what_they_are_documented_to(card):
    from habana_frameworks.torch.hpex.kernels import FusedSDPA, RotaryPosEmbeddingMode, apply_rotary_pos_emb
    from habana_frameworks.torch.hpex.normalization import FusedRMSNorm

    q, k, v = numbers(2, 4, 5, 8), numbers(2, 2, 5, 8, seed=1), numbers(2, 2, 5, 8, seed=2)
    wide_k, wide_v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    lengths = torch.tensor([3, 5], dtype=torch.int32)
    sdpa = graphed(
        card,
        lambda q, k, v, n: FusedSDPA.apply(
            q, k, v, None, 0.0, True, None, "fast", True, valid_seq_len=n, seq_padding_type="right"
        ),
    )
    for _ in range(2):
        got = sdpa(q.to("hpu"), k.to("hpu"), v.to("hpu"), lengths.to("hpu")).cpu()
    for row, length in enumerate([3, 5]):
        part = (slice(row, row + 1), slice(None), slice(length))
        want = F.scaled_dot_product_attention(q[part], wide_k[part], wide_v[part], is_causal=True)
        torch.testing.assert_close(got[part], want, rtol=1e-5, atol=1e-6)
    left = FusedSDPA.apply(
        q.flip(2).to("hpu"), k.to("hpu"), v.to("hpu"), is_causal=True, valid_seq_len=lengths.to("hpu")
    ).cpu()
    part = (slice(1), slice(None), slice(2, 5))
    want = F.scaled_dot_product_attention(q.flip(2)[part], wide_k[part], wide_v[part], is_causal=True)
    torch.testing.assert_close(left[part], want, rtol=1e-5, atol=1e-6)
    for wrong in (
        {"attn_mask": hpu(0), "is_causal": True},
        {"valid_seq_len": hpu(1)},
        {"softmax_mode": "slow"},
    ):
        with pytest.raises(ValueError, match="FusedSDPA"):
            FusedSDPA.apply(q.to("hpu"), k.to("hpu"), v.to("hpu"), **wrong)

    gamma = numbers(8, seed=3)
    same(FusedRMSNorm.apply(X.to("hpu"), gamma.to("hpu"), 1e-6), F.rms_norm(X, (8,), gamma, 1e-6), 1e-6)
    with pytest.raises(ValueError, match="gamma"):
        FusedRMSNorm.apply(X.to("hpu"), gamma.bfloat16().to("hpu"), 1e-6)

    angles = torch.arange(5)[:, None] * 10.0 ** -torch.arange(4)
    first, second = (part.to("hpu") for part in (angles.cos(), angles.sin()))
    turned = torch.view_as_complex(q.unflatten(-1, (2, 4)).transpose(-1, -2).contiguous()) * torch.exp(
        1j * angles
    )
    want = torch.cat([turned.real, turned.imag], -1)
    cos, sin = torch.cat([first] * 2, -1), torch.cat([second] * 2, -1)
    same(apply_rotary_pos_emb(q.to("hpu"), cos, sin), want, 1e-5)
    turned = torch.view_as_complex(q.unflatten(-1, (4, 2)).contiguous()) * torch.exp(1j * angles)
    pairs = apply_rotary_pos_emb(
        q.to("hpu"),
        first.repeat_interleave(2, -1),
        second.repeat_interleave(2, -1),
        mode=RotaryPosEmbeddingMode.PAIRWISE,
    )
    same(pairs, torch.view_as_real(turned).flatten(-2), 1e-5)


def test_fp8_products_are_those_of_the_rounded_numbers(card):
    a, b = numbers(3, 16), numbers(16, 5, seed=1)
    rounded = [x.to(torch.float8_e4m3fn).float() for x in (a, b)]
    ops = torch.ops.hpu

    def product(a, b):
        left, right = (ops.cast_to_fp8_v2(x, None, False, False, torch.float8_e4m3fn)[0] for x in (a, b))
        return ops.fp8_gemm_v2(left, False, right, False, None, torch.float32), ops.cast_from_fp8(
            left, None, torch.float32
        )

    replay = graphed(card, product)
    for _ in range(2):
        got = replay(a.to("hpu"), b.to("hpu"))
        same(got[0], rounded[0] @ rounded[1], 1e-5)
        same(got[1], rounded[0])
