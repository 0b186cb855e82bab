"""StarCoder for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import GPT2_NAMES, LlamaConfig, Names, read_gelu, read_gpt_config

_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
    "rms_norm_eps": "layer_norm_epsilon",
}
_HARMLESS = frozenset(
    {"attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner", "pad_key_length"}
    | {"max_batch_size", "max_sequence_length", "pre_allocate_kv_cache", "validate_runner_input", "n_ctx"}
    | {"summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"}
    | {"summary_use_proj", "residual_dropout", "embedding_dropout"}
    | {"activation_function", "layer_norm_epsilon"}  # StarCoder2 has them beside its own names
)
_NEUTRAL = {
    "scale_attn_weights": (True,),
    "mlp_type": ("default",),
    "norm_type": ("layer_norm",),
}


def read_bigcode(get: JsonReader) -> LlamaConfig:
    """Read config.json of a StarCoder or SantaCoder. Raises ConfigError."""
    get = get.adapted(_KEYS, {"tie_word_embeddings": True})
    shared, heads = get(bool, "multi_query", True), get.size("num_attention_heads")
    positions = get.size("max_position_embeddings", 1024)
    return read_gpt_config(
        get,
        bias=True,
        names=GPT2_NAMES,
        num_kv_heads=1 if shared else heads,
        ropes=(None,) * get.size("num_hidden_layers"),
        learned_positions=positions,
        max_position=positions,
        activation=read_gelu(get, "activation_function", "gelu_pytorch_tanh"),
        qkv_by_group=not shared,
    )


def read_starcoder2(get: JsonReader) -> LlamaConfig:
    """Read config.json of a StarCoder2. Raises ConfigError."""
    defaults = {"tie_word_embeddings": True, "max_position_embeddings": 4096}
    get = get.adapted({"rms_norm_eps": "norm_epsilon"}, defaults)
    return read_gpt_config(
        get,
        windows=(get.optional_size("sliding_window"),) * get.size("num_hidden_layers"),
        bias=get(bool, "use_bias", True),
        names=Names(up=("c_fc",), down="c_proj"),
        activation=read_gelu(get, default="gelu_pytorch_tanh"),
    )


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {"GPTBigCodeForCausalLM": read_bigcode, "Starcoder2ForCausalLM": read_starcoder2}
    return [
        Architecture(name, "tgi.layers:LlamaDecoder", read, _HARMLESS, _NEUTRAL)
        for name, read in readers.items()
    ]
