"""Small random models of transformers, saved by itself."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tgi.testing.models import make_tokenizer

VOCAB = 333
NEW = int(transformers.__version__.split(".")[0]) >= 5
"""Whether transformers is of version 5."""


def make_model(folder: Path, config: str, seed: int = 0, **settings: Any) -> Path:
    """Write a model of that class of configuration, and a tokenizer, into `folder`; return it.

    The weights are drawn so wide that attention is not uniform.
    """
    settings = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **settings}
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))
    for parameter in made.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.2 * parameter.shape[-1] ** -0.5)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    make_tokenizer(folder, settings["vocab_size"])
    return folder


SMALL = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {"config": "Qwen3Config", **SMALL, "num_key_value_heads": 2, "head_dim": 16},
    "Gemma 2": {
        "config": "Gemma2Config",
        **SMALL,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 8,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 24,
    },
    "Phi": {"config": "PhiConfig", **SMALL, "partial_rotary_factor": 0.5},
    "GPT-2": {"config": "GPT2Config", "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "OPT": {
        "config": "OPTConfig",
        "hidden_size": 48,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "word_embed_proj_dim": 48,
    },
}
"""Families, and the settings of a model that needs all that is particular to them."""
GENERAL = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
"""A config.json with the fields that every model has."""
