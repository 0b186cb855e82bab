"""Turns logits into tokens: one program for all rows of a step, with parameters as columns and static shapes.

The order is TGI's: watermark, penalties, logit bias, ends that may not come yet, grammar masks, temperature,
top-k, top-p, min-p, typical-p, choice. The result of a row depends on that row alone, bit for bit. No
reduction runs over rows, and no sum is split differently for one row than for many, as `Tensor.sum` of a
single row is. The lowest id wins a tie. A part that no row needs is skipped only if it would change no bit.
(Classes that are made within a program are not frozen: `torch.compile` cannot trace how attrs makes those.)

Probabilities are added as integers, multiples of 2^-30: their sums are exact in any order, without float64.

A row that is sampled several times in one step may not have penalties: the counts of a step's samples are
added after all of them were drawn.
"""

from collections.abc import Mapping

import attrs
import numpy as np
import numpy.typing as npt
import torch

from tgi.device.base import Device
from tgi.device.drawing import goal, mixed, top_cut, weights
from tgi.sampling import COLUMNS, FLOATS, INTS, NEUTRAL

from .lanes import Tables

_WATERMARK_KEY = 15485863


Numbers = npt.NDArray[np.generic]
Needs = frozenset[str]
"""Parameters that some row of a step uses, "barred", and "wide" for a top-k beyond the window; decided on the
host, before the program runs."""
ALL_NEEDS = frozenset((*COLUMNS, "barred", "wide"))
DRAW_NEEDS = frozenset(("sample", "temperature", "top_k", "top_p", "min_p"))
WINDOW = 1024
"""Number of best tokens among which a plain draw decides top-k and top-p."""
_NEUTRAL_INTS, _NEUTRAL_FLOATS = (np.array([[NEUTRAL[name]] for name in names]) for names in (INTS, FLOATS))
_HISTORY_NEEDS = frozenset(("repetition_penalty", "frequency_penalty"))
_GENERATED_NEEDS = frozenset(("presence_penalty", "count_penalty"))


def needs_of(ints: Numbers, floats: Numbers, barred: Numbers) -> Needs:
    """Return the needs of rows with these columns: [parameters, rows] twice, and [rows]."""
    wide = ints[INTS.index("top_k")] > WINDOW
    used = [*(ints != _NEUTRAL_INTS).any(1), *(floats != _NEUTRAL_FLOATS).any(1), barred.any(), wide.any()]
    return frozenset(name for name, one in zip((*INTS, *FLOATS, "barred", "wide"), used, strict=True) if one)


@attrs.define(eq=False)
class Masks:
    """Tokens that masked rows may give."""

    words: torch.Tensor
    """[m, words] int32: one bit per token of the vocabulary, the lowest first."""
    rows: torch.Tensor | None = None
    """[m]: the masked rows; None stands for all, in order."""


@attrs.define(eq=False, kw_only=True)
class SamplerInputs:
    """The rows of a step. All tensors are [rows] on the device, integers or float32."""

    needs: Needs
    lanes: torch.Tensor
    lengths: torch.Tensor
    """Number of tokens of the sequence so far, prompt included."""
    previous: torch.Tensor
    """Last token of the sequence so far."""
    draws: torch.Tensor
    """Random bits of the row."""
    barred: torch.Tensor
    """Whether the lane's ends may not come yet."""
    params: Mapping[str, torch.Tensor]
    """The columns of `tgi.sampling.COLUMNS`, by name."""
    top: int = 0
    """Number of most likely tokens to report."""
    masks: Masks | None = None
    windowed: bool = False
    """Whether top-k and top-p look at the WINDOW best tokens alone, and not at a sorted vocabulary."""


