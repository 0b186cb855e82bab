"""Kernels for NVIDIA GPUs in Triton: decode attention over the paged cache, and elementwise operations.

Import this module only if Triton is installed. Decode attention takes the blocks of all rows as one list
(`FlatBlocks`): each program goes through a *part* of PART entries, which may belong to several rows. The
blocks of one row within a part are a *piece*. Pieces are numbered by part + row, which grows with every
piece, so that the pieces of a row follow one another; a second kernel joins them. So the work is even for
rows of any lengths, and no shape depends on the lengths.
"""

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]

from tgi.device.attention import AttentionSpec

PART = 8
"""Number of blocks that one program goes through."""
_TOGETHER = 16
"""Number of pieces of a row that are joined at once."""
_MIN_ROWS = 16
"""Least number of rows of a matrix that the tensor cores multiply."""
_WIDTH = 1024
"""Number of values that a program of an elementwise kernel computes at once."""


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _attend_part(  # type: ignore[no-untyped-def]
    query, keys, values, ids, owners, counts, slopes, sums, peaks, outs,
    entries, rows, scale, softcap, window,
    KV_HEADS: tl.constexpr, GROUPS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr,
    GROUPS_UP: tl.constexpr, DIM_UP: tl.constexpr, WINDOW: tl.constexpr, SLOPES: tl.constexpr,
    SOFTCAP: tl.constexpr,
):  # fmt: skip
    """Compute the scores and sums of each piece of a part; program (part, key/value head)."""
    part, kv_head = tl.program_id(0), tl.program_id(1)
    group, dim, within = tl.arange(0, GROUPS_UP), tl.arange(0, DIM_UP), tl.arange(0, BLOCK)
    heads = kv_head * GROUPS + group
    head_mask, dim_mask = group < GROUPS, dim < DIM
    if SLOPES:
        slope = tl.load(slopes + heads, mask=head_mask, other=0.0)
    peak = tl.full([GROUPS_UP], float("-inf"), tl.float32)
    total = tl.zeros([GROUPS_UP], tl.float32)
    out = tl.zeros([GROUPS_UP, DIM_UP], tl.float32)
    before = tl.full([], 0, tl.int32) + rows  # no row; not a compile-time constant
    end = tl.minimum(part * PART + PART, entries)
    for index in range(PART):
        entry = part * PART + index
        inside = entry < end
        row = tl.load(owners + entry, mask=inside, other=rows)
        following = tl.load(owners + entry + 1, mask=entry + 1 < end, other=rows)
        count = tl.load(counts + entry, mask=inside, other=1)
        block = tl.load(ids + entry, mask=inside, other=0).to(tl.int64)
        count = tl.where(row < rows, count, 0)  # padding sees nothing
        distance = within + 1 - count
        seen = distance <= 0
        if WINDOW:
            seen = seen & (distance > -window)
        source = tl.where(row < rows, row, 0).to(tl.int64) * (KV_HEADS * GROUPS) + heads
        q_mask = head_mask[:, None] & dim_mask[None, :]
        q = tl.load(query + source[:, None] * DIM + dim[None, :], mask=q_mask, other=0.0)
        place = ((block * BLOCK + within) * KV_HEADS + kv_head) * DIM
        k = tl.load(keys + place[None, :] + dim[:, None], mask=seen[None, :] & dim_mask[:, None], other=0.0)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        if SOFTCAP:
            scores = softcap * (2 * tl.sigmoid(2 * (scores / softcap)) - 1)
        if SLOPES:
            scores += slope[:, None] * distance[None, :].to(tl.float32)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        same = row == before
        peak = tl.where(same, peak, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # no token of the piece is seen so far
        shrunk = tl.where(same, tl.exp(peak - base), 0.0)
        weights = tl.exp(scores - base[:, None])
        v = tl.load(values + place[:, None] + dim[None, :], mask=seen[:, None] & dim_mask[None, :], other=0.0)
        total = total * shrunk + tl.sum(weights, 1)
        out = out * shrunk[:, None] + tl.dot(weights.to(v.dtype), v, input_precision="ieee")
        peak, before = higher, row
        piece = (part + row).to(tl.int64) * (KV_HEADS * GROUPS) + heads
        ended = group < tl.where(following != row, GROUPS, 0)
        tl.store(sums + piece, total, mask=ended)
        tl.store(peaks + piece, peak, mask=ended)
        out_mask = ended[:, None] & dim_mask[None, :]
        tl.store(outs + piece[:, None] * DIM + dim[None, :], out, mask=out_mask)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _join_pieces(  # type: ignore[no-untyped-def]
    starts, sums, peaks, outs, sinks, result,
    HEADS: tl.constexpr, DIM: tl.constexpr, PART: tl.constexpr, DIM_UP: tl.constexpr, TOGETHER: tl.constexpr,
    SINKS: tl.constexpr,
):  # fmt: skip
    """Join the pieces of a row; program (row, head). A row without blocks, which is padding, gets zeros."""
    row, head = tl.program_id(0), tl.program_id(1)
    dim, within = tl.arange(0, DIM_UP), tl.arange(0, TOGETHER)
    start, end = tl.load(starts + row), tl.load(starts + row + 1)
    first = start // PART + row
    last = tl.where(end > start, (end - 1) // PART + row, first - 1)
    peak = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    out = tl.zeros([DIM_UP], tl.float32)
    for begin in range(first, last + 1, TOGETHER):
        here = begin + within <= last
        piece = (begin + within).to(tl.int64) * HEADS + head
        local = tl.load(peaks + piece, mask=here, other=float("-inf"))
        higher = tl.maximum(peak, tl.max(local, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp(local - base)
        shrunk = tl.exp(peak - base)
        total = total * shrunk + tl.sum(shares * tl.load(sums + piece, mask=here, other=0.0), 0)
        mask = here[:, None] & (dim < DIM)[None, :]
        parts = tl.load(outs + piece[:, None] * DIM + dim[None, :], mask=mask, other=0.0)
        out = out * shrunk + tl.sum(parts * shares[:, None], 0)
        peak = higher
    if SINKS:
        total += tl.exp(tl.load(sinks + head) - peak)
    out = out / tl.where(total == 0.0, 1.0, total)
    place = (row.to(tl.int64) * HEADS + head) * DIM + dim
    tl.store(result + place, out.to(result.dtype.element_ty), mask=dim < DIM)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _silu_mul(gate_up, result, size, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Compute silu(gate) * up; program (row, slice of the row)."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    mask = place < size
    gate = tl.load(gate_up + row * 2 * size + place, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(
        result + row * size + place, (gate * tl.sigmoid(gate) * up).to(result.dtype.element_ty), mask=mask
    )


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _rotate(  # type: ignore[no-untyped-def]
    x, cos, sin, result, stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, SIZE: tl.constexpr, DIM_UP: tl.constexpr,
):  # fmt: skip
    """Rotate the first SIZE of DIM features; program (token, head)."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim = tl.arange(0, DIM_UP)
    source = x + token * stride + head * DIM
    turned = dim < SIZE
    partner = tl.where(dim < SIZE // 2, dim + SIZE // 2, dim - SIZE // 2)
    own = tl.load(source + dim, mask=dim < DIM, other=0.0).to(tl.float32)
    other = tl.load(source + partner, mask=turned, other=0.0).to(tl.float32)
    c = tl.load(cos + token * SIZE + dim, mask=turned, other=1.0).to(tl.float32)
    s = tl.load(sin + token * SIZE + dim, mask=turned, other=0.0).to(tl.float32)
    place = (token * HEADS + head) * DIM + dim
    tl.store(result + place, (own * c + other * s).to(result.dtype.element_ty), mask=dim < DIM)


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _total(x, result, size, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add up a row, in an order that does not depend on other rows; program (row)."""
    row = tl.program_id(0).to(tl.int64)
    sums = tl.zeros([WIDTH], tl.float32)
    for begin in range(0, size, WIDTH):
        place = begin + tl.arange(0, WIDTH)
        sums += tl.load(x + row * size + place, mask=place < size, other=0.0)
    tl.store(result + row, tl.sum(sums, 0))


def attend_blocks(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    blocks: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    starts: torch.Tensor,
    block_size: int,
    spec: AttentionSpec,
) -> torch.Tensor:
    """Attend with query [rows, heads, head_dim], a token each, over the cache [slots, kv_heads, head_dim].

    `blocks` are ids, rows and tokens of `FlatBlocks`, [n] int32 each; `starts` [rows + 1] int32 are the
    indices at which each row's blocks begin, and the index at which the last one's end.
    """
    (rows, heads, dim), kv_heads, entries = query.shape, keys.shape[1], blocks[0].shape[0]
    groups, parts = heads // kv_heads, triton.cdiv(entries, PART)
    pieces = parts + rows
    sums, peaks = (query.new_empty(pieces, heads, dtype=torch.float32) for _ in range(2))
    outs = query.new_empty(pieces, heads, dim, dtype=torch.float32)
    result = torch.empty_like(query, memory_format=torch.contiguous_format)
    dim_up = max(16, triton.next_power_of_2(dim))
    _attend_part[parts, kv_heads](
        query.contiguous(), keys, values, *blocks, sums if spec.slopes is None else spec.slopes,
        sums, peaks, outs, entries, rows, spec.scale, spec.softcap or 1.0, spec.window or 0,
        KV_HEADS=kv_heads, GROUPS=groups, DIM=dim, BLOCK=block_size, PART=PART,
        GROUPS_UP=max(_MIN_ROWS, triton.next_power_of_2(groups)), DIM_UP=dim_up,
        WINDOW=spec.window is not None, SLOPES=spec.slopes is not None, SOFTCAP=spec.softcap is not None,
        num_stages=3,
    )  # fmt: skip
    _join_pieces[rows, heads](
        starts, sums, peaks, outs, sums if spec.sinks is None else spec.sinks, result,
        HEADS=heads, DIM=dim, PART=PART, DIM_UP=dim_up, TOGETHER=_TOGETHER, SINKS=spec.sinks is not None,
    )  # fmt: skip
    return result


def total(x: torch.Tensor) -> torch.Tensor:
    """Compute `Device.total`."""
    x = x.contiguous()
    result = x.new_empty(len(x), 1)
    _total[(len(x),)](x, result, x.shape[1], WIDTH=4 * _WIDTH)
    return result


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Compute `Device.silu_mul`, rounded once."""
    gate_up = gate_up.contiguous()
    size = gate_up.shape[-1] // 2
    result = gate_up.new_empty(*gate_up.shape[:-1], size)
    rows = result.numel() // size
    _silu_mul[rows, triton.cdiv(size, _WIDTH)](gate_up, result, size, WIDTH=_WIDTH)
    return result


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Compute `Device.rotary`, rounded once; cos and sin are those of `Device.rotation`."""
    tokens, heads, dim = x.shape
    if x.stride()[1:] != (dim, 1):
        x = x.contiguous()
    result = x.new_empty(tokens, heads, dim)
    size, dim_up = cos.shape[-1], triton.next_power_of_2(dim)
    _rotate[tokens, heads](
        x, cos.contiguous(), sin.contiguous(), result, x.stride(0),
        HEADS=heads, DIM=dim, SIZE=size, DIM_UP=dim_up,
    )  # fmt: skip
    return result
