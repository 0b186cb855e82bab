"""OLMo for tgi: the description of the models. Imports no torch."""

from typing import Any

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig, Names, read_llama_config, with_local_rope

_AFTER = Names(
    before_attention=None,
    after_attention="post_attention_layernorm",
    before_mlp=None,
    after_mlp="post_feedforward_layernorm",
)


def read_olmo2(get: JsonReader) -> LlamaConfig:
    """Read config.json of an OLMo 2, whose norms come after attention and MLP. Raises ConfigError."""
    return _read(get, names=_AFTER)


def read_olmo3(get: JsonReader) -> LlamaConfig:
    """Read config.json of an OLMo 3, three of four layers of which have a window. Raises ConfigError."""
    get = get.adapted(defaults={"rope_theta": 500_000.0})
    window = get.size("sliding_window", 4096)
    config = _read(get, window, slides=lambda layer: (layer + 1) % 4 != 0, names=_AFTER, ropes=())
    return with_local_rope(config, get, get(float, "rope_theta"))


def read_olmoe(get: JsonReader) -> LlamaConfig:
    """Read config.json of an OLMoE. Raises ConfigError."""
    get = get.adapted({"num_experts": "num_local_experts"}, {"max_position_embeddings": 4096})
    experts = ExpertsConfig(
        layers=(True,) * get.size("num_hidden_layers"),
        count=get.size("num_experts", 64),
        top=get.size("num_experts_per_tok", 8),
        inner=get.size("intermediate_size"),
        normalise=get(bool, "norm_topk_prob", False),
    )
    return _read(get, clip_qkv=get(float, "clip_qkv", None), experts=experts)


def _read(get: JsonReader, window: int | None = None, **own: Any) -> LlamaConfig:
    bias = get(bool, "attention_bias", False)
    get = get.adapted(defaults={"rms_norm_eps": 1e-5})
    return read_llama_config(get, window, head_norm="all", qkv_bias=bias, out_bias=bias, **own)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {
        "Olmo2ForCausalLM": read_olmo2,
        "Olmo3ForCausalLM": read_olmo3,
        "OlmoeForCausalLM": read_olmoe,
    }
    return [Architecture(name, "tgi.layers:LlamaDecoder", read) for name, read in readers.items()]
