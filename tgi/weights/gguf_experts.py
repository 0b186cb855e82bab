"""Models with experts in llama.cpp's files: their settings, of which transformers reads some, and tensors.

A file has the gates of a layer's experts in one tensor, and likewise the two other matrices.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, dequantize, get_tensor_name_map
from transformers import AutoConfig

from .formats.gguf import TYPES
from .gguf_model import GgufModel, Settings, rope_parameters

Tensors = Iterator[tuple[str, torch.Tensor]]
_COMMON = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "expert_used_count": "num_experts_per_tok",
}
"""transformers' names of settings by those of a file, below its architecture."""
_DEEPSEEK = {
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_shared_count": "n_shared_experts",
    "expert_weights_scale": "routed_scaling_factor",
    "expert_weights_norm": "norm_topk_prob",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
}

_HARMONY_ENDS = ("<|return|>", "<|call|>", "<|endoftext|>")


@attrs.frozen
class Family:
    """Models that llama.cpp treats alike."""

    kind: str
    """Value of "model_type"."""
    experts: str
    """Name of an expert below its layer, by its number; or of all, if it has none."""
    count: str = "num_experts"
    inner: str = "moe_intermediate_size"
    """Names of settings: the number of experts and their inner size."""
    matrices: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    own: Callable[[GgufModel], Settings] = lambda _model: {}
    """Returns what else config.json has."""


def _gpt_oss(model: GgufModel) -> Settings:
    """Return what no file has: a call of a tool ends a text, too."""
    tokens = model.field("tokenizer.ggml.tokens")
    ends = [number for number, token in enumerate(tokens) if token in _HARMONY_ENDS]
    settings = {"eos_token_id": ends} if ends else {}
    return {"rope_parameters": {"truncate": False}, **settings}


def _qwen2_moe(model: GgufModel) -> Settings:
    shared = model.shape("ffn_down_shexp.weight")
    return {} if shared is None else {"shared_expert_intermediate_size": shared[0]}


def _deepseek(model: GgufModel) -> Settings:
    """Return sizes of heads, which newer files have with the suffix "_mla", and the choice of experts."""
    settings = model.settings(_DEEPSEEK)
    wide = model["attention.key_length_mla"] or model["attention.key_length"]
    settings |= {
        "head_dim": None,
        "qk_nope_head_dim": wide - settings["qk_rope_head_dim"],
        "v_head_dim": model["attention.value_length_mla"] or model["attention.value_length"],
        "q_lora_rank": settings.get("q_lora_rank"),
        "num_key_value_heads": model["attention.head_count"],
    }
    if model.shape("exp_probs_b.bias") is None:
        grouped = settings.get("n_group", 1) > 1
        settings |= {
            "model_type": "deepseek_v2",
            "topk_method": "group_limited_greedy" if grouped else "greedy",
        }
    sharpness = model["rope.scaling.yarn_log_multiplier"]
    if sharpness:
        factor = round(float(sharpness) / 0.1, 6)
        settings["rope_parameters"] = {"mscale": factor, "mscale_all_dim": factor}
    return settings


_MIXTRAL = Family(
    "mixtral", "block_sparse_moe.experts.{}", "num_local_experts", "intermediate_size", ("w1", "w3", "w2")
)
FAMILIES = {
    "llama": _MIXTRAL,
    "qwen2moe": Family("qwen2_moe", "mlp.experts.{}", own=_qwen2_moe),
    "qwen3moe": Family("qwen3_moe", "mlp.experts.{}", own=lambda _model: {"norm_topk_prob": True}),
    "deepseek2": Family("deepseek_v3", "mlp.experts.{}", "n_routed_experts", own=_deepseek),
    "gpt-oss": Family("gpt_oss", "mlp.experts", "num_local_experts", "intermediate_size", own=_gpt_oss),
}
"""Families by llama.cpp's name of the architecture."""


def find_family(model: GgufModel) -> Family | None:
    """Return the family of a file with experts. Raises ValueError for an old one."""
    if not model["expert_count"]:
        return None
    if model.shape("ffn_down_exps.weight") is None:
        raise ValueError("it has a tensor for each expert, as until April 2024: convert the model again")
    return FAMILIES.get(model.architecture)


