"""Formats of linear weights, one file each; a new file here is found without being listed anywhere."""

import functools
import importlib
import pkgutil
from collections.abc import Sequence

from tgi.plugins import ConfigError, JsonReader

from .base import EXPANDED, LinearWeight, Operations, PiecewiseWeight, PreparedWeight, WeightFormat
from .dense import Dense, DenseWeight
from .integers import IntegerRounding, IntegerWeight
from .rounding import Rounding
from .stored import StackedWeight

__all__ = [
    "EXPANDED",
    "Dense",
    "DenseWeight",
    "IntegerRounding",
    "IntegerWeight",
    "LinearWeight",
    "Operations",
    "PiecewiseWeight",
    "PreparedWeight",
    "Rounding",
    "StackedWeight",
    "WeightFormat",
    "read_format",
]


_KERNELS = {
    "marlin": ("gptq", "awq"), "gptq_marlin": ("gptq",), "awq_marlin": ("awq",),
    "bitsandbytes-nf4": ("bitsandbytes",), "bitsandbytes-fp4": ("bitsandbytes",),
}  # fmt: skip
"""Values of --quantize that name other servers' kernels or variants, and the formats that these take."""
_INSTEAD = {
    "bitsandbytes": "a dense checkpoint with --quantize int8, fp8 or int4",
    "bitsandbytes-nf4": "a dense checkpoint with --quantize int4",
    "bitsandbytes-fp4": "a dense checkpoint with --quantize int4",
    "eetq": "a dense checkpoint with --quantize int8 or fp8",
    "exl2": "a checkpoint in GPTQ or AWQ",
}
"""Formats of other servers that are refused, and the ones to serve instead."""


def read_format(config: JsonReader, quantize: str = "") -> WeightFormat:
    """Return the format that config.json's "quantization_config" means, or that `quantize` rounds to.

    `quantize` may also name the format that the checkpoint has. Raises ConfigError.
    """
    section = config.section("quantization_config")
    if section is None or not section.data:
        return _rounding(quantize) if quantize else Dense()
    method = section(str, "quant_method", "none")
    stored = _stored_format(section, method)
    if quantize not in ("", method, stored.name) and stored.name not in _KERNELS.get(quantize, ()):
        raise ConfigError(f"--quantize {quantize}: the checkpoint is quantized already, to {stored.name}")
    return stored


def _rounding(quantize: str) -> Rounding:
    _import_all()
    kinds = {kind.name: kind for kind in Rounding.kinds()}
    if quantize in kinds:
        return kinds[quantize]()
    if quantize in _INSTEAD:
        raise ConfigError(
            f"--quantize {quantize} is not supported for a dense checkpoint: serve {_INSTEAD[quantize]}"
        )
    choice = " or ".join(sorted(kinds))
    raise ConfigError(
        f"--quantize {quantize}: config.json has no 'quantization_config'; a dense checkpoint can be rounded "
        f"to {choice}"
    )


def _stored_format(section: JsonReader, method: str) -> WeightFormat:
    fault = None
    for kind in _known():
        if kind.means(section):
            reason = kind.fault(section)
            if reason is None:
                return kind.from_config(section)
            fault = fault or reason
    dense = _INSTEAD["bitsandbytes"]
    if fault is None:
        raise ConfigError(
            f"config.json 'quantization_config': 'quant_method' is {method!r}, which is not supported: "
            f"serve {_INSTEAD.get(method, dense)}"
        )
    scopes = ", or ".join(kind.scope for kind in _known() if method in kind.methods)
    raise ConfigError(
        f"config.json 'quantization_config': {fault}; of {method!r} only {scopes} are supported: "
        f"serve one of these, or {dense}"
    )


def _known() -> Sequence[type[WeightFormat]]:
    """Return all formats in the order of their files: the first that can read a checkpoint does."""
    _import_all()
    return sorted(WeightFormat.__subclasses__(), key=lambda kind: kind.__module__)


@functools.cache
def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(module.name)
