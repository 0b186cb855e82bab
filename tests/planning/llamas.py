"""config.json of models that everybody knows, from their public repositories."""

from typing import Any


def llama(hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    }


LLAMA_31_8B = llama(4096, 14336, 32, 32, 8, 128256)
LLAMA_31_70B = llama(8192, 28672, 80, 64, 8, 128256)
LLAMA_2_7B = llama(4096, 11008, 32, 32, 32, 32000)
MISTRAL_7B = llama(4096, 14336, 32, 32, 8, 32000) | {
    "architectures": ["MistralForCausalLM"],
    "sliding_window": None,
}
