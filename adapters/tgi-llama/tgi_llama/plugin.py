"""Llama for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, read_llama_config


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json. Raises ConfigError if it asks for something that the layers cannot do."""
    bias = get(bool, "attention_bias", False)
    return read_llama_config(
        get,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=get(bool, "mlp_bias", False),
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head."""
    neutral = {"activation": ("swiglu",)}  # Falcon 3's second name of it
    return [Architecture("LlamaForCausalLM", "tgi.layers:LlamaDecoder", read_config, neutral=neutral)]
