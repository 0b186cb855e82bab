"""A run of a model of transformers on three tokens, which tells its attention, or that it cannot be run here.

Imported in rank processes only.
"""

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from tgi.device.attention import AttentionSpec
from tgi.plugins import ConfigError

from .plugin import TransformersConfig

TOKENS = 3
_UNDERSTOOD = frozenset({"dropout", "scaling", "softcap", "sliding_window", "is_causal", "position_ids"})
"""Other arguments that the attention of a layer may get; the window is taken from the mask."""


@attrs.define(eq=False)
class Trial:
    """Attention that takes note of its arguments, and returns something to go on with."""

    config: TransformersConfig
    specs: dict[int, AttentionSpec] = attrs.field(factory=dict)
    """Attention of the layers that have been called."""
    modules: dict[int, nn.Module] = attrs.field(factory=dict)
    """Modules for which these were called."""

    def __call__(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        given: Mapping[str, Any],
    ) -> torch.Tensor:
        """Raises ConfigError."""
        self._check_shapes(query, key, value)
        index: Any = getattr(module, "layer_idx", None)
        if index in self.specs or index not in range(self.config.num_layers):
            raise self.error(f"layer {index} has attention twice, or is none of {self.config.num_layers}")
        unknown = [name for name, what in given.items() if what is not None and what is not False]
        if unknown := sorted(set(unknown) - _UNDERSTOOD):
            raise self.error(f"its attention needs {', '.join(unknown)}")
        self.modules[index] = module
        scale = given.get("scaling")
        self.specs[index] = AttentionSpec(
            scale=_own_scale(module, index, query.shape[-1]) if scale is None else float(scale),
            window=self.window(mask),
            softcap=given.get("softcap"),
        )
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2).contiguous()

    def finish(self) -> list[AttentionSpec]:
        """Return the attention of all layers. Raises ConfigError if one has not been called."""
        missing = sorted(set(range(self.config.num_layers)) - set(self.specs))
        if missing:
            layers = ", ".join(map(str, missing))
            raise self.error(f"there is no attention that others can compute in layer {layers}")
        for layer, window in enumerate(self.config.windows):
            if window is not None and self.specs[layer].window != window:
                raise self.error(f"config.json has a window of {window} for layer {layer}, which has another")
        return [self.specs[index] for index in range(self.config.num_layers)]

    def error(self, reason: str) -> ConfigError:
        """Return an error for a model that cannot be run here."""
        return ConfigError(f"{self.config.architecture} cannot be run by way of transformers: {reason}")

    def _check_shapes(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        config = self.config
        heads, kv_heads, size = query.shape[1], key.shape[1], key.shape[3]
        if (heads, kv_heads, size) != (config.num_heads, config.num_kv_heads, config.head_dim):
            raise self.error(
                f"a layer has {heads} heads and {kv_heads} key/value heads of {size} features; config.json "
                f"is understood to say {config.num_heads}, {config.num_kv_heads} and {config.head_dim}"
            )
        if value.shape[1] != kv_heads or value.shape[3] > size:
            raise self.error(
                f"a layer has {value.shape[1]} values of {value.shape[3]} features for these keys"
            )

    def window(self, mask: torch.Tensor | None) -> int | None:
        """Return the window in a mask of `make_mask`; None: a token sees all before it."""
        if mask is None or mask.shape[-2] != 2:
            raise self.error("its attention masks are its own")
        before, last = mask.view(2, -1).cpu()
        size = len(last)
        window = int(last.sum())
        place = torch.arange(size)
        for query, seen in ((size - 2, before), (size - 1, last)):
            if not torch.equal(seen, (place <= query) & (place > query - window)):
                raise self.error("a token sees others than those just before it")
        return None if window == size else window


def _own_scale(module: nn.Module, layer: int, size: int) -> float:
    """Return the scale of attention that is given none; GPT-2's depends on two switches in transformers 4."""
    scale = size**-0.5 if getattr(module, "scale_attn_weights", True) else 1.0
    return scale / (layer + 1) if getattr(module, "scale_attn_by_inverse_layer_idx", False) else scale


def make_mask(mask_function: Any, config: Any, **_: Any) -> torch.Tensor:
    """Return the mask [1, 1, 2, n] of two tokens behind many others, for the attention of a trial.

    The trial itself is shorter than any window.
    """
    size = 2 * max(getattr(config, "max_position_embeddings", 0), 1 << 15)
    query, key = torch.arange(size - 2, size)[:, None], torch.arange(size)
    zero = torch.zeros(1, dtype=torch.int64)
    seen: torch.Tensor = mask_function(zero, zero, query, key)
    return seen.expand(2, size)[None, None]
