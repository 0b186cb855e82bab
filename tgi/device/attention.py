"""What tells the attention of one layer from that of another, and the maths that devices share."""

import attrs
import torch


@attrs.frozen(eq=False)
class AttentionSpec:
    """A score is query · key * scale, then capped, then shifted by distance; then it may be hidden."""

    scale: float
    window: int | None = None
    """How many tokens a token sees: itself and those just before it. None: all of them."""
    slopes: torch.Tensor | None = None
    """[heads of this rank] float32 on the device: slope * (key's position - query's) is added."""
    softcap: float | None = None
    """A score becomes softcap * tanh(score / softcap)."""

    @property
    def changes_scores(self) -> bool:
        """Whether a score is more than a scaled product."""
        return self.slopes is not None or self.softcap is not None


def change_scores(
    scores: torch.Tensor,
    distance: torch.Tensor | None,
    spec: AttentionSpec,
    shape: tuple[int, ...] = (-1, 1, 1),
) -> torch.Tensor:
    """Of scaled scores [rows, heads, queries, keys] with the keys' distances [rows, 1, queries, keys]; or of
    those in other dimensions, of which the heads are like the slopes in this shape."""
    if spec.softcap is not None:
        scores = (scores / spec.softcap).tanh() * spec.softcap
    if spec.slopes is not None:
        assert distance is not None
        scores = scores + spec.slopes.view(shape) * distance
    return scores


def distances(
    starts: torch.Tensor, bases: torch.Tensor | None, context: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """From each query to each key, and which keys it does not see, [rows, tokens, context + tokens] both.

    Rows have `context` places in the cache, from `bases` [rows] on, and new tokens from `starts` [rows, 1]
    on: what the cache has from there on is not theirs.
    """
    place = torch.arange(tokens, dtype=torch.int32, device=starts.device)
    cached = torch.arange(context, dtype=torch.int32, device=starts.device).expand(starts.shape[0], -1)
    if bases is not None:
        cached = cached + bases[:, None]
    new = starts + place
    keys = torch.cat((cached, new), 1)[:, None]
    distance = keys - new[:, :, None]
    absent = torch.cat((cached >= starts, torch.zeros_like(new, dtype=torch.bool)), 1)[:, None]
    return distance, (distance > 0) | absent
