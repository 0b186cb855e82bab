"""InternLM for tgi: the description of the models. Imports no torch."""

from tgi.plugins import Architecture, JsonReader, hookimpl
from tgi.plugins.llama_config import LlamaConfig, Names, read_llama_config

_INTERNLM2 = Names(
    embedding="model.tok_embeddings",
    head="output",
    before_attention="attention_norm",
    before_mlp="ffn_norm",
    attention="attention",
    qkv=("wqkv",),
    out="wo",
    mlp="feed_forward",
    up=("w1", "w3"),
    down="w2",
)


def read_internlm2(get: JsonReader) -> LlamaConfig:
    """Read config.json of an InternLM2 or 2.5, which has names of its own. Raises ConfigError."""
    bias = get(bool, "bias", False)
    return read_llama_config(get, names=_INTERNLM2, qkv_by_group=True, qkv_bias=bias, out_bias=bias)


def read_internlm3(get: JsonReader) -> LlamaConfig:
    """Read config.json of an InternLM3. Raises ConfigError."""
    get = get.adapted(
        {"attention_bias": "qkv_bias", "mlp_bias": "bias"},
        {"head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5},
    )
    bias = get(bool, "mlp_bias", False)
    qkv_bias = get(bool, "attention_bias", False)
    return read_llama_config(get, qkv_bias=qkv_bias, out_bias=bias, mlp_bias=bias)


@hookimpl
def tgi_architectures() -> list[Architecture]:
    """Return the decoders with a language-model head."""
    readers = {"InternLM2ForCausalLM": read_internlm2, "InternLM3ForCausalLM": read_internlm3}
    return [Architecture(name, "tgi.layers:LlamaDecoder", read) for name, read in readers.items()]
