"""The input of one forward pass, on the device, and what the host knows of it."""

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt
import torch


@attrs.frozen
class HostRow:
    """One row of a step as the host knows it, for devices that plan their work per row."""

    offset: int
    """Index of its first query token among all tokens of the batch."""
    length: int
    """Query tokens in this step, without padding."""
    start: int
    """Tokens of the row that were in the KV cache before this step."""
    blocks: npt.NDArray[np.int32]
    """Its block table: enough blocks for `start + length` tokens."""


@attrs.frozen(eq=False)
class KVCache:
    """Keys and values of all tokens in all layers. In which order, is the device's own affair."""

    whole: torch.Tensor
    """One tensor."""
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    """Its parts: the keys and the values of each layer."""


@attrs.define(eq=False)
class Batch:
    """What `forward` of a model takes. All tensors are on the device, integers are int64.

    The tokens of all rows follow one another in one dimension of length T. Where `Device.dynamic` is false,
    every row takes `T / rows` places, padded at its right, so that shapes depend on the bucket alone;
    where it is true, rows of a prefill step take what they need.
    """

    tokens: torch.Tensor
    """[T]: token ids; padding has id 0."""
    positions: torch.Tensor
    """[T]: position in the sequence."""
    contexts: torch.Tensor
    """[T]: length of the sequence that a RoPE which depends on it reckons with: for a token of the prompt the
    length of the prompt, for a generated one its position + 1."""
    slots: torch.Tensor
    """[T]: where in the KV cache the token's key and value go; padding goes to block 0."""
    tables: torch.Tensor
    """[rows, blocks]: block ids, padded with 0."""
    last: torch.Tensor
    """[n]: which of the T tokens get logits, ascending but for padding."""
    cache: KVCache
    host: Sequence[HostRow]
    """The rows that are not padding."""
    targets: torch.Tensor | None = None
    """[T]: where log-probabilities of the prompt are wanted, the token after each token; -1 for none."""
    target_logprobs: torch.Tensor | None = None
    """[T] float32, what the model's head answers to `targets`; NaN where there is none."""
    target_top: int = 0
    """How many of the most likely tokens are wanted in the place of each target,"""
    target_top_tokens: torch.Tensor | None = None
    """[T, target_top] int64: the head's answer, as of `most_likely`,"""
    target_top_logprobs: torch.Tensor | None = None
    """[T, target_top] float32: equal to the target's own, bit for bit, where it is among them."""
    plan: object = None
    """What `Device.plan` made of it, once for all layers."""