def read_config(model: GgufModel, family: Family) -> Any:
    """Return transformers' config."""
    inner, _, count = model.shape("ffn_down_exps.weight") or (0, 0, 0)
    settings = {"model_type": family.kind, **model.settings(_COMMON)}
    settings |= {family.inner: inner, family.count: count}
    settings |= {"vocab_size": (model.shape("token_embd.weight") or [0, 0])[1]}
    settings |= {"tie_word_embeddings": "output.weight" not in model.tensors}
    for name in ("bos", "eos"):
        settings[f"{name}_token_id"] = model.field(f"tokenizer.ggml.{name}_token_id")
    own = family.own(model)
    rope = {"rope_type": "default", "rope_theta": model["rope.freq_base"]} | own.pop("rope_parameters", {})
    settings |= own | {"rope_parameters": rope_parameters(model, rope)}
    return AutoConfig.for_model(**settings)


def tensor_names(model: GgufModel, names: Iterable[str], family: Family) -> dict[str, str]:
    """Return the names that an adapter has for the file's tensors, by these.

    `names` are those of transformers' model.
    """
    architecture = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == model.architecture)
    known, found = get_tensor_name_map(architecture, model["block_count"]), {}
    for name in names:
        module, _, kind = name.replace("_correction_bias", "_correction.bias").rpartition(".")
        if kind not in ("weight", "bias"):
            module, kind = name, "weight"
        if place := known.get_name(module):
            found[f"{place}.{kind}"] = name.replace(".mlp.", f".{family.experts.partition('.')[0]}.")
    return found


def stored(numbers: Any, kind: Any) -> tuple[str, torch.Tensor]:
    """Return the end of a tensor's name in a checkpoint, and its blocks or, in other types, its numbers."""
    if kind.name in TYPES:
        return kind.name, torch.from_numpy(np.array(numbers))
    return "weight", torch.from_numpy(np.array(dequantize(numbers, kind))).to(torch.bfloat16)


def layer_tensors(model: GgufModel, family: Family, layer: int) -> Tensors:
    """Yield the tensors of a layer that an adapter reads otherwise than the file has them."""
    module = f"model.layers.{layer}.{family.experts}"
    given = {
        name.removeprefix(f"blk.{layer}."): each
        for name, each in model.tensors.items()
        if name.startswith(f"blk.{layer}.")
    }
    if "attn_k_b.weight" in given:
        yield f"model.layers.{layer}.self_attn.kv_b_proj.weight", _join_heads(given)
    if "ffn_down_exps.weight" not in given:
        return
    kinds = [f"ffn_{name}_exps.weight" for name in ("gate", "up", "down")]
    matrices = [(given[name].data, given[name].tensor_type) for name in kinds if name in given]
    if (both := given.get("ffn_gate_up_exps.weight")) is not None:
        matrices = [*((half, both.tensor_type) for half in np.split(both.data, 2, 1)), *matrices]
    if "{}" not in module:
        yield from _stack(module, matrices, given)
        return
    for name, (numbers, kind) in zip(family.matrices, matrices, strict=True):
        for number, matrix in enumerate(numbers):
            end, tensor = stored(matrix, kind)
            yield f"{module.format(number)}.{name}.{end}", tensor


def _stack(module: str, matrices: Sequence[tuple[Any, Any]], given: Mapping[str, Any]) -> Tensors:
    """Yield gpt-oss's experts: rows of gates and those beside them take turns, and dense ones are turned."""
    (gate, kind), (up, other), down = matrices
    if kind != other:
        gate, up, kind = dequantize(gate, kind), dequantize(up, other), GGMLQuantizationType.F32
    for name, (numbers, each) in {"gate_up": (_alternate(gate, up), kind), "down": down}.items():
        end, tensor = stored(numbers, each)
        if end == "weight":
            yield f"{module}.{name}_proj", tensor.transpose(1, 2).contiguous()
        else:
            yield f"{module}.{name}_proj.{end}", tensor
    gate, up, last = (given[f"ffn_{name}_exps.bias"].data for name in ("gate", "up", "down"))
    yield f"{module}.gate_up_proj_bias", torch.from_numpy(_alternate(gate, up))
    yield f"{module}.down_proj_bias", torch.from_numpy(np.array(last))


def _alternate(even: Any, odd: Any) -> Any:
    return np.stack([even, odd], 2).reshape(len(even), 2 * even.shape[1], *even.shape[2:])


def _join_heads(given: Mapping[str, Any]) -> torch.Tensor:
    """Return DeepSeek's weight of keys and values, which newer files have apart, the first one turned."""
    keys, values = (
        dequantize(given[name].data, given[name].tensor_type)
        for name in ("attn_k_b.weight", "attn_v_b.weight")
    )
    both = np.concatenate([keys.swapaxes(1, 2), values], 1)
    return torch.from_numpy(both.reshape(-1, both.shape[2])).to(torch.bfloat16)
