"""Integers of 2 to 8 bits that a checkpoint has side by side in words of 32 bits, the first in the lowest."""

import attrs
import torch
import torch.nn.functional as F

from tgi.weights.shard import TensorPart

from .base import Reader

WORD = 32
"""Bits of a word; as many numbers of any width fill whole words."""


def read_packed(reader: Reader, part: TensorPart, bits: int, dim: int, planes: bool = False) -> torch.Tensor:
    """Return a part of a matrix whose numbers are packed along `dim`, with that dimension last, as uint8.

    `part` is that of the matrix of numbers; `planes` is that of `unpack`.
    """
    shape, indices, begin = list(part.shape), part.indices, 0
    count = part.size[dim]
    shape[dim] = words = -(-shape[dim] * bits // WORD)
    if part.dim == dim and indices is not None:
        begin = indices.start % WORD
        indices = slice(indices.start // WORD * bits, min(words, -(-indices.stop // WORD) * bits))
    place = attrs.evolve(part, shape=shape, indices=indices, transposed=False)
    packed = reader.read_raw(place, torch.int32, kept=False)
    return unpack(packed.T if dim == 0 else packed, bits, planes)[:, begin : begin + count]


def unpack(words: torch.Tensor, bits: int, planes: bool = False) -> torch.Tensor:
    """Return the numbers [rows, at least n * 32 / bits] uint8 in words [rows, n] int32.

    `planes`: of 32 numbers the lowest bits come first, 4, 2 or 1 of each, then likewise the others.
    """
    words = words.contiguous()
    if WORD % bits == 0:
        octets, mask = words.view(torch.uint8), 2**bits - 1
        return torch.stack([(octets >> shift) & mask for shift in range(0, 8, bits)], -1).flatten(-2)
    blocks = F.pad(words, (0, -words.shape[1] % bits)).view(len(words), -1, bits)
    if planes:
        return _unpack_planes(blocks)
    numbers = torch.empty(*blocks.shape[:2], WORD, dtype=torch.uint8, device=words.device)
    for index in range(WORD):
        word, shift = divmod(index * bits, WORD)
        below = WORD - shift
        number = (blocks[..., word] >> shift) & (2 ** min(bits, below) - 1)
        if below < bits:
            number = number | ((blocks[..., word + 1] & (2 ** (bits - below) - 1)) << below)
        numbers[..., index] = number.to(torch.uint8)
    return numbers.flatten(1)


def _unpack_planes(blocks: torch.Tensor) -> torch.Tensor:
    """Return the numbers [rows, blocks * 32] in words [rows, blocks, bits]."""
    rows, count, bits = blocks.shape
    numbers, begin = torch.zeros(rows, count * WORD, dtype=torch.uint8, device=blocks.device), 0
    for width in (4, 2, 1):
        if bits - begin >= width:
            numbers |= unpack(blocks[..., begin : begin + width].reshape(rows, -1), width) << begin
            begin += width
    return numbers
