"""What config.json says of weights with fewer bits: fp8 is supported, and nothing else."""

from typing import Any

from .architecture import ConfigError, JsonReader

_ONLY = "only e4m3 weights and inputs with one fixed scale for each tensor are supported"
_FORMATS = ("float-quantized", "naive-quantized")


def read_fp8(get: JsonReader) -> bool:
    """Whether linear layers have fp8 weights, where the checkpoint has scales for them.

    As compressed-tensors ("float-quantized") and AutoFP8 ("fp8", static) write it. Raises ConfigError for any
    other quantization.
    """
    section = get.section("quantization_config")
    if section is None or not section.data:
        return False
    method = section(str, "quant_method", "none")
    if method == "fp8":
        fault = _fault_of_fp8(section)
    elif method == "compressed-tensors":
        fault = _fault_of_groups(section)
    else:
        fault = f"'quant_method' is {method!r}"
    if fault is not None:
        raise ConfigError(f"config.json 'quantization_config': {fault}; {_ONLY}")
    return True


def _fault_of_fp8(section: JsonReader) -> str | None:
    if section.data.get("weight_block_size"):
        return "'weight_block_size' is set"
    scheme = section(str, "activation_scheme", "dynamic")
    return None if scheme == "static" else f"'activation_scheme' is {scheme!r}"


def _fault_of_groups(section: JsonReader) -> str | None:
    if section(str, "format", "") not in _FORMATS:
        return f"'format' is {section.data.get('format')!r}"
    cache = section.data.get("kv_cache_scheme")
    if cache is not None and not _is_fp8(cache):
        return f"'kv_cache_scheme' is {cache!r}"
    for name, group in section(dict, "config_groups").items():
        if not isinstance(group, dict):
            return f"{name!r} is {group!r}"
        for part in ("weights", "input_activations"):
            if not _is_fp8(group.get(part)):
                return f"{part!r} of {name!r} is {group.get(part)!r}"
        if group.get("output_activations"):
            return f"'output_activations' of {name!r} is set"
    return None


def _is_fp8(scheme: Any) -> bool:
    return isinstance(scheme, dict) and (
        (scheme.get("type"), scheme.get("num_bits"), scheme.get("strategy")) == ("float", 8, "tensor")
        and not scheme.get("dynamic")
        and scheme.get("symmetric", True) is True
    )
