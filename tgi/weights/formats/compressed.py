"""Settings in config.json of checkpoints that the library compressed-tensors wrote."""

import re
from collections.abc import Mapping
from typing import Any

from tgi.plugins import JsonReader

Group = Mapping[str, Any]
"""One of "config_groups": how the layers that its "targets" name are stored."""
_FP8 = {"type": "float", "num_bits": 8, "strategy": "tensor"}


def groups_of(config: JsonReader) -> dict[str, Group]:
    """Return "config_groups" by name, those that are no objects as empty ones."""
    groups = config(dict, "config_groups", {})
    return {name: group if isinstance(group, dict) else {} for name, group in groups.items()}


def format_of(config: JsonReader, group: Group) -> str:
    """Return how the numbers of a group are packed, which a mixed checkpoint has beside each."""
    return str(group.get("format") or config(str, "format", ""))


def stores_integers(config: JsonReader) -> bool:
    """Whether all groups have integers."""
    groups = [group.get("weights") for group in groups_of(config).values()]
    return bool(groups) and all(
        isinstance(each, dict) and each.get("type", "int") == "int" for each in groups
    )


def group_for(groups: Mapping[str, Group], module: str) -> Group:
    """Return the group that stores a module: by its name, by a pattern, or by the kind of layer."""
    for meant in (_is_name, _is_pattern, _is_kind):
        for group in groups.values():
            if any(meant(target, module) for target in group.get("targets") or ()):
                return group
    return next(iter(groups.values()))


def _is_name(target: str, module: str) -> bool:
    return target == module


def _is_pattern(target: str, module: str) -> bool:
    return target.startswith("re:") and re.match(target.removeprefix("re:"), module) is not None


def _is_kind(target: str, _module: str) -> bool:
    return "." not in target and not target.startswith("re:")


def fault_beside_weights(config: JsonReader) -> str | None:
    """Return the first setting that changes numbers other than weights and inputs of layers."""
    cache = config.data.get("kv_cache_scheme")
    if cache is not None and not is_static_fp8(cache):
        return f"'kv_cache_scheme' is {cache!r}"
    sparse = config.data.get("sparsity_config") or {}
    if sparse.get("format", "dense") != "dense":
        return f"'format' of 'sparsity_config' is {sparse['format']!r}"
    if config.data.get("transform_config"):
        return "'transform_config' is set"
    for name, group in groups_of(config).items():
        if group.get("output_activations"):
            return f"'output_activations' of {name!r} is set"
    return None


def is_static_fp8(scheme: Any) -> bool:
    """Whether numbers are e4m3, with one fixed scale for each tensor."""
    return isinstance(scheme, dict) and (
        scheme.items() >= _FP8.items() and not scheme.get("dynamic") and scheme.get("symmetric", True) is True
    )
