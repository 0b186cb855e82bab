"""The bucket strategies of TGI-Gaudi and of vLLM on Gaudi, with their variables.

Each chooses the sizes of every dimension apart from the others and takes all combinations. Some steps then
have no bucket, so those servers compile while they serve; `ShapeLimits.closed` adds what is missing.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Mapping

import attrs

from tgi.planning.shapes import ShapeLimits
from tgi.protocol import Bucket

LONG = 8192
"""Length, in tokens, from which exponential contexts count on prompts that come in chunks."""
REFERENCES = 3
"""Number of sequences that reference a block, which these servers prepare for."""


@attrs.frozen
class Range:
    """VLLM_{dimension}_BUCKET_{MIN,STEP,MAX}; None: not set."""

    first: int | None = None
    step: int | None = None
    last: int | None = None

    def within(self, first: int, step: int, last: int) -> tuple[int, int, int]:
        """Return the bounds that are set, and else these defaults."""
        return (
            first if self.first is None else self.first,
            step if self.step is None else self.step,
            last if self.last is None else self.last,
        )


Ranges = Mapping[str, Range]
"""Ranges by dimension: PROMPT_BS, PROMPT_QUERY, PROMPT_CTX, DECODE_BS, DECODE_BLOCK."""
_UNSET = Range()


def linear_sizes(first: int, step: int, last: int) -> list[int]:
    """Return first, twice that, … below step, then all multiples of step up to last; 0 stands by itself."""
    sizes = [0] if first == 0 else []
    size = first or step
    while size < step and size <= last:
        sizes.append(size)
        size *= 2
    return sizes + [size for size in range(step, last + 1, step) if size >= first]


def exponential_sizes(first: int, step: int, last: int, count: int) -> list[int]:
    """Return at most `count` sizes in geometric progression up to last, rounded up to multiples of step."""
    low = step if first in (0, 1) else first
    powers = [index / (count - 1) for index in range(count)] if count > 1 else [1.0]
    sizes = {math.ceil(low * (last / low) ** power / step) * step for power in powers}
    return sorted({min(size, last) for size in sizes} | ({first} if first in (0, 1) else set()))


def padding_aware_sizes(first: int, step: int, last: int, most: int, percent: float = 25) -> list[int]:
    """Return linear sizes without the multiples that the next one can stand in for.

    That is so where it pads by no more than `most`, and by no more than `percent` of itself. Multiples of
    `most` always stay.
    """
    sizes = [first]
    while sizes[-1] < min(step, last):
        sizes.append(min(max(1, 2 * sizes[-1]), last))
    following = sizes[-1] if sizes[-1] % step else sizes[-1] + step
    for size in range(following, last + 1, step):
        padding = size + step - sizes[-1] - 1
        if padding > most or padding > (size + step) * percent / 100 or size % most == 0:
            sizes.append(size)
    return sizes if sizes[-1] == last else [*sizes, last]


def linear(limits: ShapeLimits, ranges: Ranges, blocks: int) -> list[Bucket]:
    """VLLM_BUCKETING_STRATEGY=lin, for a KV cache of `blocks` blocks."""
    block = limits.block_size
    defaults = {
        "PROMPT_BS": (1, 1, limits.prefill_rows),
        "PROMPT_QUERY": (block, block, limits.max_batch_prefill_tokens),
        "PROMPT_CTX": (0, 1, max(limits.max_total_tokens - block, 0) // block),
        "DECODE_BS": (1, 32, limits.max_batch_size),
        "DECODE_BLOCK": (1, block, _references(limits, blocks)),
    }
    return _product(limits, {name: linear_sizes(*_range(ranges, name, *defaults[name])) for name in defaults})


def exponential(limits: ShapeLimits, ranges: Ranges, blocks: int) -> list[Bucket]:
    """VLLM_BUCKETING_STRATEGY=exp, VLLM_EXPONENTIAL_BUCKETING=true: their default."""
    block, most, query = limits.block_size, _references(limits, blocks), limits.max_batch_prefill_tokens
    chunk = limits.max_batch_prefill_tokens if limits.max_total_tokens >= LONG else block
    context = -(-(limits.max_total_tokens - chunk) // block)
    defaults = {
        "PROMPT_BS": (1, 2, limits.prefill_rows, _doublings(limits.prefill_rows) + 1),
        "PROMPT_QUERY": (block, block, query, _doublings(query)),
        "PROMPT_CTX": (0, 1, max(context, 1), 2 if context <= 1 else _doublings(context) + 1),
        "DECODE_BS": (1, 2, limits.max_batch_size, _doublings(limits.max_batch_size) + 1),
        "DECODE_BLOCK": (1, limits.max_batch_size, most, _doublings(most) + 1),
    }
    sizes = {
        name: exponential_sizes(*_range(ranges, name, first, step, last), count)
        for name, (first, step, last, count) in defaults.items()
    }
    every = {limits.clipped(b) for b in _product(limits, sizes) if b.tokens <= limits.max_total_tokens}
    return sorted(b for b in every if b.prefill or b.rows <= b.blocks)


def padding_aware(limits: ShapeLimits, ranges: Ranges, blocks: int) -> list[Bucket]:
    """VLLM_BUCKETING_STRATEGY=pad."""
    block, rows, query = limits.block_size, limits.prefill_rows, limits.max_batch_prefill_tokens
    most, context = _references(limits, blocks), -(-max(limits.max_total_tokens - block, 0) // block)
    defaults = {
        "PROMPT_BS": (1, 1, rows, -(-rows // 4)),
        "PROMPT_QUERY": (block, block, query, -(-query // 4)),
        "PROMPT_CTX": (0, 2, context, -(-query // block)),
        "DECODE_BS": (1, 2, limits.max_batch_size, -(-limits.max_batch_size // 4)),
        "DECODE_BLOCK": (block, block, most, -(-most // 4)),
    }
    sizes = {
        name: padding_aware_sizes(*_range(ranges, name, first, step, last), limit)
        for name, (first, step, last, limit) in defaults.items()
    }
    return _product(limits, sizes)


def _range(ranges: Ranges, name: str, first: int, step: int, last: int) -> tuple[int, int, int]:
    """Return the range of a dimension; a first size is never beyond the last."""
    first, step, last = ranges.get(name, _UNSET).within(first, step, last)
    return min(first, last), max(step, 1), last


def _references(limits: ShapeLimits, blocks: int) -> int:
    return min(limits.decode_blocks(limits.max_batch_size), REFERENCES * blocks)


def _doublings(size: int) -> int:
    return math.ceil(math.log2(size)) if size > 1 else 0


def _product(limits: ShapeLimits, sizes: Mapping[str, list[int]]) -> list[Bucket]:
    """Return all combinations within the budget of a prefill."""
    contexts = sizes["PROMPT_CTX"] if limits.contexts else [0]
    tokens, most = sorted(sizes["PROMPT_QUERY"]), limits.max_batch_prefill_tokens
    chunks = [(r, t) for r in sizes["PROMPT_BS"] for t in tokens[: bisect_right(tokens, most // max(r, 1))]]
    decode = itertools.product(sizes["DECODE_BS"], sizes["DECODE_BLOCK"])
    return [
        *(Bucket(r, t, c, prefill=True) for (r, t), c in itertools.product(chunks, contexts)),
        *(Bucket(rows, 1, blocks) for rows, blocks in decode),
    ]


STRATEGIES = {"linear": linear, "exponential": exponential, "padding-aware": padding_aware}
