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
    """Its block table: enough blocks for `start + length` tokens. Those that no layer sees any more may be
    others' by now."""


@attrs.define(eq=False)
class FlatBlocks:
    """The blocks of all rows of a decode step, one row's after another's; [n] each."""

    ids: torch.Tensor
    """Padded with 0."""
    rows: torch.Tensor
    """Whose block it is; the number of rows for padding."""
    tokens: torch.Tensor
    """How many tokens of the row are in it or after it, the new one included; 1 for padding."""


@attrs.frozen(eq=False)
class KVCache:
    """Keys and values of all tokens in all layers. In which order, is the device's own affair."""

    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    """The keys and the values of each layer."""
    whole: torch.Tensor | None = None
    """All of them as one tensor, if the device has them so."""


@attrs.define(eq=False)
class Batch:
    """What `forward` of a model takes. All tensors are on the device; integers are int64 where
    `Device.compiles` is false, else int32.

    The tokens of all rows follow one another in one dimension of length T. Where `Device.compiles` is true,
    every row takes `T / rows` places, padded at its right, so that shapes depend on the bucket alone;
    where it is false, rows of a prefill step take what they need.
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
    """[rows, blocks]: block ids, padded with 0: at least those of the tokens before the step that any layer
    sees, except in a decode step that has `flat`."""
    last: torch.Tensor
    """[n]: which of the T tokens get logits, ascending but for padding."""
    cache: KVCache
    host: Sequence[HostRow] = ()
    """The rows that are not padding; only where `Device.compiles` is false."""
    lengths: torch.Tensor | None = None
    """[rows]: how many of a row's places have a token, at least 1; only of a prefill step, and only where
    `Device.compiles` is true."""
    bases: torch.Tensor | None = None
    """[rows]: position of the first token of each row's table; None: 0. Beyond 0 only where no layer sees
    what is before."""
    flat: FlatBlocks | None = None
    """Only of a decode step, where `Device.flat` is true."""
    features: torch.Tensor | None = None
    """[at least T, hidden size]: where the head leaves what it got, for later questions about the prompt."""
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
