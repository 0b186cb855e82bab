"""Rotary position embeddings (RoPE): the angles of a batch, computed once per step for all layers.

The formulas are those of the papers (linear: Chen et al. 2023, arXiv 2306.15595; dynamic NTK: bloc97 and
emozilla; YaRN: Peng et al. 2023, arXiv 2309.00071; LongRoPE: Ding et al. 2024, arXiv 2402.13753; llama3:
Meta's reference code) as transformers' `modeling_rope_utils` computes them.

Dynamic and LongRoPE depend on the length of the sequence. For a token of the prompt that is the length of the
whole prompt, for a generated one its position + 1 (`Batch.contexts`). transformers' `generate` does the same
for a single sequence that stays within the original length, starts beyond it, or crosses it. So no row
depends on its neighbours, or on how its prompt was cut into chunks.
"""

import contextlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import nn

from tgi.device.batch import Batch
from tgi.plugins.rope_config import RopeConfig

from .build import Build

_TABLED = 1 << 14
"""Positions whose cosines and sines are kept: a few MiB."""


class Rotary(nn.Module):
    """Turns positions into cosines and sines. Layers that rotate alike share one."""

    reads: ClassVar[frozenset[str]] = frozenset(("positions", "contexts"))
    """Fields of a batch that it looks at."""

    def __init__(self, build: Build, config: RopeConfig) -> None:
        super().__init__()
        self._config = config
        self._dtype = build.dtype
        self._device = build.device
        self._factor = attention_factor(config)
        device = build.device.torch_device
        self._exponents = (torch.arange(0, config.dim, 2).float() / config.dim).to(device)
        self._short = frequencies(config).to(device)
        self._long = frequencies(config, beyond=True).to(device)
        self._looked_up = not (build.device.compiles or config.kind in ("longrope", "dynamic"))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cos and sin as `Device.rotary` takes them, [T, 1, dim]."""
        if self._looked_up:
            with contextlib.suppress(IndexError):  # a position is beyond the table
                cos, sin = self._table
                return cos.index_select(0, batch.positions), sin.index_select(0, batch.positions)
        return self._turn(batch.positions, self._frequencies(batch))

    @cached_property
    def _table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Results for the first positions: to look them up takes a step less time than to compute them."""
        positions = torch.arange(min(_TABLED, self._config.max_position), device=self._short.device)
        return self._turn(positions, self._short)

    def _turn(self, positions: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = (x * self._factor for x in self._device.cos_sin(positions[:, None].float() * frequencies))
        return self._device.rotation(cos.to(self._dtype), sin.to(self._dtype))

    def _frequencies(self, batch: Batch) -> torch.Tensor:
        """Return [dim / 2], or [T, dim / 2] if they depend on the length of the sequence."""
        config = self._config
        if config.kind == "longrope":
            return torch.where(
                batch.contexts[:, None] > config.original_max_position, self._long, self._short
            )
        if config.kind == "dynamic":
            lengths = batch.contexts.clamp_min(config.max_position).float()
            stretch = config.factor * lengths / config.max_position - (config.factor - 1)
            theta = config.theta * stretch ** (config.dim / (config.dim - 2))
            return 1.0 / theta[:, None] ** self._exponents
        return self._short


class Rotations(nn.Module):
    """The rotations of all layers, which may differ, as one part of the model."""

    reads: ClassVar[frozenset[str]] = frozenset(("positions", "contexts"))
    """Fields of a batch that it looks at."""

    def __init__(self, build: Build, configs: Sequence[RopeConfig]) -> None:
        super().__init__()
        self.parts = [Rotary(build, config) for config in configs]  # no ModuleList, which is for layers

    def forward(self, batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return cos and sin by each config."""
        return [part(batch) for part in self.parts]


def frequencies(config: RopeConfig, beyond: bool = False) -> torch.Tensor:
    """Return the radians per position of each pair of features, [dim / 2] float32.

    `beyond` the original length, longrope has others.
    """
    wave = config.theta ** (torch.arange(0, config.dim, 2).float() / config.dim)
    if config.kind == "linear":
        return 1.0 / wave / config.factor
    if config.kind == "longrope":
        return 1.0 / (torch.tensor(config.long_factor if beyond else config.short_factor) * wave)
    if config.kind == "yarn":
        return _yarn(config, wave)
    if config.kind == "llama3":
        return _llama3(config, 1.0 / wave)
    return 1.0 / wave


def attention_factor(config: RopeConfig) -> float:
    """Return the factor of cos and sin by which attention stays as sharp over more tokens."""
    if config.attention_factor is not None:
        return config.attention_factor
    if config.factor <= 1:
        return 1.0
    if config.kind == "yarn":
        log = 0.1 * math.log(config.factor)
        if config.mscale and config.mscale_all_dim:
            return (log * config.mscale + 1) / (log * config.mscale_all_dim + 1)
        return log + 1
    if config.kind == "longrope":
        return math.sqrt(1 + math.log(config.factor) / math.log(config.original_max_position))
    return 1.0


def _yarn(config: RopeConfig, wave: torch.Tensor) -> torch.Tensor:
    """Keep the frequency of fast features and interpolate slow ones, with a ramp between them."""

    def feature(rotations: float) -> float:
        """Return the index of the feature that makes that many turns within the original length."""
        turns = config.original_max_position / (rotations * 2 * math.pi)
        return config.dim * math.log(turns) / (2 * math.log(config.theta))

    low, high = feature(config.beta_fast), feature(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    if low == high:
        high += 0.001
    ramp = ((torch.arange(config.dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return ramp / (config.factor * wave) + (1 - ramp) / wave


def _llama3(config: RopeConfig, frequency: torch.Tensor) -> torch.Tensor:
    """Keep waves that fit often into the original length and stretch long ones, with a smooth change."""
    fits = config.original_max_position * frequency / (2 * math.pi)
    low, high = config.low_freq_factor, config.high_freq_factor
    smooth = ((fits - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequency / config.factor + smooth * frequency
