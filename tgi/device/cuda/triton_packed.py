"""The kernel of `packed_weight` in Triton, which reads weights packed and expands them in registers.

Import this module only if Triton is installed. A program multiplies a *tile*: some rows times some output
features, block after block of the weight. In each it multiplies with the numbers themselves, which 16 bits
hold exactly, and then with the scales of the block. The blocks, and so the order of a sum, depend on the
weight alone.
"""

import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def _expand(stored, part, kind: tl.constexpr, BITS: tl.constexpr, FLOATS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return numbers of a block as they are, those of 4 bits in the low halves of bytes or in the high ones.

    e4m3 becomes float16 by its bits, with an exponent that is less by 8: not all GPUs can convert it.
    """
    if FLOATS:
        if kind == tl.float8e4nv:
            numbers = stored.to(tl.float8e4nv, bitcast=True)
        else:
            bits = stored.to(tl.int16)
            half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
            numbers = half.to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    else:
        if BITS == 4:
            stored = (stored >> (4 * part)) & 15
        numbers = stored.to(tl.float32)
    return numbers


@triton.jit  # type: ignore[misc,untyped-decorator,unused-ignore]
def multiply_packed(  # type: ignore[no-untyped-def]
    x, octets, scales, zeros, factors, biases, residual, out, order, experts, begins, ends,
    rows, columns, size, group, offset, groups, step,
    BITS: tl.constexpr, FLOATS: tl.constexpr, WHOLE: tl.constexpr, DEPTH: tl.constexpr, ZEROS: tl.constexpr,
    FACTORS: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, PAIRS: tl.constexpr, TOP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Multiply a tile; program (rows of x, or tile of `Pairs`; slice of the columns)."""
    WIDTH: tl.constexpr = DEPTH * BITS // 8
    tile, blocks = tl.program_id(0), tl.cdiv(size, DEPTH)
    column, within = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, WIDTH)
    there = column < columns
    if PAIRS:
        begin, end = tl.load(begins + tile), tl.load(ends + tile)
        expert = tl.load(experts + tile).to(tl.int64)
        octets += expert * blocks * columns * WIDTH
        scales += expert * groups * columns
        zeros += expert * groups * columns
        biases += expert * columns
        blocks = tl.where(begin < end, blocks, 0)
    else:
        begin, end = tile * ROWS, rows
    row = begin + tl.arange(0, ROWS)
    here, source = row < end, row.to(tl.int64)
    if TOP:
        source = tl.load(order + row, mask=here, other=0).to(tl.int64) // TOP
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for block in range(blocks):
        start = block * DEPTH
        place = (column.to(tl.int64) + block * columns) * WIDTH
        stored = tl.load(octets + place[None, :] + within[:, None], mask=there[None, :], other=0)
        first = (start + offset) // group * columns + column
        products = tl.zeros([ROWS, COLUMNS], tl.float32)
        for part in tl.static_range(8 // BITS):
            depth = start + part * WIDTH + within
            inside = depth < size
            a_mask = here[:, None] & inside[None, :]
            a = tl.load(x + source[:, None] * size + depth[None, :], mask=a_mask, other=0.0)
            b = _expand(stored, part, a.dtype, BITS, FLOATS)
            if WHOLE:
                if ZEROS:
                    b -= tl.load(zeros + first, mask=there, other=0).to(tl.float32)[None, :]
                elif not FLOATS:
                    b -= 1 << (BITS - 1)
            else:
                each = (depth + offset)[:, None] // group * columns + column[None, :]
                b_mask = inside[:, None] & there[None, :]
                if ZEROS:
                    b -= tl.load(zeros + each, mask=b_mask, other=0).to(tl.float32)
                elif not FLOATS:
                    b -= 1 << (BITS - 1)
                b *= tl.load(scales + each, mask=b_mask, other=0.0)
            products = tl.dot(a, b.to(a.dtype), products, input_precision="ieee", max_num_imprecise_acc=WIDTH)
        if WHOLE:
            products *= tl.load(scales + first, mask=there, other=0.0)[None, :]
        sums += products
    if FACTORS:
        sums *= tl.load(factors + source * step, mask=here, other=0.0)[:, None]
    if BIAS:
        sums += tl.load(biases + column, mask=there, other=0.0).to(tl.float32)[None, :]
    target, mask = row.to(tl.int64)[:, None] * columns + column[None, :], here[:, None] & there[None, :]
    if RESIDUAL:
        sums += tl.load(residual + target, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + target, sums.to(out.dtype.element_ty), mask=mask)
