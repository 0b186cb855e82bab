"""Mixtures of experts: each token goes through the few of many MLPs that a router scores best."""

from collections.abc import Sequence

import torch
from torch import nn

from tgi.weights import TensorPart

from .build import Build
from .llama import GatedMLP


class MixtureOfExperts(nn.Module):
    """The best `top` of the `experts` for each token, weighted by the softmax of their scores.

    As in Mixtral (Jiang et al. 2024, arXiv 2401.04088). Every rank has a part of every expert, and the whole
    router, which is the linear layer `router` without bias.
    `normalise`: the weights of the chosen experts add up to 1.
    """

    def __init__(
        self,
        build: Build,
        router: str,
        experts: Sequence[GatedMLP],
        hidden: int,
        top: int,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self._device, self._shard = build.device, build.shard
        self._top, self._normalise = top, normalise
        self._on_first_rank = build.on_first_rank
        self._router = build.linear(TensorPart(f"{router}.weight", (len(experts), hidden)))
        self.experts = nn.ModuleList(experts)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """[T, hidden] to the same, plus the residual."""
        weights = self._weigh(x)
        y = residual * self._on_first_rank
        for index, expert in enumerate(self.experts):
            assert isinstance(expert, GatedMLP)
            weight = weights[:, index : index + 1]
            if self._device.compiles:  # static shapes: every expert computes every token
                y += weight * expert.partial(x)
                continue
            chosen = weight[:, 0].nonzero()[:, 0]
            if len(chosen):
                y.index_add_(0, chosen, weight[chosen] * expert.partial(x[chosen]))
        return self._device.all_reduce(y, self._shard)

    def _weigh(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weights [T, experts] in the dtype of x; 0 for experts that are not chosen."""
        scores = self._device.multiply(x, self._router).float().softmax(-1)
        values, chosen = scores.topk(self._top, -1)
        if self._normalise:
            values = values / values.sum(-1, keepdim=True)
        return torch.zeros_like(scores).scatter(1, chosen, values).to(x.dtype)
