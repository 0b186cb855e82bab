"""Finds what runs the model of a folder: reads config.json, and looks up the architecture and its classes."""

import json
import logging
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from .architecture import ANY, Architecture, ConfigError, JsonReader, ModelConfig
from .manager import architectures, load_plugins

T = TypeVar("T")
log = logging.getLogger(__name__)
WITHOUT_TRANSFORMERS = "; transformers may run it: pip install 'tgi-server[transformers]'"


_QUANTIZATIONS = {
    "hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"
}  # fmt: skip
"""Files that older tools wrote in the place of config.json's "quantization_config", and their methods."""


def read_config_json(folder: Path) -> dict[str, Any]:
    """Return the object in config.json, with "quantization_config" from wherever the checkpoint has it.

    Raises ConfigError.
    """
    data = read_object(folder / "config.json")
    if data.get("quantization_config"):
        return data
    if older := data.pop("compression_config", None):
        return data | {"quantization_config": {"quant_method": "compressed-tensors"} | older}
    for name, method in _QUANTIZATIONS.items():
        if (path := folder / name).is_file():
            found = read_object(path)
            settings = {"quant_method": method} | found | found.get("quantization", {})
            return data | {"quantization_config": settings}
    return data


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raises ConfigError."""
    try:
        data = json.loads(path.read_text("utf-8"), object_hook=_number)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} is no JSON object")
    return data


def _number(value: dict[str, Any]) -> Any:
    """Return the number that transformers writes as an object because JSON has no infinity; or the object."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def find_architecture(folder: Path, data: Mapping[str, Any]) -> tuple[Architecture, ModelConfig]:
    """Return the first architecture of config.json's `data` that a plugin offers, and what it reads there.

    Raises ConfigError.
    """
    plugins = load_plugins()
    known = architectures(plugins)
    names = JsonReader(data)(list, "architectures", [])
    kind = JsonReader(data)(str, "model_type", "")
    same = [name for name in known if kind and name.lower() == f"{kind.replace('_', '')}forcausallm"]
    if not all(str(name).endswith("ForCausalLM") for name in names):
        same = []  # it may have another head
    named = [known[name] for name in names if name in known][:1]
    if any(known[name].config is not each.config for name in same for each in named):
        raise ConfigError(
            f"config.json: 'architectures' is {names} and 'model_type' is {kind!r}, which are different "
            "models; correct the one that is wrong"
        )
    offered = [name for name in (*names, *same, ANY) if name in known] if names or kind else []
    if not offered:
        wanted = names[0] if names else "(none named)"
        supported = ", ".join(sorted(set(known) - {ANY})) or "none: no adapter is installed"
        kind = other_kind(data) or ("" if ANY in known else WITHOUT_TRANSFORMERS)
        reason = f"{folder}: architecture {wanted} is not supported; supported are {supported}{kind}"
        raise ConfigError("; ".join([reason, *plugins.left_out]))
    architecture = known[offered[0]]
    try:
        config = architecture.read(data)
    except ConfigError as error:
        missed = plugins.left_out if architecture.name == ANY else []
        raise ConfigError("; ".join([str(error), *missed])) from error
    if architecture.name == ANY:
        log.warning(
            "no adapter offers %s: %s runs it, on one card only, and slower than an adapter would",
            (*names, kind)[0],
            architecture.model,
        )
    return architecture, config


def other_kind(data: Mapping[str, Any]) -> str:
    """Return "; it is …" for the config.json of something else than a model that continues a text, or ""."""
    name = next((each for each in JsonReader(data)(list, "architectures", []) if isinstance(each, str)), "")
    kinds = {
        "a speech model": "audio_config" in data or name.startswith(("Whisper", "Wav2Vec", "Speech")),
        "a model of images and text": "vision_config" in data
        or "ForImage" in name
        or name.startswith("Llava"),
        "a model with an encoder": bool(data.get("is_encoder_decoder")),
        "a classifier or reward model": "Classification" in name or name.endswith("RewardModel"),
        "an encoder": name.endswith(("ForMaskedLM", "ForPreTraining", "ForQuestionAnswering")),
        "a model that gives embeddings": name.endswith("Model"),
    }
    return next(
        (f"; it is {kind}, and this server continues texts" for kind, holds in kinds.items() if holds), ""
    )


def find_offer(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return what plugins offer under that name, or under `ANY`. Raises ConfigError."""
    offered = next((known[each] for each in (name, ANY) if each in known), None)
    if offered is None:
        raise ConfigError(f"no plugin offers the {kind} {name!r}, only {', '.join(sorted(known)) or 'none'}")
    return offered


def import_named(place: str) -> Callable[..., Any]:
    """Return the class or function that a plugin names as "module:name". Raises ConfigError."""
    try:
        named: Callable[..., Any] = pkgutil.resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{place}, which a plugin names, cannot be imported: {error}") from error
    return named
