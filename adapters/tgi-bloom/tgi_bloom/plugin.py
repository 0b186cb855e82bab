"""Bloom for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, Names, read_gpt_config

_KEYS = {
    "hidden_size": "n_embed",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layer_norm_epsilon",
}
_NAMES = Names(
    embedding="transformer.word_embeddings",
    embedding_norm="transformer.word_embeddings_layernorm",
    layer="transformer.h.{}",
    norm="transformer.ln_f",
    attention="self_attention",
    qkv=("query_key_value",),
    out="dense",
    up=("dense_h_to_4h",),
    down="dense_4h_to_h",
)
_HARMLESS = frozenset(
    {"n_inner", "offset_alibi", "seq_length", "slow_but_exact", "skip_bias_add", "skip_bias_add_qkv"}
    | {"attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "unk_token_id"}
)
"""Ways to compute the same, and the inner size, which is four times the hidden one."""
_NEUTRAL = {"apply_residual_connection_post_layernorm": (False,)}


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json. Raises ConfigError if it asks for something that the layers cannot do."""
    get = get.adapted(_KEYS, {"tie_word_embeddings": True})
    return read_gpt_config(
        get,
        bias=True,
        names=_NAMES,
        intermediate_size=4 * get.size("hidden_size"),
        ropes=(None,) * get.size("num_hidden_layers"),
        alibi=True,
        activation="gelu_tanh",
        qkv_by_group=True,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head."""
    return [Architecture("BloomForCausalLM", "tgi.layers:LlamaDecoder", read_config, _HARMLESS, _NEUTRAL)]
