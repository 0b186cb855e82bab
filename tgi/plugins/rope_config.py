"""Reads the settings of rotary position embeddings (RoPE) in config.json; `tgi.layers.rotary` computes them.

Both spellings are understood: `rope_scaling` with `rope_theta` beside it, and `rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

import attrs

from .architecture import ConfigError, JsonReader

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_ALIASES = {"su": "longrope"}


@attrs.frozen(kw_only=True)
class RopeConfig:
    """A kind of RoPE with its parameters; those of other kinds are neutral."""

    kind: str = "default"
    theta: float = 10_000.0
    dim: int
    """Number of features of a head that are rotated."""
    max_position: int
    original_max_position: int
    """Tokens in the longest sequence before the scaling."""
    factor: float = 1.0
    attention_factor: float | None = None
    """Factor of cos and sin; None: the kind derives it from `factor`."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def depends_on_length_beyond(self) -> int | None:
        """The `ModelConfig.prefix_limit` of a model with this RoPE."""
        if self.kind == "dynamic":
            return self.max_position
        return self.original_max_position if self.kind == "longrope" else None


def read_rope(get: JsonReader, head_dim: int, layers: str = "") -> RopeConfig:
    """Read the RoPE of a model whose heads have `head_dim` features. Raises ConfigError.

    `layers` is one of the types of layers, if "rope_parameters" has a RoPE for each.
    """
    scaling, parameters = get.section("rope_scaling"), get.section("rope_parameters")
    if parameters and layers:
        parameters = parameters.section(layers)
    if scaling and parameters and scaling.data and parameters.data and scaling.data != parameters.data:
        raise ConfigError("config.json: 'rope_scaling' and 'rope_parameters' differ")
    if scaling and parameters and scaling.data:
        parameters.all()
    scaling = next((each for each in (scaling, parameters) if each and each.data), JsonReader({}))
    kind = scaling(str, "rope_type", scaling(str, "type", "default"))
    scaling(bool, "finetuned", None)  # a remark of YaRN's authors
    kind = _ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise ConfigError(f"RoPE of type {kind!r} is not supported, only {', '.join(KINDS)}")
    share = scaling(float, "partial_rotary_factor", get(float, "partial_rotary_factor", 1.0))
    max_position = get(int, "max_position_embeddings", 2048)
    if int(head_dim * share) % 2 or not 0 < share <= 1:
        raise ConfigError(
            f"config.json: 'partial_rotary_factor' is {share}, which divides no head of {head_dim}"
        )
    original = scaling(int, "original_max_position_embeddings", max_position)
    common: dict[str, Any] = {
        "kind": kind,
        "theta": scaling.positive("rope_theta", get.positive("rope_theta", 10_000.0)),
        "dim": int(head_dim * share),
        "max_position": max_position,
        "original_max_position": get(int, "original_max_position_embeddings", original),
    }
    if "original_max_position_embeddings" in scaling and original != common["original_max_position"]:
        raise ConfigError("config.json: 'original_max_position_embeddings' differs from that of the RoPE")
    return RopeConfig(**common, **_parameters(kind, scaling, common))


def _parameters(kind: str, scaling: JsonReader, common: Mapping[str, Any]) -> dict[str, Any]:
    """Read the parameters of one kind. Raises ConfigError if one is missing."""
    ratio = common["max_position"] / common["original_max_position"]
    if kind in ("linear", "dynamic"):
        return {"factor": scaling.positive("factor")}
    if kind == "llama3":
        names = ("factor", "low_freq_factor", "high_freq_factor")
        return {name: scaling.positive(name) for name in names}
    if kind == "yarn":
        return {
            "factor": scaling.positive("factor", ratio),
            "attention_factor": scaling(float, "attention_factor", None),
            "beta_fast": scaling(float, "beta_fast", 32.0) or 32.0,
            "beta_slow": scaling(float, "beta_slow", 1.0) or 1.0,
            "mscale": scaling(float, "mscale", 0.0),
            "mscale_all_dim": scaling(float, "mscale_all_dim", 0.0),
            "truncate": scaling(bool, "truncate", True),
        }
    if kind == "longrope":
        return {
            "factor": scaling.positive("factor", ratio),
            "attention_factor": scaling(float, "attention_factor", _mscale(scaling)),
            "short_factor": _factors(scaling, "short_factor", common["dim"] // 2),
            "long_factor": _factors(scaling, "long_factor", common["dim"] // 2),
        }
    return {}


def _mscale(scaling: JsonReader) -> float | None:
    """Read Phi-MoE's names of "attention_factor", which may have two values. Raises ConfigError if it has."""
    short, long = (scaling(float, f"{length}_mscale", None) for length in ("short", "long"))
    if short != long:
        raise ConfigError("config.json: 'short_mscale' and 'long_mscale' of the RoPE differ")
    return short


def _factors(scaling: JsonReader, key: str, length: int) -> tuple[float, ...]:
    values = scaling(list, key)
    if len(values) != length or not all(type(value) in (int, float) for value in values):
        raise ConfigError(
            f"config.json: {key!r} of the RoPE must be {length} numbers, half of what is rotated"
        )
    return tuple(map(float, values))
