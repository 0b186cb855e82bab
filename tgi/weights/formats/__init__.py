"""Formats of linear weights, one file each; a new file here is found without being listed anywhere."""

import functools
import importlib
import pkgutil

from tgi.plugins import ConfigError, JsonReader

from .base import LinearWeight, Operations, WeightFormat
from .dense import Dense, DenseWeight

__all__ = ["Dense", "DenseWeight", "LinearWeight", "Operations", "WeightFormat", "read_format"]


def read_format(config: JsonReader) -> WeightFormat:
    """Return the format that config.json's "quantization_config" means. Raises ConfigError."""
    section = config.section("quantization_config")
    if section is None or not section.data:
        return Dense()
    method, fault = section(str, "quant_method", "none"), None
    for kind in _known():
        if method in kind.methods:
            reason = kind.fault(section)
            if reason is None:
                return kind.from_config(section)
            fault = fault or reason
    scopes = ", or ".join(kind.scope for kind in _known() if kind.scope)
    fault = fault or f"'quant_method' is {method!r}"
    raise ConfigError(f"config.json 'quantization_config': {fault}; only {scopes} are supported")


@functools.cache
def _known() -> tuple[type[WeightFormat], ...]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
    return tuple(WeightFormat.__subclasses__())
