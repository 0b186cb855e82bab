"""Small random Falcon checkpoints of every kind, named as in transformers or in the models' own code."""

from pathlib import Path
from typing import Any

from torch import Tensor

from tgi.testing.models import Draw, save_checkpoint

VARIANTS: dict[str, dict[str, Any]] = {
    "rw": {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    "7b": {"multi_query": True, "parallel_attn": True},
    "40b": {"new_decoder_architecture": True, "num_attention_heads": 8, "num_kv_heads": 2},
    "180b": {
        "new_decoder_architecture": True,
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 12,
        "num_kv_heads": 4,
    },
    "11b": {
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
        "num_attention_heads": 8,
        "num_kv_heads": 4,
        "ffn_hidden_size": 200,
        "max_position_embeddings": 8192,
        "rope_theta": 500042.0,
        "tie_word_embeddings": False,
    },
}
"""Settings of RefinedWeb's models (1B and 7B, 2023), 7B, 40B, 180B, and 11B (2024)."""
REPOSITORY_NAMES = {
    "num_attention_heads": "n_head",
    "num_kv_heads": "n_head_kv",
    "num_hidden_layers": "n_layer",
}
"""Names of keys in the code of the models' own repositories; `n_head_kv` means the new architecture."""


def make_falcon(
    folder: Path | str,
    variant: str,
    *,
    seed: int = 0,
    dtype: str = "float32",
    shards: int = 1,
    repository: bool = False,
    **config: Any,
) -> Path:
    """Write a random checkpoint of one of VARIANTS into `folder` (made if missing); return it.

    `config` replaces keys of config.json, under the names of transformers; with `repository` they are
    written as the code in the models' own repositories wants them.
    """
    whole = falcon_config(variant, dtype=dtype, **config)
    tensors = falcon_tensors(whole, seed)
    return save_checkpoint(Path(folder), repository_config(whole) if repository else whole, tensors, shards)


def falcon_config(variant: str, *, dtype: str = "float32", **overrides: Any) -> dict[str, Any]:
    """Return a config.json of a tiny Falcon."""
    config = {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "torch_dtype": dtype,
    }
    return config | VARIANTS[variant] | overrides


def repository_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json for the code in the models' own repositories, of 2023."""
    written = {REPOSITORY_NAMES.get(key, key): value for key, value in config.items()}
    new = written.pop("new_decoder_architecture", False)
    kind = "RefinedWeb" if new else "RefinedWebModel"
    return written | {"architectures": ["RWForCausalLM"], "model_type": kind}


def falcon_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Draw float32 tensors for a config, under the names of transformers."""
    draw = Draw.from_seed(seed)
    hidden, heads, bias = config["hidden_size"], config["num_attention_heads"], config.get("bias", False)
    inner = config.get("ffn_hidden_size", 4 * hidden)
    draw.linear("transformer.word_embeddings", config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        at = f"transformer.h.{index}"
        for norm in _norms(config):
            draw.norm(f"{at}.{norm}", hidden, bias=True)
        fused = (heads + 2 * _kv_heads(config)) * (hidden // heads)
        draw.linear(f"{at}.self_attention.query_key_value", fused, hidden, 1.5, bias)
        draw.linear(f"{at}.self_attention.dense", hidden, hidden, 1.0, bias)
        draw.linear(f"{at}.mlp.dense_h_to_4h", inner, hidden, 1.5, bias)
        draw.linear(f"{at}.mlp.dense_4h_to_h", hidden, inner, 1.0, bias)
    draw.norm("transformer.ln_f", hidden, bias=True)
    if not config.get("tie_word_embeddings", True):
        draw.linear("lm_head", config["vocab_size"], hidden, 2.0)
    return draw.tensors


def _kv_heads(config: dict[str, Any]) -> int:
    heads: int = config["num_attention_heads"]
    if config.get("new_decoder_architecture"):
        return int(config.get("num_kv_heads", heads))
    return 1 if config.get("multi_query", True) else heads


def _norms(config: dict[str, Any]) -> tuple[str, ...]:
    new = config.get("new_decoder_architecture", False)
    if not new and not config.get("parallel_attn", True):
        return ("input_layernorm", "post_attention_layernorm")
    if new and config.get("num_ln_in_parallel_attn", 2) == 2:
        return ("ln_attn", "ln_mlp")
    return ("input_layernorm",)
