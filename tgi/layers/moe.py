"""Mixtures of experts: each token goes through the few of many MLPs that a router scores best."""

from typing import Any

import torch
from torch import nn

from tgi.device.experts import Experts
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig
from tgi.weights import TensorPart
from tgi.weights.formats import DenseWeight, LinearWeight

from .build import Build


class MixtureOfExperts(nn.Module):
    """A router and its experts, which are modules below `name`, and the MLP that all tokens go through.

    As in Mixtral (Jiang et al. 2024, arXiv 2401.04088) and DeepSeek (Dai et al. 2024, arXiv 2401.06066).
    Every rank has the whole router and a part of every expert, or with `Build.expert_parallel` some experts.
    """

    def __init__(self, build: Build, name: str, config: LlamaConfig, shared: Any) -> None:
        super().__init__()
        assert config.experts is not None
        self._device, self._shard = build.device, build.shard
        self._on_first_rank, self._before = build.on_first_rank, config.experts.before
        self.router = Router(build, name, config.hidden_size, config.experts)
        self.shared: Any = shared
        gate_name = config.experts.shared_gate
        self._shared_gate = None
        if shared is not None and gate_name is not None:
            part = TensorPart(f"{name}.{gate_name}.weight", (1, config.hidden_size))
            self._shared_gate = build.linear(part, exact=True)
        with build.seen_by(config.experts.top / config.experts.count):
            self.experts = read_experts(build, name, config)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None = None, partial: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[T, hidden] to the same, plus the residual, or plus the ranks' partial results."""
        y = self._routed(x)
        if self.shared is not None:
            shared: torch.Tensor = self.shared.partial(x)
            if self._shared_gate is not None:
                shared = shared * self._device.sigmoid(self._device.multiply(x, self._shared_gate))
            y = y + shared
        if residual is not None:
            partial = residual * self._on_first_rank if self._shard.size > 1 else residual
        return self._device.all_reduce(y if partial is None else partial + y, self._shard)

    def _routed(self, x: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.router(x)
        if not self._before:
            return self._device.experts(x, weights, chosen, self.experts)
        each, ones = (x[:, None] * weights[..., None]).flatten(0, 1), torch.ones_like(weights).view(-1, 1)
        y = self._device.experts(each, ones, chosen.reshape(-1, 1), self.experts)
        return y.view(*weights.shape, -1).sum(1)


class Router(nn.Module):
    """The choice of experts: a linear layer and what becomes of its results."""

    def __init__(self, build: Build, name: str, hidden: int, config: ExpertsConfig) -> None:
        super().__init__()
        self._device, self._config = build.device, config
        router = TensorPart(f"{name}.{config.router}.weight", (config.count, hidden))
        if config.wide:
            self._weight: LinearWeight = build.device.prepare_linear(DenseWeight(build.read_wide(router)))
        else:
            self._weight = build.linear(router, exact=True)
        self._bias = self._correction = None
        if config.router_bias:
            self._bias = build.read(TensorPart(f"{name}.{config.router}.bias", (config.count,)))
        if config.correction is not None:
            self._correction = build.read_wide(TensorPart(f"{name}.{config.correction}", (config.count,)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights [T, top] of the experts of each token, in the dtype of x, and their numbers."""
        config = self._config
        wide = x.float() if config.wide else x
        logits = self._device.multiply(wide, self._weight, self._bias).float()
        if config.scores == "sparsemixer":
            weights, chosen = _sparsemixer(logits, config.top, config.jitter)
            return weights.to(x.dtype), chosen
        scores = self._device.sigmoid(logits) if config.scores == "sigmoid" else logits.softmax(-1)
        choice = scores if self._correction is None else scores + self._correction
        if config.groups > 1:
            choice = _best_groups(choice, config)
        chosen = choice.topk(config.top, -1).indices
        weights = scores.gather(1, chosen)
        if config.normalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-20)
        return (weights * config.scale).to(x.dtype), chosen


def _best_groups(choice: torch.Tensor, config: ExpertsConfig) -> torch.Tensor:
    """Return scores of which those outside the best groups are less than any."""
    grouped = choice.view(len(choice), config.groups, -1)
    of_group = grouped.topk(config.group_top, -1).values.sum(-1)
    best = of_group.topk(config.top_groups, -1).indices
    kept = of_group.new_zeros(of_group.shape).scatter(1, best, 1.0)[:, :, None] > 0
    return grouped.masked_fill(~kept, -torch.inf).flatten(1)


def _sparsemixer(logits: torch.Tensor, top: int, jitter: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose one expert after another (Liu et al. 2023, arXiv 2310.00811).

    The weight of each is its share among the experts whose scores are near its own, those before it left out.
    """
    weights, chosen, left = [], [], logits
    for _ in range(top):
        best, index = left.max(-1, keepdim=True)
        far = (best - logits) / torch.maximum(logits.abs(), best) > 2 * jitter
        weights.append(left.masked_fill(far, -torch.inf).softmax(-1).gather(1, index))
        chosen.append(index)
        left = left.scatter(1, index, -torch.inf)
    return torch.cat(weights, 1), torch.cat(chosen, 1)


def read_experts(build: Build, name: str, config: LlamaConfig) -> Experts:
    """Read this rank's share of the experts below the module `name`."""
    settings = config.experts
    assert settings is not None
    everyone, hidden, inner = settings.count, config.hidden_size, settings.inner
    if build.expert_parallel:
        mine, cut = range(everyone)[build.shard.cut(everyone)], slice(0, inner)
    else:
        mine, cut = range(everyone), build.shard.cut(inner)
    stacked = "{}" not in settings.down

    def part(
        tensor: str, index: int, shape: tuple[int, ...], dim: int = 0, indices: slice | None = None
    ) -> TensorPart:
        turned, place = settings.transposed and len(shape) > 1, index if stacked else None
        full = f"{name}.{tensor.format(index)}"
        return TensorPart(full, shape, dim, indices, turned, index=place, count=everyone)

    def up(index: int, *rest: int, kind: str = "") -> list[TensorPart]:
        if len(settings.up) == 2:
            return [part(f"{tensor}{kind}", index, (inner, *rest), 0, cut) for tensor in settings.up]
        cuts = [cut, slice(inner + cut.start, inner + cut.stop)]
        if settings.alternating:
            cuts = [slice(2 * cut.start + odd, 2 * cut.stop, 2) for odd in (0, 1)]
        return [part(f"{settings.up[0]}{kind}", index, (2 * inner, *rest), 0, each) for each in cuts]

    if not stacked:
        for index in set(range(everyone)) - set(mine):
            for tensor in (*settings.up, settings.down):
                build.weights.skip(f"{name}.{tensor.format(index)}".removesuffix(".weight"))
    up_bias = down_bias = None
    if settings.bias:
        up_bias = torch.stack([build.read(*up(index, kind="_bias")) for index in mine])
        down_bias = torch.stack(
            [build.read(part(f"{settings.down}_bias", index, (hidden,))) for index in mine]
        )
        if build.shard.rank and not build.expert_parallel:
            down_bias.zero_()  # it is in the sum over the ranks once
    return build.device.prepare_experts(
        Experts(
            up=[build.linear(*up(index, hidden)) for index in mine],
            down=[build.linear(part(settings.down, index, (hidden, inner), 1, cut)) for index in mine],
            up_bias=up_bias,
            down_bias=down_bias,
            first=mine.start,
            kind=config.activation,
        )
    )
