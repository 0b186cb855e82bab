"""Fields of config.json that transformers does not read: they are harmless, or the model is refused.

Imported in rank processes only.
"""

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

HARMLESS = frozenset(
    """
    activation_dropout add_classification_head attention_head_dim cache_implementation class_num
    dense_list embed_dropout for_llm_compressor im_end_id im_newline_id im_start_id init_method
    mask_init_id org_vocab_size pad_id pool_type summary_activation summary_first_dropout
    summary_proj_to_labels summary_type summary_use_proj text_end_id text_start_id
    """.split()  # noqa: SIM905
)
"""Names of fields that may have any value, beside those of `tgi.plugins.fields`: training, images, other
programs' settings, and second names of fields that transformers reads."""

_ROPE = ("rope_scaling", "rope_parameters")
_OF_ROPE = frozenset(
    """
    attention_factor beta_fast beta_slow factor finetuned high_freq_factor long_factor low_freq_factor
    mrope_section mscale mscale_all_dim original_max_position_embeddings partial_rotary_factor rope_theta
    rope_type short_factor truncate type
    """.split()  # noqa: SIM905
)
"""Fields of RoPE that transformers reads."""
NEUTRAL: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    "granitemoehybrid": {"normalization_function": ("rmsnorm",)},
    "hunyuan_v1_dense": {
        "cla_share_factor": (2,),
        "enable_attention_fp32_softmax": (False,),
        "enable_lm_head_fp32": (False,),
        "norm_type": ("rms",),
        "use_cla": (False,),
        "use_qk_norm": (True,),
        "use_rotary_pos_emb": (True,),
    },
}
"""Values with which an unread field changes nothing, by the "model_type" that has it."""


def unread(settings: Any, kind: type, json: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield the place, key and value of each field that neither the class of `settings` nor `kind` reads.

    Those of its RoPE count, and those of its text model if it has others beside it.
    """
    known = _declared(settings) | set(settings.attribute_map)
    known |= _names_read(kind.__module__, False) | _names_read(type(settings).__module__, True)
    for key, value in json.items():
        if key in _ROPE and isinstance(value, dict):
            yield from _unread_of_rope(value, known, key)
        elif key == "text_config" and isinstance(value, dict) and hasattr(settings, key):
            yield from unread(settings.text_config, kind, value)
        elif key not in known and key in vars(settings):  # which has what no code has taken out
            yield "config.json", key, value


def _declared(settings: Any) -> set[str]:
    """Return the fields that the class of settings declares: in transformers 4, those of a new instance."""
    if dataclasses.is_dataclass(settings):
        return {field.name for field in dataclasses.fields(settings)}
    return set(vars(type(settings)()))


def _unread_of_rope(value: Mapping[str, Any], known: set[str], place: str) -> Iterator[tuple[str, str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):  # each type of layer has its own
            yield from _unread_of_rope(inner, known, f"{place}.{key}")
        elif key not in _OF_ROPE and key not in known:
            yield f"config.json {place!r}", key, inner


@cache
def _names_read(module: str, of_settings: bool) -> frozenset[str]:
    """Return the settings that a module names: in texts, and as attributes of configs, or of `self` there."""
    names, configs = set(), ("config", "self") if of_settings else ("config",)
    for node in ast.walk(ast.parse(inspect.getsource(sys.modules[module]))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(configs):
            names.add(node.attr)
    return frozenset(names)
