"""From logits to tokens: one program for all rows of a step, with parameters as columns and static shapes.

In order: watermark, penalties, logit bias, ends that may not come yet, grammar masks, temperature, top-k,
top-p, min-p, typical-p, choice (tgi-behaviour section 5). What comes out for a row depends on that row alone,
bit for bit: no reduction runs over rows, none may be split differently for one row than for many (as
`Tensor.sum` of a single row is), ties are broken by the lowest id, and a part that no row needs is skipped
only where it would not change any bit.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.device import Device
from tgi.layers import most_likely
from tgi.protocol import LaneParams

from .lanes import DRAW_BITS
from .tables import Tables

_WATERMARK_KEY = 15485863
_SHORT = 256
"""Scores that are sorted first where shapes are free; hardly ever does a top-k or top-p need more."""


@attrs.frozen(kw_only=True)
class Needs:
    """Which parts of the program the rows of a step need; decided on the host, before the program runs."""

    sample: bool = False
    top_k: bool = False
    top_p: bool = False
    min_p: bool = False
    typical: bool = False
    penalties: bool = False
    """Of the whole sequence's tokens."""
    occurrences: bool = False
    """Penalties of generated tokens."""
    bias: bool = False
    bar: bool = False
    watermark: bool = False
    top: int = 0
    """How many of the most likely tokens to report."""

    @classmethod
    def of(cls, columns: Mapping[str, npt.NDArray[Any]], top: int) -> "Needs":
        """Of rows with these parameters."""
        penalised = (columns["repetition_penalty"] != 1) | (columns["frequency_penalty"] != 0)
        return cls(
            sample=bool(columns["sample"].any()),
            top_k=bool((columns["top_k"] > 0).any()),
            top_p=bool((columns["top_p"] < 1).any()),
            min_p=bool((columns["min_p"] > -np.inf).any()),
            typical=bool((columns["typical_p"] < 1).any()),
            penalties=bool(penalised.any()),
            occurrences=bool(((columns["presence_penalty"] != 0) | (columns["count_penalty"] != 0)).any()),
            bias=bool(columns["biased"].any()),
            bar=bool(columns["barred"].any()),
            watermark=bool(columns["watermark"].any()),
            top=top,
        )


@attrs.frozen(eq=False)
class Masks:
    """Which tokens some of the rows may give."""

    rows: torch.Tensor
    """[m] int64"""
    words: torch.Tensor
    """[m, words] int32: a bit for each token of the vocabulary, the lowest first."""


@attrs.frozen(eq=False, kw_only=True)
class SamplerInputs:
    """The rows of a step. All tensors are [rows] on the device, int64 or float32."""

    needs: Needs
    lanes: torch.Tensor
    lengths: torch.Tensor
    """Tokens of the sequence so far, prompt and generated."""
    previous: torch.Tensor
    """The last of them."""
    draw_high: torch.Tensor
    draw_low: torch.Tensor
    """The random number, DRAW_BITS bits each."""
    sample: torch.Tensor
    top_k: torch.Tensor
    watermark: torch.Tensor
    biased: torch.Tensor
    barred: torch.Tensor
    """Whether the lane's ends may not come yet."""
    temperature: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    """Its logarithm."""
    typical_p: torch.Tensor
    repetition_penalty: torch.Tensor
    frequency_penalty: torch.Tensor
    presence_penalty: torch.Tensor
    count_penalty: torch.Tensor
    masks: Masks | None = None


@attrs.frozen(eq=False)
class Sampled:
    """What was chosen."""

    tokens: torch.Tensor
    """[rows] int64"""
    logprobs: torch.Tensor
    """[rows] float32: of the token, under the distribution it was drawn from."""
    top_tokens: torch.Tensor
    """[rows, top] int64: most likely first, the lower id first among equals; -1 for what cannot be drawn."""
    top_logprobs: torch.Tensor
    """[rows, top] float32"""


