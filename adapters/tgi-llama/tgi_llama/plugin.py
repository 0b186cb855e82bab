"""Llama for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, read_llama_config, read_text_part

from .llama4 import read_llama4


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json. Raises ConfigError if it asks for something that the layers cannot do."""
    bias = get(bool, "attention_bias", False)
    if not get(bool, "use_sliding_window", True):
        get(int, "sliding_window", None)  # of a model that was Qwen 2's, and is no window
    return read_llama_config(
        get,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=get(bool, "mlp_bias", False),
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head, and that of the models of images and text."""
    neutral = {"activation": ("swiglu",)}  # Falcon 3's second name of it
    readers = {
        "LlamaForCausalLM": read_config,
        "Llama4ForCausalLM": read_llama4,
        "Llama4ForConditionalGeneration": read_text_part(read_llama4, "llama4_text"),
    }
    model, harmless = "tgi.layers:LlamaDecoder", frozenset({"for_llm_compressor"})
    return [Architecture(name, model, read, harmless, neutral) for name, read in readers.items()]
