"""MPT for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, ConfigError, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, Names, read_gpt_config

_KEYS = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "max_position_embeddings": "max_seq_len",
    "rms_norm_eps": "layer_norm_epsilon",
}
_NAMES = Names(
    embedding="transformer.wte",
    layer="transformer.blocks.{}",
    norm="transformer.norm_f",
    before_attention="norm_1",
    before_mlp="norm_2",
    attention="attn",
    qkv=("Wqkv",),
    out="out_proj",
    mlp="ffn",
    up=("up_proj",),
    down="down_proj",
)
_HARMLESS = frozenset(
    {"emb_pdrop", "ffn_config", "fc_type", "init_config", "init_device", "learned_pos_emb", "norm_type"}
    | {"tokenizer_name", "verbose"}
)
_OF_ATTENTION = {
    "attn_type": ("multihead_attention",),
    "prefix_lm": (False,),
    "qk_ln": (False,),
    "qk_gn": (False,),
    "attn_uses_sequence_id": (False,),
    "rope": (False,),
    "alibi": (True,),
    "alibi_bias_max": (8,),
    "sliding_window_size": (-1,),
}
"""Values of "attn_config" that can be run."""
_NEUTRAL = {
    "no_bias": (True,),
    "expansion_ratio": (4,),
    "embedding_fraction": (1.0, 1),
    "logit_scale": (None,),
}


def read_config(get: JsonReader) -> LlamaConfig:
    """Read config.json. Raises ConfigError if it asks for something that the layers cannot do."""
    get = get.adapted(_KEYS, {"tie_word_embeddings": True})
    heads, attention = get.size("num_attention_heads"), get.section("attn_config") or JsonReader({})
    for key, values in _OF_ATTENTION.items():
        value = attention(object, key, values[0])
        if value not in values:
            raise ConfigError(
                f"config.json 'attn_config': {key!r} is {value!r}; only {values[0]!r} is supported"
            )
    for key in ("attn_impl", "attn_pdrop", "model_type", "kv_n_heads", "fused_qkv"):
        attention(object, key, None)  # ways to compute the same
    if heads & (heads - 1):
        raise ConfigError(
            f"config.json: 'n_heads' is {heads}; an MPT has a power of 2, for which ALiBi is defined"
        )
    return read_gpt_config(
        get,
        bias=False,
        names=_NAMES,
        intermediate_size=4 * get.size("hidden_size"),
        ropes=(None,) * get.size("num_hidden_layers"),
        alibi=True,
        clip_qkv=attention(float, "clip_qkv", None),
        attention_scale=attention(float, "softmax_scale", None),
        activation="gelu",
        norm_bias=False,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoder with a language-model head, under both of its names."""
    names, model = ("MptForCausalLM", "MPTForCausalLM"), "tgi.layers:LlamaDecoder"
    return [Architecture(name, model, read_config, _HARMLESS, _NEUTRAL) for name in names]
