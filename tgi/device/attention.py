"""What tells the attention of one layer from that of another."""

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


def change_scores(scores: torch.Tensor, distance: torch.Tensor, spec: AttentionSpec) -> torch.Tensor:
    """Of scaled scores [rows, heads, queries, keys], with the keys' distances [rows, 1, queries, keys]."""
    if spec.softcap is not None:
        scores = (scores / spec.softcap).tanh() * spec.softcap
    if spec.slopes is not None:
        scores = scores + spec.slopes[:, None, None] * distance
    return scores
