"""Layers and their parts against their definition in float64, and bit for bit against themselves alone.

Each test runs on every instruction set that this processor has and that is built, and on an emulation of AMX.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tgi_cpu_kernels import Kernels, Unavailable, load
from tgi_cpu_kernels.build import library, supported
from tgi_cpu_kernels.decoder import LinearLayer
from tgi_cpu_kernels.experts import Experts
from tgi_cpu_kernels.lora import LoraRows, LoraTable

from .comparing import BOTH, TOLERANCE, close, random


@BOTH
@pytest.mark.parametrize(("n", "k"), [(32, 64), (100, 33), (257, 96), (1, 1), (31, 2050)])
@pytest.mark.parametrize("added", [False, True])
def test_linear(kernels: Kernels, dtype: torch.dtype, n: int, k: int, added: bool) -> None:
    x, weight = random(40, k, dtype=dtype), random(n, k, dtype=dtype, seed=1) / math.sqrt(k)
    bias, residual = random(n, dtype=dtype, seed=2), random(40, n, dtype=dtype, seed=3)
    packed, product = kernels.pack(weight), x.double() @ weight.double().T
    if added:
        close(kernels.linear(x, packed, n, bias, residual), product + bias.double() + residual.double())
    else:
        close(kernels.linear(x, packed, n), product)


@BOTH
def test_a_row_of_a_linear_layer_does_not_depend_on_others(kernels: Kernels, dtype: torch.dtype) -> None:
    x, packed = random(150, 300, dtype=dtype), kernels.pack(random(70, 300, dtype=dtype, seed=1))
    whole = kernels.linear(x, packed, 70)
    for size in (1, 2, 3, 7, 12, 13, 64, 149):
        parts = [kernels.linear(x[begin : begin + size], packed, 70) for begin in range(0, 150, size)]
        assert torch.equal(torch.cat(parts), whole)


@BOTH
@pytest.mark.parametrize(("n", "k"), [(100, 33), (1, 1), (64, 2050)])
def test_rows_of_a_packed_weight_are_those_that_were_packed(
    kernels: Kernels, dtype: torch.dtype, n: int, k: int
) -> None:
    weight = random(n, k, dtype=dtype)
    indices = torch.tensor([*range(n), 0, n - 1, -1, n, 1 << 40])
    rows = kernels.packed_rows(kernels.pack(weight), n, k, indices)
    assert torch.equal(rows[:-3], weight[indices[:-3]])
    assert not rows[-3:].any()
    assert kernels.packed_rows(kernels.pack(weight), n, k, indices[:0].int()).shape == (0, k)


@BOTH
@pytest.mark.parametrize(("n", "k"), [(100, 33), (160, 64)])
def test_a_weight_may_be_packed_in_pieces(kernels: Kernels, dtype: torch.dtype, n: int, k: int) -> None:
    weight = random(n, k, dtype=dtype)
    packed = torch.full((kernels.packed_size(dtype, n, k),), torch.nan, dtype=dtype)
    for first in (96, 0, 32):
        kernels.pack_rows(weight[first : 96 if first == 32 else first + (32, n)[first > 0]], packed, first)
    assert torch.equal(packed, kernels.pack(weight))
    assert torch.equal(kernels.packed_rows(packed, n, k, torch.arange(n)), weight)


RANKS: list[tuple[int | None, ...]] = [(16, 16, 3), (None, 40, 1), (None, None, None)]
"""Ranks of three adapters for the three pieces of a layer."""
PIECES = (70, 33, 5)


@BOTH
@pytest.mark.parametrize("k", [33, 300])
def test_lora(kernels: Kernels, dtype: torch.dtype, k: int) -> None:
    """Many tokens of each adapter, in any order, and one token at a time."""
    table, seeds = LoraTable(kernels, len(RANKS) + 1, PIECES), iter(range(99))
    slots = torch.randint(-1, len(RANKS) + 1, (90,), generator=torch.Generator().manual_seed(1)).int()
    x, y = random(90, k, dtype=dtype), random(90, sum(PIECES), dtype=dtype, seed=100)
    wanted = y.double()
    for slot, ranks in enumerate(RANKS):
        table.put(slot, [(random(2, k, dtype=dtype), random(size, 2, dtype=dtype)) for size in PIECES])
        pairs = [
            rank and (random(rank, k, dtype=dtype, seed=next(seeds)) / math.sqrt(k),
                      random(size, rank, dtype=dtype, seed=next(seeds)))
            for rank, size in zip(ranks, PIECES, strict=True)
        ]  # fmt: skip
        table.put(slot, pairs)
        mine, columns = slots == slot, [0, PIECES[0], sum(PIECES[:2])]
        for pair, first, size in zip(pairs, columns, PIECES, strict=True):
            if pair is not None:
                narrow = (x[mine].double() @ pair[0].double().T).to(dtype).double()
                wanted[mine, first : first + size] += narrow @ pair[1].double().T
    one_by_one = y.clone()
    for token in range(90):
        table.add(x[token : token + 1], one_by_one[token : token + 1], LoraRows(slots[token : token + 1]))
    table.add(x, y, LoraRows(slots))
    close(y, wanted)
    assert torch.equal(one_by_one, y)


def test_calls_from_several_threads_at_once_give_the_same_bits(kernels: Kernels) -> None:
    x, packed = random(64, 256, dtype=torch.float32), kernels.pack(random(512, 256, dtype=torch.float32))
    whole = kernels.linear(x, packed, 512)
    with ThreadPoolExecutor(3) as threads:
        results = list(threads.map(lambda _: kernels.linear(x, packed, 512), range(300)))
    assert all(torch.equal(result, whole) for result in results)


def integers(n: int, k: int, bits: int, group: int, *, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """Return random numbers, scales and zeros."""
    generator, groups = torch.Generator().manual_seed(bits), -(-k // group)
    numbers = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, generator=generator)
    zeros = torch.randint(0, 2**bits, (n, groups), dtype=torch.uint8, generator=generator)
    scales = torch.rand(n, groups, generator=generator) / 10
    return numbers, scales, torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros


@BOTH
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("n", "k", "group"), [(32, 64, 64), (100, 33, 33), (257, 96, 32), (1, 1, 8), (31, 2050, 128)]
)
def test_quantized_linear(
    kernels: Kernels, dtype: torch.dtype, bits: int, symmetric: bool, n: int, k: int, group: int
) -> None:
    numbers, scales, zeros = integers(n, k, bits, group, symmetric=symmetric)
    x, bias, residual = (random(*shape, dtype=dtype, seed=n) for shape in ((40, k), (n,), (40, n)))
    x[3, : group - 1] = 0
    expected = bias.double() + residual.double()
    for g in range(scales.shape[1]):
        part = slice(g * group, (g + 1) * group)
        top = x[:, part].float().abs().amax(1, keepdim=True)
        factor = torch.full_like(top, 127).div(top).nan_to_num(posinf=0)
        rounded = (x[:, part].float() * factor).round().double() * (top.double() / 127)
        weight = (numbers[:, part].double() - zeros[:, g : g + 1].double()) * scales[:, g : g + 1].double()
        expected += rounded @ weight.T
    packed = kernels.pack_ints(numbers, scales, None if symmetric else zeros, bits, group)
    close(kernels.quantized_linear(x, packed, bias, residual), expected)


@BOTH
@pytest.mark.parametrize(("bits", "group", "span"), [(4, 32, 8), (8, 16, 16), (4, 32, 1)])
@pytest.mark.parametrize("lowest", [True, False])
def test_quantized_linear_with_nested_scales(
    kernels: Kernels, dtype: torch.dtype, bits: int, group: int, span: int, lowest: bool
) -> None:
    n, k, generator = 70, 512, torch.Generator().manual_seed(span)
    groups = k // group
    numbers, _, zeros = integers(n, k, bits, group, symmetric=False)
    shares = torch.randint(-128, 128, (n, groups), dtype=torch.int8, generator=generator)
    scales, minima = (torch.randn(n, groups // span, generator=generator) / 100 for _ in range(2))
    each, least = (columns.repeat_interleave(span, 1).double() for columns in (scales, minima))
    each = (each * shares).repeat_interleave(group, 1)
    least = (least * zeros).repeat_interleave(group, 1) if lowest else 2 ** (bits - 1) * each
    weight = numbers * each - least
    x = random(9, k, dtype=dtype).view(9, groups, group)
    top = x.float().abs().amax(2, keepdim=True)
    rounded = (x.float() * (127 / top)).round().double() * (top.double() / 127)
    packed = kernels.pack_ints(
        numbers, scales, zeros if lowest else None, bits, group, shares, minima if lowest else None
    )
    close(kernels.quantized_linear(x.flatten(1), packed), rounded.flatten(1) @ weight.T)
    rows = torch.tensor([69, 0, 33])
    for got, wanted in zip(packed.rows(rows), (numbers, scales, zeros, shares, minima), strict=True):
        assert got is None or torch.equal(got, wanted[rows])


TABLE = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""Numbers of the IQ4 types of llama.cpp."""


