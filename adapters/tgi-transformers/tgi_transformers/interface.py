"""The way from the attention of a model of transformers to the server's. Imported in rank processes only."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import attrs
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sliding_window_causal_mask_function
from transformers.models.gpt_neo import modeling_gpt_neo

from .trial import make_mask

Attending = Callable[..., torch.Tensor]
PAGED, TRIAL = "tgi_paged", "tgi_trial"
"""The two names of `attend`; transformers makes no masks for the name under which none are registered."""


@attrs.define(eq=False)
class Current:
    """Attention of the step that is running; all modules of a decoder have this as `tgi`."""

    attend: Attending | None = None


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a layer, called by transformers: [1, heads, T, head_dim] to [1, T, heads, head_dim]."""
    return module.tgi.attend(module, query, key, value, attention_mask, given), None


AttentionInterface.register(PAGED, attend)
AttentionInterface.register(TRIAL, attend)
AttentionMaskInterface.register(TRIAL, make_mask)


class GPTNeoAttention(modeling_gpt_neo.GPTNeoSelfAttention):
    """Attention of GPT-Neo, which transformers computes without its interface."""

    def __init__(self, config: Any, attention_type: str, layer_id: int) -> None:
        super().__init__(config, attention_type, layer_id)  # type: ignore[no-untyped-call]
        self.layer_idx = layer_id
        self._mask = None
        if attention_type == "local":
            with torch.device("cpu"):  # a trial reads it, while the model is built on any device
                self._mask = make_mask(sliding_window_causal_mask_function(config.window_size), config)

    def _attn(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None
    ) -> tuple[torch.Tensor, None]:
        """[1, heads, T, head_dim] to the same."""
        mask = attention_mask if self._mask is None else self._mask
        out, _ = attend(self, query, key, value, mask, scaling=1.0)
        return out.transpose(1, 2), None


_ATTENTION_OF_GPT_NEO: dict[str, Any] = modeling_gpt_neo.GPT_NEO_ATTENTION_CLASSES
_ATTENTION_OF_GPT_NEO[TRIAL] = GPTNeoAttention


def goes_through(kind: Any) -> bool:
    """Return whether the attention of a class of models goes through transformers' interface, or ours."""
    if kind.is_backend_compatible() or kind is modeling_gpt_neo.GPTNeoForCausalLM:
        return True
    return "ALL_ATTENTION_FUNCTIONS" in inspect.getsource(sys.modules[kind.__module__])
