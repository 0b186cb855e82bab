"""Models of transformers for tgi: their description. Imports no torch."""

import ast
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from tgi.plugins import ANY, Architecture, ConfigError, JsonReader, ModelConfig, hookimpl
from tgi.plugins.lookup import other_kind

_HIDDEN = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")
_COMPUTED = ("rope", "rotary", "alibi", "attn_config")
"""Beginnings of keys of config.json of models that compute their positions."""
_BY_LENGTH = ("dynamic", "longrope", "su")
"""Kinds of RoPE whose angles transformers takes from the longest sequence of a step, beyond a length."""


@attrs.frozen(kw_only=True)
class TransformersConfig(ModelConfig):
    """The settings that all models have, and the rest for transformers itself."""

    architecture: str
    json: Mapping[str, Any]
    """The object in config.json."""
    softcap: bool
    """Whether attention caps its scores."""
    windows: tuple[int | None, ...]
    """Number of tokens that a token sees in each layer, itself included; None: all before it."""


def read_config(get: JsonReader) -> TransformersConfig:
    """Read config.json. Raises ConfigError if transformers lacks the model, or it cannot be run here."""
    architecture = _choose(get)
    _refuse(get, architecture)
    section = get.section("text_config") or get
    text = _Filled(section, _defaults(section(str, "model_type", get(str, "model_type", ""))))
    positions, limit = text.first(_POSITIONS, 2048), _limit(text)
    hidden, heads = text.first(_HIDDEN), text.first(_HEADS)
    windows = _windows(text.get, text.first(_LAYERS))
    rotated, plain = text.get(int, "qk_rope_head_dim", 0), text.get(int, "qk_nope_head_dim", 0)
    compressed = bool(plain)  # MLA: the KV cache here has the whole keys, of every head
    return TransformersConfig(
        vocab_size=text.first(("vocab_size",)),
        hidden_size=hidden,
        num_layers=len(windows),
        num_heads=heads,
        num_kv_heads=heads if compressed else _kv_heads(text, heads),
        head_dim=rotated + plain if compressed else text.first(("head_dim",), hidden // heads),
        max_position=min(positions, limit or positions),
        learned_positions=limit,
        softcap=text.get(float, "attn_logit_softcapping", text.defaults.get("attn_logit_softcapping") or 0.0)
        > 0,
        windows=windows,
        architecture=architecture,
        json=get.all(),
    )


def _choose(get: JsonReader) -> str:
    """Return the first architecture in the text of transformers' table; importing that would import torch.

    Raises ConfigError.
    """
    names = get(list, "architectures", [])
    text = (_transformers() / "models/auto/modeling_auto.py").read_text("utf-8")
    table = text.partition("\nMODEL_FOR_CAUSAL_LM_MAPPING_NAMES")[2].partition("\n)\n")[0]
    found = next((name for name in names if f'"{name}"' in table), None)
    family = get(str, "model_type", "")
    if found is None and family and all(str(name).endswith("ForCausalLM") for name in names):
        row = re.search(rf'\("{re.escape(family)}", "(\w+)"\)', table)
        found = row and row[1]
    if found is None and not names:
        raise ConfigError(f"config.json has no 'architectures', and its 'model_type' {family!r} tells none")
    if found is None:
        version = importlib.metadata.version("transformers")
        kind = other_kind(get.data)
        own = ", and code that comes with a model is never run" if get(dict, "auto_map", None) else ""
        raise ConfigError(
            f"architecture {names[0]} is not supported: no adapter offers it (`tgi plugins` lists "
            f"them), and transformers {version} has no causal language model of that name{own}{kind}"
        )
    return str(found)


def _transformers() -> Path:
    """Return the folder of transformers; importing it would import torch."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent


def _refuse(get: JsonReader, architecture: str) -> None:
    """Raise ConfigError for models that would go wrong without any sign of it."""
    reasons = {
        "it has an encoder": get(bool, "is_encoder_decoder", False),
        "its weights are quantized": get.section("quantization_config") is not None,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{architecture} cannot be run by way of transformers: {reason}")


@attrs.frozen
class _Filled:
    """A config.json whose missing sizes are the defaults of its config class."""

    get: JsonReader
    defaults: Mapping[str, Any]

    def first(self, names: tuple[str, ...], default: Any = attrs.NOTHING) -> int:
        """Return a size under the first of its names that is there."""
        for name in names:
            if self.get.data.get(name) is not None:
                return self.get.size(name)
        for name in names:
            if name not in self.get and isinstance(self.defaults.get(name), int):
                return int(self.defaults[name])
        return self.get.size(names[0], default)


def _defaults(model_type: str) -> dict[str, Any]:
    """Return the constant defaults of a config class in the text of transformers; {} if it has none."""
    models = _transformers() / "models"
    own = models / model_type.replace("-", "_")
    for path in (*sorted(own.glob("configuration_*.py")), *sorted(models.glob("*/configuration_*.py"))):
        text = path.read_text("utf-8")
        if f'model_type = "{model_type}"' in text:
            break
    else:
        return {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            values = dict(_constants(node))
            if values.get("model_type") == model_type:
                return values
    return {}


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for line in node.body:
        if isinstance(line, ast.FunctionDef) and line.name == "__init__":  # in transformers 4
            given = line.args.args[len(line.args.args) - len(line.args.defaults) :]
            pairs = zip(given, line.args.defaults, strict=True)
            yield from ((one.arg, value.value) for one, value in pairs if isinstance(value, ast.Constant))
        targets = line.targets if isinstance(line, ast.Assign) else [getattr(line, "target", None)]
        value = getattr(line, "value", None)
        if isinstance(targets[0], ast.Name) and isinstance(value, ast.Constant):
            yield targets[0].id, value.value


def _kv_heads(text: _Filled, heads: int) -> int:
    return 1 if text.get(bool, "multi_query", False) else text.first(_KV_HEADS, heads)


def _limit(text: _Filled) -> int | None:
    """Return the number of positions that the model can have, None: any.

    It has learned them if nothing in config.json tells how they are computed. Angles of RoPE that depend on
    the length of a sequence are those of short ones up to the original length.
    """
    positions = text.first(_POSITIONS, 2048)
    if not any(key.startswith(_COMPUTED) for key in (*text.get.data, *text.defaults)):
        return positions
    limits = list(_rope_limits(text.get.data, positions))
    return min(limits) if limits else None


def _rope_limits(config: Mapping[str, Any], positions: int) -> Iterator[int]:
    """Yield the length up to which each RoPE does not depend on it; each type of layer may have its own."""
    original = config.get("original_max_position_embeddings")
    for value in (config.get("rope_scaling"), config.get("rope_parameters")):
        if isinstance(value, Mapping):
            for each in (value, *(inner for inner in value.values() if isinstance(inner, Mapping))):
                kind = each.get("rope_type", each.get("type"))
                own = original or each.get("original_max_position_embeddings")
                if kind in _BY_LENGTH:
                    yield own if isinstance(own, int) and kind != "dynamic" else positions


def _windows(get: JsonReader, layers: int) -> tuple[int | None, ...]:
    """The windows that config.json names. Without types of layers, every layer may see everything."""
    types = get(list, "layer_types", [])
    if len(types) != layers:
        return (None,) * layers
    window = get.optional_size("sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the fallback for architectures that no other adapter offers."""
    return [Architecture(ANY, "tgi_transformers.model:TransformersModel", read_config)]