@attrs.define(eq=False)
class Sampled:
    """The tokens that were chosen, and the most likely ones."""

    tokens: torch.Tensor
    """[rows]: the chosen tokens; -1 where the window does not decide which tokens top-p keeps."""
    logprobs: torch.Tensor
    """[rows] float32: log-probability of the token in the distribution that it was drawn from."""
    top_tokens: torch.Tensor | None
    """[rows, top]: most likely first, lower ids first among equals; -1 for a token that cannot be drawn. None
    if none are to be reported."""
    top_logprobs: torch.Tensor | None
    """[rows, top] float32: log-probabilities of `top_tokens`."""


class Sampler:
    """Chooses the tokens of a step, and keeps the tables of all lanes."""

    def __init__(self, lanes: int, vocab_size: int, device: Device, gamma: float, delta: float) -> None:
        self.tables = Tables(lanes, vocab_size, device)
        self._device = device
        self._gamma, self._delta = gamma, delta

    def __call__(self, logits: torch.Tensor, rows: SamplerInputs) -> Sampled:
        """Choose a token per row of logits [rows, vocab] (any float dtype, not changed), and count it."""
        device, scores, undecided = self._device, logits, None
        if rows.needs or rows.masks is not None:
            scores, undecided = process(logits.float(), rows, self.tables, device, self._gamma, self._delta)
        if "sample" not in rows.needs and not rows.top:
            tokens, chosen = device.greedy(scores)
        else:
            scores = scores.float()
            tokens, logprobs = device.argmax(scores), device.log_softmax(scores)
            if "sample" in rows.needs:
                drawn = device.draw(logprobs, rows.draws.int())
                tokens = torch.where(rows.params["sample"] > 0, drawn, tokens)
            if undecided is not None:
                tokens = torch.where(undecided, -1, tokens)
            chosen = logprobs.gather(1, tokens.clamp_min(0)[:, None].long())[:, 0]
        best = device.most_likely(logprobs, rows.top) if rows.top else (None, None)
        if rows.needs & (_HISTORY_NEEDS | _GENERATED_NEEDS):
            self.tables.count(rows.lanes, tokens)
        return Sampled(tokens, chosen, *best)


