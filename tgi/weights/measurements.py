"""Scales for fp8 from measurements, in the files of Neural Compressor, which `tgi calibrate` writes too.

A config file has settings, and the beginning P of the names of files: P_hooks_maxabs.json, or one of each
rank, P_hooks_maxabs_RANK_RANKS.json, has by the name of a module the greatest absolute values of its inputs.
Formulas are those of the library's `scale_methods`.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch

from tgi.plugins import ConfigError
from tgi.plugins.lookup import read_object

Nodes = Mapping[str, Mapping[str, Any]]
"""Modules by name: "inputs", a list with the measurements of each, perhaps in lists of lists."""
_FUSED = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
}  # fmt: skip
"""Names under which layers are measured that a server has joined."""
_NARROW = 240.0
"""Greatest number in 8 bits of devices whose own scales are few."""
_HARMLESS = frozenset({
    "method", "observer", "mode", "scale_method", "allowlist", "blocklist", "whitelist", "blacklist",
    "dump_stats_path", "dump_stats_xlsx_path", "fp8_config", "hp_dtype", "scale_format", "use_qdq",
    "fake_quant", "measure_exclude", "recalc_scales", "ignore_modules_wo_measures", "device_for_scales",
    "seperate_measure_files", "quantize_weight", "dynamic_quantization", "scale_params",
    "calibration_sample_interval", "row_parallel_linear_allreduce_quantization", "description", "name",
})  # fmt: skip
"""Settings that are read here, or that change no number."""


def _unit(scale: torch.Tensor, limit: float) -> torch.Tensor:  # noqa: ARG001
    return torch.ones_like(scale)


def _single(scale: torch.Tensor, limit: float) -> torch.Tensor:
    return torch.full_like(scale, 16 if limit == _NARROW else 128)


def _as_is(scale: torch.Tensor, limit: float) -> torch.Tensor:  # noqa: ARG001
    return scale


def _power(scale: torch.Tensor, limit: float) -> torch.Tensor:  # noqa: ARG001
    return scale.log2().ceil().exp2()


def _aligned(scale: torch.Tensor, limit: float) -> torch.Tensor:
    """Round up to a scale that the device applies at no cost: 2^-8, 2^-4, 1 or 16, or more powers of 2."""
    if limit == _NARROW:
        return ((_power(scale, limit).log2() / 4).ceil() * 4).clamp(-8, 4).exp2()
    return _power(scale, limit).log2().clamp(-55, 7).exp2()


class Rule(NamedTuple):
    """A way from the greatest number to a scale."""

    round: Callable[[torch.Tensor, float], torch.Tensor]
    backoff: float
    """Share of the range of 8 bits that the greatest number takes."""
    channels: bool = False
    """Whether each output feature of a weight has a scale of its own."""

    def scale(self, greatest: torch.Tensor, limit: float) -> torch.Tensor:
        """Return the scales for the greatest numbers, where 8 bits reach up to `limit`.

        They are computed in bfloat16, and returned in float32.
        """
        scale = greatest.bfloat16() / (limit * self.backoff)
        return self.round(scale.clamp_min(torch.finfo(torch.bfloat16).tiny), limit).float()


_METHODS = {
    "unit_scale": (Rule(_unit, 1), Rule(_unit, 1)),
    "hw_aligned_single_scale": (Rule(_single, 1), Rule(_single, 1)),
    "maxabs_hw": (Rule(_aligned, 0.25), Rule(_aligned, 0.5)),
    "maxabs_pow2": (Rule(_power, 0.25), Rule(_power, 0.5)),
    "maxabs_arbitrary": (Rule(_as_is, 0.25), Rule(_as_is, 0.5)),
    "act_maxabs_hw_weights_pcs_maxabs_pow2": (Rule(_aligned, 0.25), Rule(_power, 0.5, channels=True)),
    "act_maxabs_pow2_weights_pcs_maxabs_pow2": (Rule(_power, 0.25), Rule(_power, 0.5, channels=True)),
}
"""Rules for inputs and for weights."""
_UNMEASURED = ("unit_scale", "hw_aligned_single_scale")
"""Methods that need no measurements."""


@attrs.frozen
class Chosen:
    """Modules that a config file lets be in 8 bits."""

    types: frozenset[str]
    names: tuple[str, ...]
    """Regular expressions for a part of the name."""
    blocked_types: frozenset[str]
    blocked_names: tuple[str, ...]

    def __call__(self, name: str, kind: str) -> bool:
        """Return whether a module is chosen; `kind` ends the names of its types: "Linear" or "KVCache"."""
        if any(re.search(pattern, name) for pattern in self.blocked_names) or self._has(
            self.blocked_types, kind
        ):
            return False
        if not self.types and not self.names:
            return True
        return self._has(self.types, kind) or any(re.search(pattern, name) for pattern in self.names)

    @staticmethod
    def _has(types: frozenset[str], kind: str) -> bool:
        return any(one.endswith(kind) for one in types)


@attrs.frozen
class Measurements:
    """The settings and measurements of a config file."""

    path: Path
    nodes: Nodes | None
    """None: the method needs none."""
    inputs: Rule
    weights: Rule
    chosen: Chosen
    optional: bool = False
    """Whether layers that were not measured are left as they are."""
    narrow: bool = False
    """Whether scales are for the narrow range on devices with a wider one, too."""

    @classmethod
    def read(cls, path: Path) -> "Measurements":
        """Read a config file and the measurements that it names. Raises ConfigError."""
        config = read_object(path)
        if fault := _fault(config):
            raise ConfigError(f"{path}: {fault}")
        method = str(config.get("scale_method", "maxabs_hw")).lower()
        allowed = config.get("allowlist") or config.get("whitelist") or {}
        blocked = config.get("blocklist") or config.get("blacklist") or {}
        chosen = Chosen(
            frozenset(allowed.get("types") or ()), tuple(allowed.get("names") or ()),
            frozenset(blocked.get("types") or ()), tuple(blocked.get("names") or ()),
        )  # fmt: skip
        return cls(
            path,
            None if method in _UNMEASURED else _read_nodes(path, str(config.get("dump_stats_path", "stats"))),
            *_METHODS[method],
            chosen,
            str(config.get("ignore_modules_wo_measures", False)).lower() == "true",
            str(config.get("device_for_scales")).endswith("2"),
        )

    @property
    def has_weights(self) -> bool:
        """Whether any linear layer may be in 8 bits."""
        return self.chosen("", "Linear") or bool(self.chosen.names)

    def limit(self, limit: float) -> float:
        """Return the greatest number that scales are for, on a device with that one."""
        return _NARROW if self.narrow else limit

    def input_scale(self, module: str, limit: float) -> torch.Tensor | None:
        """Return the scale [] of a linear layer's input; None: the layer is left as it is."""
        if not self.chosen(module, "Linear"):
            return None
        start, _, last = module.rpartition(".")
        joined = f"{start}.{_FUSED[last]}" if last in _FUSED else module
        found = self._greatest((module, joined))
        if found is None and not self.optional:
            raise ConfigError(
                f"{self.path}: there is no measurement of {module!r}; name it in 'blocklist', or set "
                "'ignore_modules_wo_measures' to true, to leave it as it is"
            )
        return None if found is None else self.inputs.scale(found, self.limit(limit))

    def cache_scales(self, attention: str, limit: float) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return the scales [] of an attention layer's keys and values; None: they have none."""
        if not self.chosen(f"{attention}.k_cache", "KVCache"):
            return None
        found = [self._greatest(self._caches(attention, kind)) for kind in "kv"]
        key, value = (one and self.inputs.scale(one, self.limit(limit)) for one in found)
        return None if key is None or value is None else (key, value)

    def _caches(self, attention: str, kind: str) -> Iterator[str]:
        yield f"{attention}.{kind}_cache"
        for name in self.nodes or ():
            if name.startswith(f"{attention}.") and name.endswith(f".{kind}_cache"):
                yield name

    def _greatest(self, names: Any) -> torch.Tensor | None:
        """Return the greatest input [] of the first of these modules that was measured."""
        if self.nodes is None:
            return torch.ones(())
        for name in names:
            if name in self.nodes:
                return torch.tensor(max(_numbers(self.nodes[name]["inputs"][0])))
        return None


