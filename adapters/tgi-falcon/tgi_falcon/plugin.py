"""Falcon for tgi: the description of the models. Imports no torch."""

import attrs

from tgi.plugins import Architecture, ConfigError, JsonReader, ModelConfig, hookimpl
from tgi.plugins.rope_config import RopeConfig, read_rope

_HARMLESS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "rotary"})
"""Fields that a Falcon with ALiBi does not read, in transformers either."""
_NEUTRAL = {"apply_residual_connection_post_layernorm": (False,)}


@attrs.frozen(kw_only=True)
class FalconConfig(ModelConfig):
    """The settings of a Falcon."""

    inner_size: int
    epsilon: float
    bias: bool
    rope: RopeConfig | None
    """Rotary positions; None: ALiBi instead."""
    parallel: bool
    """Whether attention and MLP have the same input, and are added to it together."""
    norms: tuple[str, ...]
    """Names of the norms of a layer: the attention's and the MLP's, or one for both."""
    tie_word_embeddings: bool


def read_config(get: JsonReader) -> FalconConfig:
    """Read config.json under the names of transformers, or of the code in the models' own repositories, whose
    defaults are others. Raises ConfigError if it asks for something that the layers cannot do."""
    activation = get(str, "activation", "gelu")
    if activation != "gelu":
        raise ConfigError(f"config.json: 'activation' is {activation!r}; a Falcon has 'gelu'")
    own_code = get(str, "model_type", "falcon").startswith("RefinedWeb")
    hidden = get.size("n_embed" if "n_embed" in get else "hidden_size")
    heads = get.size("n_head" if "n_head" in get else "num_attention_heads")
    new = get(bool, "new_decoder_architecture", own_code and "n_head_kv" in get)
    parallel = get(bool, "parallel_attn", not own_code) or new
    kv_heads = get.size("n_head_kv" if "n_head_kv" in get else "num_kv_heads", heads)
    shared = get(bool, "multi_query", not own_code)
    if not new:
        if not shared and kv_heads != heads:
            raise ConfigError(
                f"config.json: 'num_kv_heads' is {kv_heads}; this Falcon has {heads}, one for each"
            )
        kv_heads = 1 if shared else heads
    rope = None if get(bool, "alibi", False) else read_rope(get, hidden // heads)
    if rope and rope.dim != hidden // heads:
        raise ConfigError("config.json: 'partial_rotary_factor' is set; a Falcon rotates whole heads")
    return FalconConfig(
        vocab_size=get.size("vocab_size"),
        hidden_size=hidden,
        num_layers=get.size("n_layer" if "n_layer" in get else "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_position=get.size("max_position_embeddings", 2048),
        prefix_limit=rope.depends_on_length_beyond if rope else None,
        inner_size=get.size("ffn_hidden_size", 4 * hidden),
        epsilon=get(float, "layer_norm_epsilon", 1e-5),
        bias=get(bool, "bias", False),
        rope=rope,
        parallel=parallel,
        norms=_norms(parallel, get(int, "num_ln_in_parallel_attn", 2 if new else 1)),
        tie_word_embeddings=get(bool, "tie_word_embeddings", True),
    )


def _norms(parallel: bool, count: int) -> tuple[str, ...]:
    if not parallel:
        return ("input_layernorm", "post_attention_layernorm")
    return ("ln_attn", "ln_mlp") if count == 2 else ("input_layernorm",)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder, under the names of transformers and of the models' own code."""
    names = ("FalconForCausalLM", "RWForCausalLM")
    return [Architecture(name, "tgi_falcon.model:Falcon", read_config, _HARMLESS, _NEUTRAL) for name in names]
