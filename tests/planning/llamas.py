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
LLAMA_31_405B = llama(16384, 53248, 126, 128, 8, 128256)
LLAMA_2_7B = llama(4096, 11008, 32, 32, 32, 32000)
MISTRAL_7B = llama(4096, 14336, 32, 32, 8, 32000) | {
    "architectures": ["MistralForCausalLM"],
    "sliding_window": None,
}

MIXTRAL_8X7B = MISTRAL_7B | {
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
QWEN3_30B_A3B = llama(2048, 6144, 48, 32, 4, 151936) | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "head_dim": 128,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
}
DEEPSEEK_V3 = llama(7168, 18432, 61, 128, 128, 129280) | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
GPT_OSS_20B = llama(2880, 2880, 24, 64, 8, 201088) | {
    "architectures": ["GptOssForCausalLM"],
    "head_dim": 64,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "sliding_window": 128,
    "quantization_config": {"quant_method": "mxfp4"},
}
GEMMA_3_27B: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "text_config": {
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}