def _numbers(values: Any) -> Iterator[float]:
    if isinstance(values, list):
        for one in values:
            yield from _numbers(one)
    else:
        yield float(values)


def _fault(config: Mapping[str, Any]) -> str | None:
    """Return the first setting that asks for something else."""
    mode, method = str(config.get("mode", "QUANTIZE")).upper(), config.get("scale_method", "maxabs_hw")
    if mode == "MEASURE":
        return "'mode' is MEASURE: measure with `tgi calibrate`"
    if mode != "QUANTIZE":
        return f"'mode' is {mode}, and only QUANTIZE is supported"
    if str(config.get("fp8_config", "E4M3")).upper() != "E4M3":
        return f"'fp8_config' is {config['fp8_config']!r}, and only E4M3 is supported"
    if str(config.get("observer", "maxabs")) != "maxabs":
        return f"'observer' is {config['observer']!r}, and only maxabs is supported"
    if str(config.get("dynamic_quantization", False)).lower() == "true":
        return "'dynamic_quantization' is set: use --quantize fp8, which needs no measurements"
    if config.get("scale_params"):
        return "'scale_params' is set"
    if not isinstance(method, str) or method.lower() not in _METHODS:
        return f"'scale_method' is {method!r}; the measurements serve any of {', '.join(_METHODS)}"
    unknown = sorted(key for key in config.keys() - _HARMLESS if not key.startswith("measure_on_"))
    return f"the setting {unknown[0]!r} is unknown" if unknown else None


