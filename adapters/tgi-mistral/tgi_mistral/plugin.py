"""Mistral for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, read_llama_config


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json, with the defaults of Mistral-7B-v0.1. A window of null is none.

    Raises ConfigError if it asks for something that the layers cannot do.
    """
    window = None if "sliding_window" in get and get.data["sliding_window"] is None else 4096
    heads = get(int, "num_attention_heads")
    return read_llama_config(
        get,
        num_kv_heads=get(int, "num_key_value_heads", heads if "num_key_value_heads" in get else 8),
        max_position=get(int, "max_position_embeddings", 131072),
        window=window and get.size("sliding_window", window),
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head."""
    return [Architecture("MistralForCausalLM", "tgi_mistral.model:Mistral", read_config)]
