"""Granite for tgi: the description of the models. Imports no torch."""

from typing import Any

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig, read_llama_config


def read_granite(get: JsonReader) -> LlamaConfig:
    """Read config.json of a dense Granite 3. Raises ConfigError."""
    return _read(get, mlp_bias=get(bool, "mlp_bias", False))


def read_granite_moe(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Granite 3 with experts, and perhaps an MLP beside them. Raises ConfigError."""
    experts = ExpertsConfig(
        layers=(True,) * get.size("num_hidden_layers"),
        count=get.size("num_local_experts", 8),
        top=get.size("num_experts_per_tok", 2),
        inner=get.size("intermediate_size"),
        name="block_sparse_moe",
        router="router.layer",
        up=("input_linear.weight",),
        down="output_linear.weight",
        shared=get(int, "shared_intermediate_size", 0),
        shared_name="shared_mlp",
        shared_up=("input_linear",),
        shared_down="output_linear",
    )
    return _read(get, experts=experts)


def _read(get: JsonReader, **own: Any) -> LlamaConfig:
    bias = get(bool, "attention_bias", False)
    return read_llama_config(
        get,
        qkv_bias=bias,
        out_bias=bias,
        attention_scale=get.positive("attention_multiplier", 1.0),
        embedding_scale=get(float, "embedding_multiplier", 1.0),
        residual_scale=get(float, "residual_multiplier", 1.0),
        logit_scale=1 / get.positive("logits_scaling", 1.0),
        **own,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {
        "GraniteForCausalLM": read_granite,
        "GraniteMoeForCausalLM": read_granite_moe,
        "GraniteMoeSharedForCausalLM": read_granite_moe,
    }
    return [Architecture(name, "tgi.layers:LlamaDecoder", read) for name, read in readers.items()]
