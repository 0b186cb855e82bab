"""Qwen for tgi: the description of the models. Imports no torch.

Biases of queries and keys make the scores of Qwen 2 large; vLLM, too, keeps them in float32 on Gaudi.
"""

from collections.abc import Mapping
from typing import Any

from tgi.plugins import Architecture, ConfigError, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig, read_llama_config

_COMMON = {"max_position_embeddings": 32768}
_QWEN3 = {**_COMMON, "head_dim": 128}
_EXPERTS = {"decoder_sparse_step": 1, "norm_topk_prob": False}


def read_qwen2(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Qwen2 or Qwen2.5, whose last layers may have a window. Raises ConfigError."""
    return _read(get, _COMMON, qkv_bias=True, wide_scores=True)


def read_qwen3(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Qwen3, which normalises queries and keys. Raises ConfigError."""
    bias = get(bool, "attention_bias", False)
    return _read(get, _QWEN3, head_norm="head", qkv_bias=bias, out_bias=bias)


def read_qwen2_moe(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Qwen2 with experts, beside which a gated one is shared. Raises ConfigError."""
    every = get.adapted(defaults=_COMMON | _EXPERTS | {"moe_intermediate_size": 1408, "num_experts": 60})
    if every(bool, "use_sliding_window", False):
        raise ConfigError(
            "config.json: 'use_sliding_window' is true; a Qwen2 with experts has no known windows"
        )
    experts = _read_experts(
        every,
        shared=every.size("shared_expert_intermediate_size", 5632),
        shared_gate="shared_expert_gate",
    )
    return _read(every, {}, qkv_bias=get(bool, "qkv_bias", True), wide_scores=True, experts=experts)


def read_qwen3_moe(get: JsonReader) -> LlamaConfig:
    """Read config.json of a Qwen3 with experts. Raises ConfigError."""
    names = {"num_experts": "num_local_experts"}  # the newer one
    defaults = _COMMON | _EXPERTS | {"moe_intermediate_size": 768, "num_experts": 128}
    every = get.adapted(names, defaults)
    bias = get(bool, "attention_bias", False)
    experts, window = _read_experts(every), None
    if every(bool, "use_sliding_window", False):
        window = every.size("sliding_window", 4096)
    windows = (window,) * len(experts.layers)
    return _read(every, {}, head_norm="head", qkv_bias=bias, out_bias=bias, experts=experts, windows=windows)


def _read(get: JsonReader, defaults: Mapping[str, Any], **own: Any) -> LlamaConfig:
    get = get.adapted(defaults=defaults)
    window = get.size("sliding_window", 4096) if get(bool, "use_sliding_window", False) else None
    first = get(int, "max_window_layers", 28)
    get(int, "sliding_window", None)
    if (chunks := get.section("dual_chunk_attention_config")) is not None:
        own["max_position"] = min(get.size("max_position_embeddings"), _first_chunk(chunks))
    return read_llama_config(get, window, slides=lambda layer: layer >= first, **own)


def _first_chunk(get: JsonReader) -> int:
    """Return the number of tokens of the first chunk of Qwen2.5-1M; attention within it is the ordinary one.

    Longer texts are not offered.
    """
    size = get.size("chunk_size", 262144)
    get(int, "original_max_position_embeddings", size)
    return size - get.size("local_size", 8192)


def _read_experts(get: JsonReader, **own: Any) -> ExpertsConfig:
    step, dense = get.size("decoder_sparse_step"), get(list, "mlp_only_layers", [])
    return ExpertsConfig(
        layers=tuple(
            layer not in dense and (layer + 1) % step == 0 for layer in range(get.size("num_hidden_layers"))
        ),
        count=get.size("num_experts"),
        top=get.size("num_experts_per_tok"),
        inner=get.size("moe_intermediate_size"),
        normalise=get(bool, "norm_topk_prob"),
        **own,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {
        "Qwen2ForCausalLM": read_qwen2,
        "Qwen3ForCausalLM": read_qwen3,
        "Qwen2MoeForCausalLM": read_qwen2_moe,
        "Qwen3MoeForCausalLM": read_qwen3_moe,
    }
    return [Architecture(name, "tgi.layers:LlamaDecoder", read) for name, read in readers.items()]