class Sampler:
    """The program and what it keeps on the device."""

    def __init__(self, lanes: int, vocab_size: int, device: Device, gamma: float, delta: float) -> None:
        self.tables = Tables(lanes, vocab_size, device)
        self._device = device
        self._gamma, self._delta = gamma, delta

    def start(self, params: LaneParams) -> None:
        """A sequence enters a lane."""
        self.tables.start(params)

    def __call__(self, logits: torch.Tensor, rows: SamplerInputs) -> Sampled:
        """Choose a token per row of logits [rows, vocab] (any float dtype, not changed), and count it."""
        device = self._device
        scores = process(logits.float(), rows, self.tables, self._gamma, self._delta, device.dynamic)
        best = device.argmax(scores)
        logprobs = scores.log_softmax(-1)
        tokens = torch.where(rows.sample > 0, draw(logprobs, rows), best) if rows.needs.sample else best
        if rows.needs.penalties or rows.needs.occurrences:
            self.tables.count(rows.lanes, tokens)
        chosen = logprobs.gather(1, tokens[:, None])[:, 0]
        return Sampled(tokens, chosen, *most_likely(logprobs, rows.needs.top))


def process(
    scores: torch.Tensor,
    rows: SamplerInputs,
    tables: Tables,
    gamma: float,
    delta: float,
    dynamic: bool = False,
) -> torch.Tensor:
    """The float32 scores [rows, vocab] that a token is drawn from: penalised, warped, -inf where filtered."""
    needs = rows.needs
    if needs.watermark:
        green = green_list(rows.previous, scores.shape[1], gamma) & (rows.watermark > 0)[:, None]
        scores = torch.where(green, scores + delta, scores)
    if needs.penalties:
        scores = _penalise(scores, tables.counts[rows.lanes], rows)
    if needs.occurrences:
        scores = _penalise_occurrences(scores, tables.generated[rows.lanes], rows)
    if needs.bias:
        scores = torch.where(rows.biased[:, None] > 0, scores + tables.bias[rows.lanes], scores)
    if needs.bar:
        scores = scores.masked_fill(tables.ends[rows.lanes] & (rows.barred[:, None] > 0), -torch.inf)
    if rows.masks is not None:
        scores = _mask(scores, rows.masks)
    if needs.sample:
        scores = scores / rows.temperature[:, None]
    if needs.top_k or needs.top_p:
        scores = _filter_top(scores, rows, dynamic)
    if needs.min_p:
        least = scores.amax(-1, keepdim=True) + rows.min_p[:, None]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if needs.typical:
        scores = _filter_typical(scores, rows.typical_p[:, None])
    return scores


