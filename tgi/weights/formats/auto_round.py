"""Settings in config.json of checkpoints that AutoRound wrote, whose tensors are those of GPTQ or AWQ."""

import re
from collections.abc import Mapping
from typing import Any

from tgi.plugins import JsonReader

AUTO_ROUND = frozenset({"auto-round", "intel/auto-round"})
"""Values of "quant_method"."""
_DENSE = 16
"""Bits of layers that are not quantized."""


def auto_round_packing(config: JsonReader) -> str:
    """Return "auto_gptq", "auto_awq", or another packing; "" for the checkpoint of another tool.

    Older files name the kernels ("auto_round:gptq:exllamav2") in "backend" instead.
    """
    if config(str, "quant_method", "none") not in AUTO_ROUND:
        return ""
    packing = config(str, "packing_format", "").removeprefix("auto_round:")
    backend = config(str, "backend", "").removeprefix("auto_round:").partition(":")[0]
    older = {"gptq": "auto_gptq", "awq": "auto_awq"}.get(backend, backend)
    return packing or older or "auto_gptq"


def auto_round_fault(config: JsonReader) -> str | None:
    """Return the first setting that asks for other tensors."""
    packing = auto_round_packing(config)
    if not packing:
        return None
    if packing not in ("auto_gptq", "auto_awq"):
        return f"'packing_format' is {packing!r}"
    if config(str, "data_type", "int") != "int":
        return f"'data_type' is {config.data['data_type']!r}"
    layers = config(dict, "extra_config", {}).values()
    if packing == "auto_awq" and any(each.get("bits", 4) not in (4, _DENSE) for each in layers):
        return "'extra_config' has layers of other bits"
    return None


def auto_round_layers(config: JsonReader) -> Mapping[str, Any]:
    """Return the settings of layers that have their own, by patterns for the beginnings of names.

    Keys are names of modules or patterns for a part of them.
    """
    if not auto_round_packing(config):
        return {}
    layers: dict[str, Any] = config(dict, "extra_config", {})
    return {
        name if name.startswith(".*") else re.escape(name) + "$": settings
        for name, settings in layers.items()
        if settings.get("bits", _DENSE) < _DENSE
    }
