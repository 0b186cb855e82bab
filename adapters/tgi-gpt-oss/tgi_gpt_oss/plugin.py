"""gpt-oss for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.experts_config import ExpertsConfig
from tgi.plugins.llama_config import LlamaConfig, read_activation, read_llama_config
from tgi.plugins.rope_config import RopeConfig

_DEFAULTS = {
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 150_000.0,
    "max_position_embeddings": 131072,
}
_HARMLESS = frozenset({"initial_context_length", "experts_per_token", "num_experts"})
"""Other names of what is read."""
_NEUTRAL = {"swiglu_limit": (7.0,), "swiglu_alpha": (1.702,)}


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json. Raises ConfigError if it asks for something that the layers cannot do."""
    get = get.adapted(defaults=_DEFAULTS)
    read_activation(get, "hidden_act", ("silu",))
    bias = get(bool, "attention_bias", True)
    experts = ExpertsConfig(
        layers=(True,) * get.size("num_hidden_layers"),
        count=get.size("num_local_experts", 128),
        top=get.size("num_experts_per_tok", 4),
        inner=get.size("intermediate_size"),
        router="router",
        router_bias=True,
        up=("experts.gate_up_proj",),
        down="experts.down_proj",
        bias=True,
        transposed=True,
        alternating=True,
    )
    return read_llama_config(
        get,
        get.size("sliding_window", 128),
        slides=lambda layer: layer % 2 == 0,
        activation="swiglu",
        qkv_bias=bias,
        out_bias=bias,
        sinks=True,
        experts=experts,
        **_ropes(get),
    )


def _ropes(get: JsonReader) -> dict[str, tuple[RopeConfig, ...]]:
    """Return the RoPE of all layers if config.json describes none, as transformers fills it in."""
    if get(dict, "rope_parameters", None) is not None or get(dict, "rope_scaling", None):
        return {}
    rope = RopeConfig(
        kind="yarn",
        theta=get.positive("rope_theta"),
        dim=get.size("head_dim"),
        max_position=get.size("max_position_embeddings"),
        original_max_position=4096,
        factor=32.0,
        truncate=False,
    )
    return {"ropes": (rope,) * get.size("num_hidden_layers")}


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head."""
    return [Architecture("GptOssForCausalLM", "tgi.layers:LlamaDecoder", read_config, _HARMLESS, _NEUTRAL)]
