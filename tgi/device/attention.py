"""Scores of attention: what tells one layer's from another's, and the arithmetic that devices share."""

from typing import NamedTuple

import attrs
import torch


class Kind(NamedTuple):
    """Facts that make layers share a mask."""

    window: int | None
    chunked: bool
    changes_scores: bool

    def first(self, position: int) -> int:
        """Return the position of the first token that a token sees."""
        if self.window is None:
            return 0
        return position - position % self.window if self.chunked else max(0, position + 1 - self.window)

    def hides(self, distance: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
        """Return whether keys are before the first token that their queries see; the layer has a window.

        `distance` is the key's position minus the query's; `queries`, the position of the query, counts
        where `chunked`.
        """
        assert self.window is not None
        return distance < -(queries % self.window) if self.chunked else distance <= -self.window


@attrs.frozen(eq=False)
class AttentionSpec:
    """Scores of one layer: query · key * scale, then capped, then shifted by distance, then masked."""

    scale: float
    """Factor of the product of a query and a key."""
    window: int | None = None
    """Number of tokens that a token sees: itself and the ones just before it; None for all of them."""
    chunked: bool = False
    """Whether a token sees, of the chunks of `window` tokens that the text consists of, only its own."""
    slopes: torch.Tensor | None = None
    """[heads of this rank] float32 on the device: slope * (key's position - query's) is added to a score."""
    softcap: float | None = None
    """Cap of a score, which becomes softcap * tanh(score / softcap)."""
    sinks: torch.Tensor | None = None
    """[heads of this rank] float32 on the device: score of a key whose value is 0, which each head has."""
    wide: bool = True
    """Whether scores need float32: devices may keep those of other layers in the dtype of the model."""

    @property
    def kind(self) -> Kind:
        """Facts that make layers share a mask."""
        return Kind(self.window, self.chunked, self.changes_scores)

    @property
    def changes_scores(self) -> bool:
        """Whether scores are capped, shifted, or joined by a sink's."""
        return self.slopes is not None or self.softcap is not None or self.sinks is not None


def change_scores(
    scores: torch.Tensor,
    distance: torch.Tensor | None,
    spec: AttentionSpec,
    shape: tuple[int, ...] = (-1, 1, 1),
) -> torch.Tensor:
    """Cap and shift scaled scores [rows, heads, queries, keys].

    `distance` [rows, 1, queries, keys] is the key's position minus the query's. In scores of another layout,
    the heads are arranged as the slopes are in `shape`.
    """
    if spec.softcap is not None:
        scores = (scores / spec.softcap).tanh() * spec.softcap
    if spec.slopes is not None:
        assert distance is not None
        scores = scores + spec.slopes.view(shape) * distance
    return scores


def weigh(scores: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Return the softmax of masked scores [rows, heads, queries, keys]; what the sinks get is left out."""
    if spec.sinks is None:
        return scores.softmax(-1)
    sinks = spec.sinks.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]


def distances(
    starts: torch.Tensor, bases: torch.Tensor | None, context: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the distance from each query to each key, and whether the query does not see the key.

    Both are [rows, tokens, context + tokens]. A row has `context` places in the cache, from position `bases`
    [rows] on, and new tokens from position `starts` [rows, 1] on; cached places from there on are not its
    own.
    """
    place = torch.arange(tokens, dtype=torch.int32, device=starts.device)
    new = starts + place
    keys, absent = new, new.new_zeros(new.shape, dtype=torch.bool)
    if context:
        cached = torch.arange(context, dtype=torch.int32, device=starts.device).expand(starts.shape[0], -1)
        if bases is not None:
            cached = cached + bases[:, None]
        keys, absent = torch.cat((cached, new), 1), torch.cat((cached >= starts, absent), 1)
    distance = keys[:, None] - new[:, :, None]
    return distance, (distance > 0) | absent[:, None]
