"""Mistral and Mixtral for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig, read_llama_config, read_text_part


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


def read_mixtral_config(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Mixtral. Raises ConfigError."""
    get = get.adapted(
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
        }
    )
    experts = ExpertsConfig(
        layers=(True,) * get.size("num_hidden_layers"),
        count=get.size("num_local_experts", 8),
        top=get.size("num_experts_per_tok", 2),
        inner=get.size("intermediate_size"),
        name="block_sparse_moe",
        up=("experts.{}.w1.weight", "experts.{}.w3.weight"),
        down="experts.{}.w2.weight",
    )
    windows = (get.optional_size("sliding_window"),) * len(experts.layers)
    return read_llama_config(get, windows=windows, experts=experts)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head, and that of the models of images and text."""
    readers = {
        "MistralForCausalLM": read_config,
        "MixtralForCausalLM": read_mixtral_config,
        "Mistral3ForConditionalGeneration": read_text_part(read_config, "mistral"),
    }
    return [Architecture(name, "tgi.layers:LlamaDecoder", read) for name, read in readers.items()]
