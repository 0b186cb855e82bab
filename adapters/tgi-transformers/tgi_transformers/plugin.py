"""Models of transformers for tgi: their description. Imports no torch."""

import importlib.metadata
import importlib.util
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
"""Kinds of RoPE whose angles transformers takes from the longest sequence of a step."""


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
    text = get.section("text_config") or get
    hidden, heads = _first(text, _HIDDEN), _first(text, _HEADS)
    windows = _windows(text, _first(text, _LAYERS))
    rotated, plain = text(int, "qk_rope_head_dim", 0), text(int, "qk_nope_head_dim", 0)
    compressed = bool(plain)  # MLA: the KV cache here has the whole keys, of every head
    return TransformersConfig(
        vocab_size=text.size("vocab_size"),
        hidden_size=hidden,
        num_layers=len(windows),
        num_heads=heads,
        num_kv_heads=heads if compressed else _kv_heads(text, heads),
        head_dim=rotated + plain if compressed else text.size("head_dim", hidden // heads),
        max_position=_first(text, _POSITIONS, 2048),
        learned_positions=_learned_positions(text),
        softcap=text(float, "attn_logit_softcapping", 0.0) > 0,
        windows=windows,
        architecture=architecture,
        json=get.all(),
    )


def _choose(get: JsonReader) -> str:
    """Return the first architecture in the text of transformers' table; importing that would import torch.

    Raises ConfigError.
    """
    names = get(list, "architectures")
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    text = (Path(package.origin).parent / "models/auto/modeling_auto.py").read_text("utf-8")
    table = text.partition("\nMODEL_FOR_CAUSAL_LM_MAPPING_NAMES")[2].partition("\n)\n")[0]
    found = next((name for name in names if f'"{name}"' in table), None)
    if found is None:
        version = importlib.metadata.version("transformers")
        kind = other_kind(get.data)
        own = ", and code that comes with a model is never run" if get(dict, "auto_map", None) else ""
        raise ConfigError(
            f"architecture {names[0]} is not supported{kind}: no adapter offers it (`tgi plugins` lists "
            f"them), and transformers {version} has no causal language model of that name{own}"
        )
    return str(found)


def _refuse(get: JsonReader, architecture: str) -> None:
    """Raise ConfigError for models that would go wrong without any sign of it."""
    reasons = {
        "it has an encoder": get(bool, "is_encoder_decoder", False),
        "its weights are quantized": get.section("quantization_config") is not None,
    }
    for kind in _rope_kinds(get.data):
        reasons[f"its RoPE ({kind}) depends on how long a sequence is"] = kind in _BY_LENGTH
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(f"{architecture} cannot be run by way of transformers: {reason}")


def _rope_kinds(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the kinds of RoPE; each type of layer may have its own."""
    for key, value in config.items():
        if isinstance(value, Mapping) and key not in ("vision_config", "audio_config"):
            yield from _rope_kinds(value)
        elif key in ("rope_type", "type") and isinstance(value, str):
            yield value


def _first(get: JsonReader, names: tuple[str, ...], default: Any = attrs.NOTHING) -> int:
    for name in names:
        if get.data.get(name) is not None:
            return get.size(name)
    return get.size(names[0], default)


def _kv_heads(get: JsonReader, heads: int) -> int:
    return 1 if get(bool, "multi_query", False) else _first(get, _KV_HEADS, heads)


def _learned_positions(get: JsonReader) -> int | None:
    """Return the number of positions if nothing in config.json tells how they are computed."""
    return None if any(key.startswith(_COMPUTED) for key in get.data) else _first(get, _POSITIONS, 2048)


def _windows(get: JsonReader, layers: int) -> tuple[int | None, ...]:
    """The windows that config.json names. Without types of layers, every layer may see everything."""
    types = get(list, "layer_types", [])
    if len(types) != layers:
        return (None,) * layers
    window = get(int, "sliding_window", None)
    return tuple(window if kind == "sliding_attention" else None for kind in types)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the fallback for architectures that no other adapter offers."""
    return [Architecture(ANY, "tgi_transformers.model:TransformersModel", read_config)]
