"""Settings of a LoRA adapter: its adapter_config.json, in the form of PEFT."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from .architecture import ConfigError, JsonReader
from .lookup import read_object

CONFIG = "adapter_config.json"
_IGNORED = frozenset(
    """
    auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules fan_in_fan_out inference_mode
    layers_pattern layers_to_transform lora_dropout megatron_config megatron_core peft_version
    qalora_group_size revision runtime_config target_modules target_parameters task_type eva_config
    loftq_config
    """.split()  # noqa: SIM905
)
"""Fields that change no number: the file with the tensors tells which modules have some."""
_ADVICE = {
    "use_dora": "DoRA scales the base weights too: merge the adapter into its base model",
    "modules_to_save": "whole modules were trained beside the adapter: merge it into its base model",
    "bias": "biases were trained beside the adapter: merge it into its base model",
    "lora_bias": "it has biases: merge it into its base model",
    "trainable_token_indices": "embeddings were trained beside the adapter: merge it into its base model",
    "layer_replication": "it repeats layers of its base model: merge it",
    "alora_invocation_tokens": "it is an activated LoRA, which begins in the middle of a prompt",
    "init_lora_weights": "the base weights were changed as well: convert it to a plain LoRA with PEFT "
    "(path_initial_model_for_weight_conversion)",
}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
"""Values with which a field changes no number, beside false, null and what is empty."""


@attrs.frozen(kw_only=True)
class LoraConfig:
    """The factor of each module's product, and the greatest rank."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    """Ranks of modules, by regular expressions of their names."""
    alphas: Mapping[str, float]
    """Values of alpha of modules, likewise."""
    rank_stabilised: bool
    """Whether alpha is divided by the root of the rank (Kalajdzievski 2023, arXiv 2312.03732)."""

    @classmethod
    def read(cls, folder: Path) -> "LoraConfig":
        """Read the file. Raises ConfigError, also for a kind of adapter that would change other numbers."""
        path = folder / CONFIG
        if not path.exists():
            raise ConfigError(f"{folder} has no {CONFIG}: {_advice(folder)}")
        get = JsonReader(read_object(path), str(path))
        kind = get(str, "peft_type")
        if kind != "LORA":
            raise ConfigError(f"{path}: 'peft_type' is {kind!r}, and only 'LORA' is supported")
        config = cls(
            rank=get.size("r"),
            alpha=get(float, "lora_alpha"),
            ranks=_numbers(get, "rank_pattern"),
            alphas=_numbers(get, "alpha_pattern"),
            rank_stabilised=get(bool, "use_rslora", False),
        )
        for _, key, value in get.unread():
            if value and key not in _IGNORED and value not in _NEUTRAL.get(key, ()):
                advice = _ADVICE.get(key, "this field is not known here, and might change the text")
                raise ConfigError(f"{path}: {key!r} is {json.dumps(value)[:60]}, not supported: {advice}")
        return config

    @property
    def max_rank(self) -> int:
        """Greatest rank that a module may have."""
        return max(self.rank, *self.ranks.values()) if self.ranks else self.rank

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of a module's product of that rank."""
        alpha = next((value for key, value in self.alphas.items() if _matches(key, module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _advice(folder: Path) -> str:
    """Say what to do about a folder without an adapter, which may be that of a training."""
    steps = [
        (int(path.parent.name.rpartition("-")[2]), path)
        for path in folder.glob(f"checkpoint-[0-9]*/{CONFIG}")
    ]
    return f"name one of its checkpoints, as {max(steps)[1].parent}" if steps else "it is no LoRA adapter"


def _matches(key: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({key})$", module) is not None


def _numbers(get: JsonReader, key: str) -> Mapping[str, Any]:
    """Return a pattern: an object of numbers above 0 by regular expressions. Raises ConfigError."""
    numbers = get(dict, key, {})
    for pattern, number in numbers.items():
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(
                f"{CONFIG}: {key!r} has a pattern that is no regular expression: {error}"
            ) from error
        if isinstance(number, bool) or not isinstance(number, int | float) or number <= 0:
            raise ConfigError(f"{CONFIG}: {key!r} has {number!r}, expected a number above 0")
    return numbers
