"""GPT-2, GPT-J and GPT-NeoX for tgi: the description of the models. Imports no torch."""

from collections.abc import Mapping
from typing import Any

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import GPT2_NAMES, LlamaConfig, Names, read_gelu, read_gpt_config
from tgi.plugins.rope_config import RopeConfig, read_rope

_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
_GPTJ = Names(
    embedding="transformer.wte",
    layer="transformer.h.{}",
    norm="transformer.ln_f",
    before_attention="ln_1",
    before_mlp=None,
    attention="attn",
    out="out_proj",
    up=("fc_in",),
    down="fc_out",
)
_NEOX = Names(
    embedding="gpt_neox.embed_in",
    layer="gpt_neox.layers.{}",
    norm="gpt_neox.final_layer_norm",
    head="embed_out",
    attention="attention",
    qkv=("query_key_value",),
    out="dense",
    up=("dense_h_to_4h",),
    down="dense_4h_to_h",
)
_HARMLESS = frozenset(
    {"n_ctx", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"}
    | {"summary_use_proj", "gradient_checkpointing", "layer_norm_epsilon"}
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "reorder_and_upcast_attn": (False, True),
    "rotary": (True,),
}


def read_gpt2(get: JsonReader) -> LlamaConfig:
    """Read config.json of a GPT-2, which has learned its positions. Raises ConfigError."""
    get = get.adapted(_KEYS, {"tie_word_embeddings": True, "n_positions": 1024})
    positions = get.size("max_position_embeddings", 1024)
    return read_gpt_config(
        get,
        bias=True,
        names=GPT2_NAMES,
        ropes=(None,) * get.size("num_hidden_layers"),
        learned_positions=positions,
        max_position=positions,
        activation=read_gelu(get),
        transposed=True,
    )


def read_gptj(get: JsonReader) -> LlamaConfig:
    """Read config.json of a GPT-J. Raises ConfigError."""
    get = get.adapted(_KEYS, {"n_positions": 2048})
    length = get.size("max_position_embeddings")
    rope = RopeConfig(dim=get.size("rotary_dim", 64), max_position=length, original_max_position=length)
    layers = get.size("num_hidden_layers")
    return read_gpt_config(
        get,
        bias=False,
        names=_GPTJ,
        ropes=(rope,) * layers,
        interleaved=True,
        parallel=True,
        activation=read_gelu(get),
        mlp_bias=True,
        head_bias=True,
    )


def read_neox(get: JsonReader) -> LlamaConfig:
    """Read config.json of a GPT-NeoX or Pythia. Raises ConfigError."""
    names = {
        "partial_rotary_factor": "rotary_pct",
        "rope_theta": "rotary_emb_base",
        "rms_norm_eps": "layer_norm_eps",
    }
    get = get.adapted(names, {"partial_rotary_factor": 0.25, "rms_norm_eps": 1e-5})
    rope = read_rope(get, get.size("hidden_size") // get.size("num_attention_heads"))
    return read_gpt_config(
        get,
        bias=get(bool, "attention_bias", True),
        names=_NEOX,
        ropes=(rope,) * get.size("num_hidden_layers"),
        parallel=get(bool, "use_parallel_residual", True),
        qkv_by_group=True,
        activation=read_gelu(get, default="gelu"),
        mlp_bias=True,
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {
        "GPT2LMHeadModel": read_gpt2,
        "GPTJForCausalLM": read_gptj,
        "GPTNeoXForCausalLM": read_neox,
    }
    return [
        Architecture(name, "tgi.layers:LlamaDecoder", read, _HARMLESS, _NEUTRAL)
        for name, read in readers.items()
    ]