@BOTH
@pytest.mark.parametrize("shares", [None, torch.int8, torch.float8_e4m3fn, torch.uint8], ids=str)
@pytest.mark.parametrize(("n", "k", "group"), [(70, 480, 16), (33, 2880, 32), (5, 100, 32)])
def test_quantized_linear_with_a_table(
    kernels: Kernels, dtype: torch.dtype, shares: torch.dtype | None, n: int, k: int, group: int
) -> None:
    """Floats of all sizes among the shares, but NaN; a row alone has the same bits."""
    generator, groups = torch.Generator().manual_seed(k), -(-k // group)
    numbers = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=generator)
    scales = torch.randn(n, groups if shares is None else 1, generator=generator) / 100
    low, high = {torch.int8: (-128, 128), torch.uint8: (100, 140)}.get(shares, (0, 127))
    octets = torch.randint(low, high, (n, groups), generator=generator)
    parts = None if shares is None else octets.to(torch.int8 if low < 0 else torch.uint8).view(shares)
    factors = scales.double()
    if parts is not None:
        factors = factors * (2.0 ** (octets.double() - 127) if shares == torch.uint8 else parts.double())
    weight = torch.tensor(TABLE)[numbers.int()] * factors.repeat_interleave(group, 1)[:, :k]
    x = random(21, k, dtype=dtype)
    padded = torch.nn.functional.pad(x.float(), (0, groups * group - k)).view(21, groups, group)
    top = padded.abs().amax(2, keepdim=True)
    rounded = ((padded * (127 / top)).round().double() * (top.double() / 127)).flatten(1)[:, :k]
    packed = kernels.pack_ints(numbers, scales, None, 4, group, parts, table=TABLE)
    whole = kernels.quantized_linear(x, packed)
    close(whole, rounded @ weight.T)
    for size in (1, 2, 5, 13):
        pieces = [kernels.quantized_linear(x[begin : begin + size], packed) for begin in range(0, 21, size)]
        assert torch.equal(torch.cat(pieces), whole)
    rows = packed.rows(torch.tensor([n - 1, 0]))
    assert rows[0] is not None
    assert torch.equal(rows[0], numbers[[n - 1, 0]])
    assert parts is None or torch.equal(rows[3].float(), parts[[n - 1, 0]].float())  # type: ignore[union-attr]


