"""Baichuan for tgi: the description of the models. Imports no torch."""

from typing import Any

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, Names, read_llama_config

_ROTATING = 4096
"""Hidden size of the models that rotate; larger ones have ALiBi. config.json does not tell it otherwise."""
_SECOND = 125696
"""Number of token ids of the second generation, whose head has rows of length 1."""
_HARMLESS = frozenset({"z_loss_weight", "_from_model_config", "max_position_embeddings"})


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json. Raises ConfigError if it asks for something that the layers cannot do."""
    alibi = get.size("hidden_size") != _ROTATING
    own: dict[str, Any] = {"ropes": (None,) * get.size("num_hidden_layers")} if alibi else {}
    return read_llama_config(
        get.adapted(defaults={"max_position_embeddings": get.size("model_max_length", 4096)}),
        names=Names(qkv=("W_pack",)),
        alibi=alibi,
        unit_head=get.size("vocab_size") == _SECOND,
        **own,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head, under both of its names."""
    names, model = ("BaichuanForCausalLM", "BaiChuanForCausalLM"), "tgi.layers:LlamaDecoder"
    return [Architecture(name, model, read_config, _HARMLESS) for name in names]