def process(
    scores: torch.Tensor,
    rows: SamplerInputs,
    tables: Tables,
    device: Device,
    gamma: float,
    delta: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the float32 scores [rows, vocab] to draw from: penalised, warped, -inf where filtered.

    With them comes for which rows [rows] they are wrong, since the window does not decide what top-p keeps;
    None: for no row.
    """
    needs, undecided = rows.needs, None
    if "watermark" in needs:
        green = green_list(rows.previous, scores.shape[1], gamma) & (rows.params["watermark"] > 0)[:, None]
        scores = torch.where(green, scores + delta, scores)
    if needs & _HISTORY_NEEDS:
        scores = _penalise(scores, tables.rows(tables.counts, rows.lanes), rows)
    if needs & _GENERATED_NEEDS:
        scores = _penalise_occurrences(scores, tables.rows(tables.generated, rows.lanes), rows)
    if "logit_bias" in needs:
        scores = torch.where(
            rows.params["logit_bias"][:, None] > 0, scores + tables.rows(tables.bias, rows.lanes), scores
        )
    if "barred" in needs:
        scores = scores.masked_fill(
            tables.rows(tables.ends, rows.lanes) & (rows.barred[:, None] > 0), -torch.inf
        )
    if rows.masks is not None:
        scores = _mask(scores, rows.masks)
    if "sample" in needs:
        scores = scores / rows.params["temperature"][:, None]
    if "top_k" in needs or "top_p" in needs:
        scores, undecided = _filter_top(scores, rows, device)
    if "min_p" in needs:
        least = scores.amax(-1, keepdim=True) + rows.params["min_p"][:, None]
        scores = scores.masked_fill(scores < least, -torch.inf)
    if "typical_p" in needs:
        scores = _filter_typical(scores, rows.params["typical_p"][:, None], device)
    return scores, undecided


def green_list(previous: torch.Tensor, vocab_size: int, gamma: float) -> torch.Tensor:
    """Return the tokens [rows, vocab] bool that a watermark favours after the tokens `previous` [rows].

    After Kirchenbauer et al. 2023 (arXiv 2301.10226). Each token is green if a hash of it, keyed by 15485863
    times the previous token, falls into the first `gamma` of its range. TGI permutes the vocabulary with
    a generator so seeded, whose result differs from device to device; a hash is the same everywhere.
    """
    key = mixed(previous.int() * _WATERMARK_KEY)
    tokens = torch.arange(vocab_size, dtype=torch.int32, device=previous.device)
    signed = mixed(key[:, None] ^ tokens) ^ -(2**31)  # ordered as the unsigned hash is
    return signed <= max(int(gamma * 2**32) - 1 - 2**31, -(2**31))


def _penalise(scores: torch.Tensor, counts: torch.Tensor, rows: SamplerInputs) -> torch.Tensor:
    """Apply the repetition penalty once per id that occurs, and the frequency penalty by its share."""
    repetition = rows.params["repetition_penalty"][:, None]
    penalised = torch.where(scores < 0, scores * repetition, scores / repetition)
    scores = torch.where(counts > 0, penalised, scores)
    share = counts / rows.lengths[:, None].float()
    return scores - rows.params["frequency_penalty"][:, None] * share


def _penalise_occurrences(scores: torch.Tensor, counts: torch.Tensor, rows: SamplerInputs) -> torch.Tensor:
    """Apply the presence penalty once per generated id, and the count penalty for each occurrence."""
    scores = scores - rows.params["presence_penalty"][:, None] * (counts > 0)
    return scores - rows.params["count_penalty"][:, None] * counts


def _mask(scores: torch.Tensor, masks: Masks) -> torch.Tensor:
    """Set the scores of tokens that a mask forbids to -inf. Rows without a mask stay as they are."""
    bits = 1 << torch.arange(32, dtype=torch.int32, device=scores.device)
    barred = ((masks.words[:, :, None] & bits) == 0).flatten(1)[:, : scores.shape[1]]
    if masks.rows is None:
        return scores.masked_fill(barred, -torch.inf)
    rows = masks.rows.long()
    return scores.index_copy(0, rows, scores[rows].masked_fill(barred, -torch.inf))


def _filter_top(
    scores: torch.Tensor, rows: SamplerInputs, device: Device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Apply top-k, then top-p among the rest. Equal scores stay or go together.

    With the scores comes which rows [rows] are undecided.
    """
    top_k = rows.params["top_k"] if "top_k" in rows.needs else None
    top_p = rows.params["top_p"] if "top_p" in rows.needs else None
    if not rows.windowed or scores.shape[1] <= WINDOW:
        return scores.masked_fill(scores < device.top_cut(scores, top_k, top_p), -torch.inf), None
    best = scores.topk(WINDOW, -1).values
    cut, reached = top_cut(scores, best, top_k, top_p, device.first_beyond)
    scores = scores.masked_fill(scores < cut, -torch.inf)
    if top_p is None or reached is None:
        return scores, None
    more = (reached[:, 0] < goal(top_p)) & (best[:, -1] >= cut[:, 0]) & (best[:, -1] > -torch.inf)
    return scores, more & (top_p < 1)


def _filter_typical(scores: torch.Tensor, typical_p: torch.Tensor, device: Device) -> torch.Tensor:
    """Keep those whose surprise is closest to the entropy until their mass reaches typical_p.

    After Meister et al. 2022 (arXiv 2202.00666). What is equally far stays or goes together.
    """
    logprobs = scores.log_softmax(-1)
    entropy = -device.total((logprobs.exp() * logprobs).nan_to_num(0.0))
    distances = (-logprobs - entropy).abs()
    ascending, order = distances.sort(-1)
    mass = weights(logprobs).gather(1, order).cumsum(-1, dtype=torch.int32)
    kept = (mass < goal(typical_p)).sum(-1, keepdim=True).clamp_max(scores.shape[1] - 1)
    cut = ascending.gather(1, kept)
    return scores.masked_fill((distances > cut) & (typical_p < 1), -torch.inf)