def _read_nodes(path: Path, start: str) -> Nodes:
    """Return the measurements of all ranks: of a module that several have, the greatest."""
    below, beside = Path(start), path.parent
    places = [below, beside / below, beside / below.parent.name / below.name, beside / below.name]
    for place in places:
        if files := _files(place):
            merged: dict[str, dict[str, Any]] = {}
            for file in files:
                for name, node in read_object(file).get("Nodes", {}).items():
                    inputs = node.get("inputs") or node.get("input") or []
                    kept = merged.setdefault(name, {"inputs": [[] for _ in inputs]})["inputs"]
                    for index, one in enumerate(inputs):
                        kept[index].append(one)
            return {name: node for name, node in merged.items() if node["inputs"]}
    if list(below.parent.glob(f"{below.name}_hooks_maxabs*.npz")):
        raise ConfigError(
            f"{path}: the measurements are there as .npz, which is a pickle and could run code, and not as "
            f"{start}_hooks_maxabs*.json, which the tool writes beside it"
        )
    raise ConfigError(f"{path}: there is no {start}_hooks_maxabs.json, and none of ranks")


def _files(start: Path) -> list[Path]:
    """Return the file of all ranks, or those of the fewest ranks of which all are there."""
    whole = start.with_name(f"{start.name}_hooks_maxabs.json")
    if whole.is_file():
        return [whole]
    sets: dict[int, dict[int, Path]] = {}
    for file in start.parent.glob(f"{start.name}_hooks_maxabs_*.json"):
        if match := re.fullmatch(r".*_hooks_maxabs_(\d+)_(\d+)\.json", file.name):
            sets.setdefault(int(match[2]), {})[int(match[1])] = file
    complete = [ranks for count, ranks in sorted(sets.items()) if len(ranks) == count]
    return [complete[0][rank] for rank in sorted(complete[0])] if complete else []