def draw(logprobs: torch.Tensor, rows: SamplerInputs) -> torch.Tensor:
    """A token per row, by the inverse of the cumulative distribution in the order of ids; [rows].

    The random number is the middle of one of 2^52 equal parts of (0, 1). A token of probability 0 adds
    nothing to the sum and so cannot be the first that exceeds the target.
    """
    cumulative = logprobs.exp().cumsum(-1, dtype=torch.float64)
    uniform = (rows.draw_high.double() * 2**DRAW_BITS + rows.draw_low.double() + 0.5) * 2.0 ** (
        -2 * DRAW_BITS
    )
    target = uniform[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return chosen.clamp_max(logprobs.shape[1] - 1)  # beyond the last only if a broken model gave NaN


def green_list(previous: torch.Tensor, vocab_size: int, gamma: float) -> torch.Tensor:
    """Which tokens a watermark favours after `previous` [rows]; [rows, vocab] bool.

    After Kirchenbauer et al. 2023 (arXiv 2301.10226). Each token is green if a hash of it, keyed by 15485863
    times the previous token, falls into the first `gamma` of its range. TGI permutes the vocabulary with
    a generator so seeded, whose result differs from device to device; a hash is the same everywhere.
    """
    key = _hash(previous * _WATERMARK_KEY & 0xFFFFFFFF)
    tokens = torch.arange(vocab_size, device=previous.device)
    return _hash(key[:, None] ^ tokens) < int(gamma * 2**32)


def _hash(x: torch.Tensor) -> torch.Tensor:
    """Mix the 32 bits of non-negative int64s below 2^32; products stay below 2^63."""
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (x >> 16) ^ x


def _penalise(scores: torch.Tensor, counts: torch.Tensor, rows: SamplerInputs) -> torch.Tensor:
    """Repetition penalty once per id that occurs; frequency penalty by its share of the sequence's tokens."""
    repetition = rows.repetition_penalty[:, None]
    penalised = torch.where(scores < 0, scores * repetition, scores / repetition)
    scores = torch.where(counts > 0, penalised, scores)
    share = counts.float() / rows.lengths[:, None].float()
    return scores - rows.frequency_penalty[:, None] * share


def _penalise_occurrences(scores: torch.Tensor, counts: torch.Tensor, rows: SamplerInputs) -> torch.Tensor:
    """Presence penalty once per id that was generated; count penalty for each time that it was."""
    scores = scores - rows.presence_penalty[:, None] * (counts > 0)
    return scores - rows.count_penalty[:, None] * counts


def _mask(scores: torch.Tensor, masks: Masks) -> torch.Tensor:
    """-inf for what the masks do not allow; other rows are not touched."""
    bits = 1 << torch.arange(32, dtype=torch.int32, device=scores.device)
    barred = ((masks.words[:, :, None] & bits) == 0).flatten(1)[:, : scores.shape[1]]
    return scores.index_copy(0, masks.rows, scores[masks.rows].masked_fill(barred, -torch.inf))


def _filter_top(scores: torch.Tensor, rows: SamplerInputs, dynamic: bool) -> torch.Tensor:
    """top-k, then top-p among what it left. Equal scores stay or go together."""
    size = scores.shape[1]
    last_kept = torch.where(rows.top_k > 0, rows.top_k, size).clamp_max(size)[:, None] - 1
    for count in (min(_SHORT, size), size) if dynamic else (size,):
        best = scores.topk(count, -1).values if count < size else scores.sort(-1, descending=True).values
        top_k_cut = best.gather(1, last_kept.clamp_max(count - 1))
        cut, enough = top_k_cut, (last_kept < count) | (rows.top_k[:, None] == 0)
        if rows.needs.top_p:
            left = scores.masked_fill((scores < top_k_cut) & (rows.top_k[:, None] > 0), -torch.inf)
            top_p_cut, reached = _top_p_cut(left, best, rows.top_p[:, None])
            cut, enough = torch.maximum(cut, top_p_cut), enough & reached
        if count == size or bool(enough.all()):
            break
    free = (rows.top_k[:, None] == 0) & (rows.top_p[:, None] >= 1)
    return scores.masked_fill((scores < cut) & ~free, -torch.inf)


def _top_p_cut(
    left: torch.Tensor, best: torch.Tensor, top_p: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The lowest score [rows, 1] that top-p keeps, and whether `best`, the highest scores, reach that far.

    The mass of a score comes from all that are `left` and not from a sum over `best`, so that it is the
    same however many of them were sorted. Rows without top-p get -inf.
    """
    highest = left.log_softmax(-1).amax(-1, keepdim=True)
    mass = (best - best[:, :1] + highest).exp().double()
    reached = mass.cumsum(-1)
    kept = (reached - mass < top_p).sum(-1, keepdim=True).clamp_min(1)
    off = top_p >= 1
    cut = best.gather(1, kept - 1).masked_fill(off, -torch.inf)
    return cut, (reached[:, -1:] >= top_p) | off


def _filter_typical(scores: torch.Tensor, typical_p: torch.Tensor) -> torch.Tensor:
    """Keep those whose surprise is closest to the entropy until their mass reaches typical_p.

    After Meister et al. 2022 (arXiv 2202.00666). What is equally far stays or goes together.
    """
    logprobs = scores.log_softmax(-1)
    probabilities = logprobs.exp()
    entropy = -(probabilities * logprobs).nan_to_num(0.0).double().cumsum(-1)[:, -1:].float()
    distances = (-logprobs - entropy).abs()
    ascending, order = distances.sort(-1)
    mass = probabilities.gather(1, order).double().cumsum(-1)
    kept = (mass < typical_p).sum(-1, keepdim=True).clamp_max(scores.shape[1] - 1)
    cut = ascending.gather(1, kept)
    return scores.masked_fill((distances > cut) & (typical_p < 1), -torch.inf)