@BOTH
@pytest.mark.parametrize(("bits", "group"), [(8, 300), (4, 64)])
def test_a_row_of_a_quantized_layer_does_not_depend_on_others(
    kernels: Kernels, dtype: torch.dtype, bits: int, group: int
) -> None:
    numbers, scales, zeros = integers(70, 300, bits, group, symmetric=False)
    x, packed = random(150, 300, dtype=dtype), kernels.pack_ints(numbers, scales, zeros, bits, group)
    whole = kernels.quantized_linear(x, packed)
    for size in (1, 2, 3, 7, 12, 13, 64, 149):
        parts = [kernels.quantized_linear(x[begin : begin + size], packed) for begin in range(0, 150, size)]
        assert torch.equal(torch.cat(parts), whole)


@BOTH
@pytest.mark.parametrize(("bits", "symmetric"), [(8, True), (4, False), (4, True), (8, False)])
@pytest.mark.parametrize(("n", "k", "group"), [(100, 33, 33), (64, 192, 64), (31, 300, 128), (1, 1, 8)])
def test_rounding_a_weight(
    kernels: Kernels, dtype: torch.dtype, bits: int, symmetric: bool, n: int, k: int, group: int
) -> None:
    weight, groups = random(n, k, dtype=dtype), -(-k // group)
    weight[0] = 0
    weight[-1] = weight[-1].abs()
    padded = torch.zeros(n, groups * group)
    padded[:, :k] = weight.float()
    parts = padded.view(n, groups, group)
    if symmetric:
        scales = parts.abs().amax(-1) / (2 ** (bits - 1) - 1)
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    else:
        low, high = parts.amin(-1).clamp_max(0), parts.amax(-1).clamp_min(0)
        scales = (high - low) / (2**bits - 1)
        zeros = (-low / scales.clamp_min(1e-30)).round()
    stored = (parts / scales.clamp_min(1e-30)[..., None]).round() + zeros[..., None]
    numbers = stored.clamp(0, 2**bits - 1).view(n, -1)[:, :k].to(torch.uint8)
    expected = kernels.pack_ints(numbers, scales, None if symmetric else zeros.to(torch.uint8), bits, group)
    result = kernels.round_and_pack(weight, bits, group, symmetric=symmetric)
    assert (result.n, result.k, result.bits, result.group) == (n, k, bits, expected.group)
    assert torch.equal(result.scales, expected.scales)
    assert torch.equal(result.numbers, expected.numbers)
    assert symmetric or torch.equal(result.zeros, expected.zeros)  # type: ignore[arg-type]
    pieces = kernels.empty_ints(n, k, bits, group, symmetric=symmetric)
    for tensor in (pieces.numbers, pieces.scales, *(() if pieces.zeros is None else (pieces.zeros,))):
        tensor.fill_(99)
    for first in sorted(range(0, n, 32), key=lambda first: -first % 64):
        kernels.round_rows(weight[first : first + 32], pieces, first)
    assert torch.equal(pieces.numbers, expected.numbers)
    assert torch.equal(pieces.scales, expected.scales)
    assert symmetric or torch.equal(pieces.zeros, expected.zeros)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_quantized_layer_hides_no_number_that_is_not_finite(kernels: Kernels, wrong: float) -> None:
    packed = kernels.pack_ints(*integers(5, 40, 8, 40, symmetric=False), 8, 40)
    for place in (0, 39):
        x = random(2, 40, dtype=torch.float32)
        x[1, place] = wrong
        finite = kernels.quantized_linear(x, packed).isfinite()
        assert finite[0].all()
        assert not finite[1].any()


def test_a_linear_layer_takes_a_part_of_a_tensor(kernels: Kernels) -> None:
    x, weight = random(5, 200, dtype=torch.float32), random(64, 200, dtype=torch.float32, seed=1)
    x, weight = x[:, 50:114], weight[:, 50:114]
    copied = kernels.linear(x.contiguous(), kernels.pack(weight.contiguous()), 64)
    assert torch.equal(kernels.linear(x, kernels.pack(weight), 64), copied)
    assert torch.equal(kernels.linear(x, kernels.pack(weight.T.contiguous().T), 64), copied)


@BOTH
@pytest.mark.parametrize("size", [1, 15, 64, 200, 4096])
def test_rms_norm(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    x, weight = random(9, size, dtype=dtype), random(size, dtype=dtype, seed=1)
    wide = x.double()
    expected = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5) * weight.double()
    result = kernels.rms_norm(x, weight, 1e-5)
    close(result, expected)
    assert torch.equal(torch.cat([kernels.rms_norm(x[i : i + 1], weight, 1e-5) for i in range(9)]), result)


@BOTH
@pytest.mark.parametrize("size", [1, 16, 100, 1000])
def test_silu_mul(kernels: Kernels, dtype: torch.dtype, size: int) -> None:
    x = 20 * random(9, 2 * size, dtype=dtype)
    gate, up = x.double().chunk(2, -1)
    result = kernels.silu_mul(x)
    close(result, torch.nn.functional.silu(gate) * up)
    assert torch.equal(torch.cat([kernels.silu_mul(x[i : i + 1]) for i in range(9)]), result)


@BOTH
@pytest.mark.parametrize(("size", "rotated"), [(64, 64), (80, 32), (16, 12)])
def test_rotary(kernels: Kernels, dtype: torch.dtype, size: int, rotated: int) -> None:
    x, angles = random(7, 3, size, dtype=dtype), random(7, rotated // 2, dtype=torch.float32, seed=1)
    pairs = x.double()[..., :rotated].unflatten(-1, (2, -1)).transpose(-1, -2).contiguous()
    turned = torch.view_as_complex(pairs) * torch.exp(1j * angles.double())[:, None]
    first = torch.view_as_real(turned).transpose(-1, -2).flatten(-2)
    expected = torch.cat((first, x.double()[..., rotated:]), -1)
    kernels.rotary(x, angles.cos(), angles.sin())
    close(x, expected)


def test_nothing_is_multiplied_with_no_row(kernels: Kernels) -> None:
    x, numbers = torch.empty(0, 64), torch.zeros(40, 64, dtype=torch.uint8)
    assert kernels.linear(x, kernels.pack(torch.ones(40, 64)), 40).shape == (0, 40)
    packed = kernels.pack_ints(numbers, torch.ones(40, 1), None, 8, 64)
    assert kernels.quantized_linear(x, packed).shape == (0, 40)


def test_a_library_that_is_not_built_is_named() -> None:
    with pytest.raises(Unavailable, match=r"tgi_cpu_kernels\.build"):
        load("riscv")


@pytest.mark.skipif(not any(library(name).exists() for name in supported()), reason="no library is built")
def test_a_library_of_other_sources_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tgi_cpu_kernels.digest", lambda: b"0123456789abcdef")
    with pytest.raises(Unavailable, match="is not built from these sources"):
        load()


@BOTH
@pytest.mark.parametrize("gate", ["silu", "swiglu"])
@pytest.mark.parametrize(("tokens", "top"), [(1, 4), (5, 1), (40, 3), (90, 8)])
def test_experts(kernels: Kernels, dtype: torch.dtype, tokens: int, top: int, gate: str) -> None:
    """Experts 3 to 14 of 20 are here: against float64, and each token alone, bit for bit."""
    hidden, inner, first, count, everyone = 72, 40, 3, 12, 20
    up = random(count, 2 * inner, hidden, dtype=dtype) / math.sqrt(hidden)
    down = random(count, hidden, inner, dtype=dtype, seed=1) / math.sqrt(inner)
    bias, x = 3 * random(count, 2 * inner, dtype=dtype, seed=2), random(tokens, hidden, dtype=dtype, seed=3)
    scores = random(tokens, everyone, dtype=torch.float32, seed=4)
    weights, chosen = scores.softmax(-1).topk(top, -1)
    weights = weights.to(dtype)
    ups = [LinearLayer(kernels.pack(each), 2 * inner, b) for each, b in zip(up, bias, strict=True)]
    downs = [LinearLayer(kernels.pack(each), hidden, None) for each in down]
    experts = Experts(kernels, ups, downs, first, gate)
    result = experts.run(x, weights, chosen)
    expected = torch.zeros(tokens, hidden, dtype=torch.float64)
    for token in range(tokens):
        for weight, number in zip(weights[token].double(), chosen[token] - first, strict=True):
            if 0 <= number < count:
                inside = up[number].double() @ x[token].double() + bias[number].double()
                first_half, second = inside.chunk(2)
                if gate == "swiglu":
                    first_half, second = first_half.clamp(max=7), second.clamp(-7, 7) + 1
                silu = first_half * (first_half * (1.702 if gate == "swiglu" else 1)).sigmoid()
                expected[token] += weight * (down[number].double() @ (silu * second))
        part = slice(token, token + 1)
        assert torch.equal(experts.run(x[part], weights[part], chosen[part])[0], result[token])
    bound = 3 * TOLERANCE[dtype] * max(1.0, expected.abs().max().item())  # it is rounded thrice on its way
    assert (result.double() - expected).abs().max().item() <= bound
